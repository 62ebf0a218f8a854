"""The QEMU driver: starts guests, takes up those that run, ends those that nobody knows."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from guesthouse.drivers.base import (
    ENGINE_LOG,
    SERIAL_LOG,
    DriverCapabilities,
    Exit,
    Resources,
    Running,
)
from guesthouse.drivers.qemu import exits
from guesthouse.drivers.qemu.argv import build_argv
from guesthouse.drivers.qemu.cards import Cards, network_of
from guesthouse.drivers.qemu.failures import launch_error
from guesthouse.drivers.qemu.found import found_record
from guesthouse.drivers.qemu.identity import Needs
from guesthouse.drivers.qemu.keeping import KeeperLink
from guesthouse.drivers.qemu.opening import (
    KEEPER_QMP_SOCKET,
    SERIAL_SOCKET,
    open_all,
    remove_sockets,
)
from guesthouse.drivers.qemu.plan import Plan, make_plan
from guesthouse.drivers.qemu.running import QemuRunning
from guesthouse.drivers.qemu.session import CONNECT_SECONDS
from guesthouse.errors import (
    Conflict,
    DeadlineExceeded,
    GuesthouseError,
    LaunchFailed,
    MonitorLost,
    NotFound,
)
from guesthouse.host.firmware import find_ovmf
from guesthouse.host.keeper_client import (
    AdoptRequest,
    MonitorChannel,
    SerialChannel,
    Spawned,
    SpawnRequest,
)
from guesthouse.host.launcher import Confinement, confine
from guesthouse.host.probe import kvm_group
from guesthouse.host.process import ProcessHandle, boot_id, is_alive
from guesthouse.model.device import Link
from guesthouse.model.guest import Guest, LaunchRecord
from guesthouse.model.host import HostFacts
from guesthouse.network.base import Attachment, NetworkBackend

log = logging.getLogger(__name__)

SERIAL_LOG_BYTES = 4 << 20
SERIAL_LOGS_KEPT = 3
_ATTACH_SECONDS = 5.0
_END_SECONDS = 30.0
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}

Confine = Callable[[str, Needs], Awaitable[Confinement]]
"""(id of a guest, what QEMU must be able to open) -> what its process may be."""


class QemuDriver:
    """Keeps `Driver`'s contract.

    :param facts: the newest probe of this host. :param keeper: closed by whoever made it.
    :param networks: backends by name. :param confined: see `Identities.confinement`.
    """

    name = "qemu"
    capabilities = DriverCapabilities(
        pause=True,
        reset=True,
        screenshot=True,
        serial_console=True,
        live_publish=True,
        paused_start=True,
    )

    def __init__(
        self,
        facts: Callable[[], HostFacts],
        keeper: KeeperLink,
        networks: Mapping[str, NetworkBackend],
        *,
        am_root: bool,
        confined: Confine,
    ) -> None:
        self._facts, self._keeper, self._networks = facts, keeper, networks
        self._am_root = am_root
        self._confined = confined

    async def launch(
        self, guest: Guest, resources: Resources, *, incarnation: int, paused: bool = False
    ) -> Running:
        await self._check_free(guest)
        try:
            nics = await self._attach_nics(guest)
            return await self._launch(guest, resources, nics, incarnation, paused=paused)
        except BaseException:
            await asyncio.shield(Cards(guest, self._networks).rest())
            raise

    async def _launch(
        self,
        guest: Guest,
        resources: Resources,
        nics: Sequence[Attachment],
        incarnation: int,
        *,
        paused: bool,
    ) -> Running:
        facts = self._facts()
        plan = make_plan(guest, resources, facts, nics, find_ovmf())
        key = f"{guest.id}.{incarnation}"
        try:
            spawned, argv = await self._spawn(guest, resources, plan, key, nics)
            record = _record(
                guest=guest,
                plan=plan,
                facts=facts,
                spawned=spawned,
                argv=argv,
                incarnation=incarnation,
            )
            if guest.launch is not None:
                # How the one before ended is long recorded; now there is time, while QEMU starts.
                await self._keeper.forget(guest.run_key)
            return await self._bring_up(guest, resources, record, paused=paused)
        except BaseException:
            await asyncio.shield(self._undo(key, resources))
            raise

    async def attach(self, guest: Guest, resources: Resources) -> Running | Exit:
        launch = guest.launch
        if launch is None:
            return exits.UNKNOWN
        key = guest.run_key
        rebooted = launch.boot_id != boot_id()
        try:
            if rebooted:
                raise NotFound("No process outlives its host.")
            process = ProcessHandle.open(launch.pid, launch.pid_start)
        except NotFound:
            record = await self._keeper.written(key)
            await asyncio.to_thread(remove_sockets, resources.runtime)
            await Cards(guest, self._networks).rest()
            if record is None:
                return exits.HOST_REBOOTED if rebooted else exits.UNKNOWN
            return exits.explain(record, boot_id=launch.boot_id)
        request = self._adoption(key, launch.pid, launch.pid_start, resources)
        await self._adopt(request)
        running = self._running(guest, launch, process, resources, key)
        try:
            await running.connect(_ATTACH_SECONDS)
        except (MonitorLost, DeadlineExceeded) as error:
            # It lives and does not answer: the connection is tried again in the background.
            log.warning("guest %s: %s", guest.name, error)
        running.begin()
        return running

    async def find(self, guest: Guest) -> LaunchRecord | None:
        launch = guest.launch
        if launch and launch.boot_id == boot_id() and is_alive(launch.pid, launch.pid_start):
            return launch
        client = await self._keeper.client()
        mine = [p for p in await client.processes() if p.alive and _guest_of(p.key) == guest.id]
        for process in mine:
            incarnation = int(process.key.rpartition(".")[2])
            return found_record(guest, incarnation, process.pid, process.start_ticks)
        return None

    async def end(self, guest: Guest) -> bool:
        found = await self.find(guest)
        if found is None:
            return False
        await self._end(found.pid, found.pid_start)
        return True

    async def stray(self, guests: Sequence[Guest]) -> list[str]:
        known = {guest.run_key for guest in guests}
        client = await self._keeper.client()
        return [p.key for p in await client.processes() if p.alive and p.key not in known]

    async def end_stray(self, run_key: str) -> None:
        client = await self._keeper.client()
        try:
            found = await client.info(run_key)
        except NotFound:
            pass
        else:
            await self._end(found.pid, found.start_ticks)
        if await self._keeper.written(run_key) is not None:
            await self._keeper.forget(run_key)

    # --- starting -------------------------------------------------------------------------------

    async def _check_free(self, guest: Guest) -> None:
        """Before its sockets are bound anew. :raise Conflict: it has a process."""
        for process in await (await self._keeper.client()).processes():
            if _guest_of(process.key) == guest.id and process.alive:
                raise Conflict(
                    f"Guest {guest.name!r} still has a process (pid {process.pid}).",
                    hint="Stop it first.",
                    pid=process.pid,
                )

    async def _attach_nics(self, guest: Guest) -> list[Attachment]:
        return [
            await network_of(self._networks, nic.network).attach(
                guest.id, nic, nic.index, hostname=guest.name
            )
            for nic in guest.spec.nics
        ]

    async def _spawn(
        self,
        guest: Guest,
        resources: Resources,
        plan: Plan,
        key: str,
        nics: Sequence[Attachment],
    ) -> tuple[Spawned, tuple[str, ...]]:
        """Open everything, hand it to a new process, and close it here."""
        client = await self._keeper.client()
        taps = {
            card.index: nic.fd
            for card, nic in zip(guest.spec.nics, nics, strict=True)
            if nic.fd is not None
        }
        host_network = len(taps) < len(nics)
        confined = await self._confined(guest.id, self._needs(plan, host_network=host_network))
        opened = await asyncio.to_thread(open_all, plan, resources.runtime, taps)
        with opened.table:
            command = build_argv(plan, opened.number)
            argv = tuple(confine(command, confined, am_root=self._am_root))
            request = SpawnRequest(
                key=key,
                argv=argv,
                env=_ENVIRONMENT,
                stderr=resources.state / ENGINE_LOG,
                serial=_serial(resources),
                monitor=_monitor(resources),
            )
            return await client.spawn(request, opened.table), argv

    def _needs(self, plan: Plan, *, host_network: bool) -> Needs:
        by_path = plan.accelerator == "kvm" and not plan.kvm_device
        return Needs(
            program=Path(plan.qemu),
            host_network=host_network,
            kvm_by_path=by_path,
            kvm_group=kvm_group(self._facts()) if by_path else None,
        )

    async def _bring_up(
        self, guest: Guest, resources: Resources, record: LaunchRecord, *, paused: bool
    ) -> QemuRunning:
        """Connect to the new process and let it run. :raise GuesthouseError: why it ended."""
        key = f"{guest.id}.{record.incarnation}"
        try:
            process = ProcessHandle.open(record.pid, record.pid_start)
        except NotFound:
            raise await self._early_end(key) from None
        running = self._running(guest, record, process, resources, key)
        try:
            await running.connect(CONNECT_SECONDS)
            for nic in guest.spec.nics:
                if nic.link is Link.DOWN:
                    await running.set_link(nic.index, up=False)
            if not paused:
                await running.resume()
            self._keeper.add(self._adoption(key, record.pid, record.pid_start, resources))
            running.begin()
        except BaseException as error:
            await asyncio.shield(running.detach())
            if isinstance(error, MonitorLost | NotFound):
                raise await self._early_end(key) from None
            if isinstance(error, DeadlineExceeded):
                raise LaunchFailed(error.message, hint=error.hint) from error
            raise
        return running

    async def _early_end(self, key: str) -> GuesthouseError:
        record = await self._keeper.record(key)
        if record is None:
            return LaunchFailed("The engine ended at once, and nobody can tell why.")
        return await launch_error(record)

    async def _undo(self, key: str, resources: Resources) -> None:
        """A failed start leaves nothing: no process, no record, no socket."""
        self._keeper.remove(key)
        try:
            await self.end_stray(key)
        except GuesthouseError as error:
            log.warning("a failed start of %s may have left a process: %s", key, error)
        await asyncio.to_thread(remove_sockets, resources.runtime)

    async def _end(self, pid: int, start_ticks: int) -> None:
        try:
            with ProcessHandle.open(pid, start_ticks) as process:
                process.send_signal(signal.SIGKILL)
                await process.wait(_END_SECONDS)
        except NotFound:
            pass

    # --- taking up ------------------------------------------------------------------------------

    def _running(
        self,
        guest: Guest,
        record: LaunchRecord,
        process: ProcessHandle,
        resources: Resources,
        key: str,
    ) -> QemuRunning:
        return QemuRunning(
            key,
            record,
            process=process,
            keeper=self._keeper,
            cards=Cards(guest, self._networks),
            runtime=resources.runtime,
        )

    def _adoption(self, key: str, pid: int, start_ticks: int, resources: Resources) -> AdoptRequest:
        return AdoptRequest(
            key=key,
            pid=pid,
            start_ticks=start_ticks,
            stderr=resources.state / ENGINE_LOG,
            serial=_serial(resources),
            monitor=_monitor(resources),
        )

    async def _adopt(self, request: AdoptRequest) -> None:
        """Have it watched, if this keeper does not yet; without a keeper it runs all the same."""
        self._keeper.add(request)
        try:
            await (await self._keeper.client()).adopt(request)
        except GuesthouseError as error:
            log.warning("the keeper does not watch %s: %s", request.key, error)


def _guest_of(run_key: str) -> str:
    return run_key.rpartition(".")[0]


def _serial(resources: Resources) -> SerialChannel:
    return SerialChannel(
        socket=resources.runtime / SERIAL_SOCKET,
        log=resources.state / SERIAL_LOG,
        max_bytes=SERIAL_LOG_BYTES,
        keep=SERIAL_LOGS_KEPT,
    )


def _monitor(resources: Resources) -> MonitorChannel:
    return MonitorChannel(socket=resources.runtime / KEEPER_QMP_SOCKET)


def _record(
    *,
    guest: Guest,
    plan: Plan,
    facts: HostFacts,
    spawned: Spawned,
    argv: tuple[str, ...],
    incarnation: int,
) -> LaunchRecord:
    assert facts.qemu is not None  # make_plan refused otherwise
    return LaunchRecord(
        incarnation=incarnation,
        argv=argv,
        machine=plan.machine,
        cpu=plan.cpu,
        accelerator=plan.accelerator,
        accelerator_reason=plan.accelerator_reason,
        engine=f"QEMU {facts.qemu.version_text}",
        boot=plan.boot,
        spec=guest.spec,
        pid=spawned.pid,
        pid_start=spawned.start_ticks,
        boot_id=boot_id(),
        launched_at=time.time(),
    )
