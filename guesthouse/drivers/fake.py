"""A driver without machines, for tests and simulations: the same contract, kept in files.

Processes are small JSON files in one folder, so a second `FakeDriver` on that folder finds what
the first one started, as a restarted daemon would. Guests' agent and ssh answer at once. It is as
strict as QEMU about what may be done when, and can be told to fail, and guests to end or to stop.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from guesthouse.drivers.base import (
    SERIAL_LOG,
    DriverCapabilities,
    DriverEvent,
    Exit,
    Resources,
)
from guesthouse.drivers.events import Fanout
from guesthouse.drivers.fake_cards import FakeCards
from guesthouse.drivers.fake_guest import FakeGuest
from guesthouse.drivers.fake_process import FakeProcess
from guesthouse.errors import (
    Conflict,
    GuesthouseError,
    InvalidInput,
    NotFound,
    PortTaken,
    QmpFailed,
)
from guesthouse.host.process import boot_id
from guesthouse.model.device import Nic, Publish
from guesthouse.model.guest import BootPath, Guest, LaunchRecord
from guesthouse.network.ports import overlap, reserve

# Beyond the kernel's largest pid (2 ** 22): a fake process is never taken for a real one.
_FIRST_PID = 1 << 23
_NEEDS_RESET = frozenset({"panic", "engine-error"})


class FakeDriver:
    """:param folder: where the processes are. :param boot: another one simulates a reboot."""

    name = "fake"
    capabilities = DriverCapabilities(
        pause=True,
        reset=True,
        screenshot=True,
        serial_console=False,
        live_publish=True,
        ipv6_publish=True,
        paused_start=True,
    )

    def __init__(self, folder: Path, *, boot: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.boot = boot or boot_id()
        self._folder = folder
        self._running: dict[str, FakeRunning] = {}
        self._failures: list[tuple[str, GuesthouseError]] = []

    # --- what tests say -------------------------------------------------------------------------

    def fail(self, call: str, error: GuesthouseError, *, times: int = 1) -> None:
        """Let the next `times` calls of that name (`launch`, `pause`, …) raise `error`."""
        self._failures += [(call, error)] * times

    def exit_guest(self, guest_id: str, reason: str, message: str = "") -> None:
        """Let its process end by itself, whether anybody is attached or not."""
        process = self._process(guest_id)
        process.end(Exit(reason, message or f"It ended: {reason}."))
        running = self._running.get(process.key)
        if running is not None:
            running.ended()

    def stop_guest(self, guest_id: str, reason: str) -> None:
        """Let it stop by itself: `io-error`, `watchdog`, `panic` or `engine-error`."""
        process = self._process(guest_id)
        process.update(state="paused", reason=reason)
        if reason in {"io-error", "watchdog", "panic"}:
            self.emit(guest_id, reason)
        self.emit(guest_id, "paused")

    def set_behind(self, guest_id: str, seconds: float) -> None:
        """Let its clock be that far behind ours, until somebody sets it."""
        self._running[self._process(guest_id).key].inside.behind = seconds

    def emit(self, guest_id: str, kind: str, detail: dict[str, object] | None = None) -> None:
        running = self._running.get(self._process(guest_id).key)
        if running is not None:
            running.fan.send(DriverEvent(kind, detail or {}))

    def check(self, call: str) -> None:
        """:raise GuesthouseError: a failure was ordered for this call."""
        for index, (wanted, error) in enumerate(self._failures):
            if wanted == call:
                del self._failures[index]
                raise error

    # --- the contract ---------------------------------------------------------------------------

    async def launch(
        self, guest: Guest, resources: Resources, *, incarnation: int, paused: bool = False
    ) -> FakeRunning:
        self.check("launch")
        key = f"{guest.id}.{incarnation}"
        process = FakeProcess(self._folder, key)
        if any(alive.guest == guest.id for alive in self._alive()):
            raise Conflict(f"Guest {guest.name!r} still has a process.", hint="Stop it first.")
        _check_resources(resources)
        for nic in guest.spec.nics:
            for port in nic.ports:
                self.check_port(port)
        pid = self._next_pid()
        process.create(
            guest=guest.id,
            pid=pid,
            boot=self.boot,
            state="paused" if paused else "running",
            reason="starting" if paused else "",
            ports=[str(port) for nic in guest.spec.nics for port in nic.ports],
            nics=msgspec.to_builtins(guest.spec.nics),
        )
        record = _record(guest, resources.boot, incarnation, pid, self.boot)
        with (resources.state / SERIAL_LOG).open("a") as log:
            log.write(f"{guest.name}: started\n")
        return await self._begin(guest, resources, record, process)

    async def attach(self, guest: Guest, resources: Resources) -> FakeRunning | Exit:
        self.check("attach")
        process = FakeProcess(self._folder, guest.run_key)
        if guest.launch is None or not process.exists:
            return Exit("unknown", "Its process ended; how is not known.")
        if process.exit is not None:
            return process.exit
        if not process.alive(self.boot):
            return Exit("host-rebooted", "The host was restarted while the guest ran.")
        return await self._begin(guest, resources, guest.launch, process)

    async def find(self, guest: Guest) -> LaunchRecord | None:
        self.check("find")
        process = next((alive for alive in self._alive() if alive.guest == guest.id), None)
        if process is None or guest.run_key == process.key:
            return guest.launch if process else None
        incarnation = int(process.key.rpartition(".")[2])
        return _record(guest, guest.spec.boot, incarnation, process.pid, self.boot)

    async def end(self, guest: Guest) -> bool:
        self.check("end")
        alive = next((process for process in self._alive() if process.guest == guest.id), None)
        if alive is not None:
            self._kill(alive)
        return alive is not None

    async def stray(self, guests: Sequence[Guest]) -> list[str]:
        self.check("stray")
        known = {guest.run_key for guest in guests}
        return [p.key for p in self._alive() if p.key not in known]

    async def end_stray(self, run_key: str) -> None:
        self.check("end_stray")
        process = FakeProcess(self._folder, run_key)
        if process.exists and process.exit is None:
            self._kill(process)

    # --- within ---------------------------------------------------------------------------------

    def check_port(self, port: Publish) -> None:
        """:raise PortTaken: another fake guest holds it."""
        for process in self._alive():
            for other in process.ports:
                if overlap(port, other):
                    raise PortTaken(
                        f"Port {port.host_ip}:{port.host_port} is held by {process.guest}.",
                        holder=process.guest,
                        host_port=port.host_port,
                    )

    def _kill(self, process: FakeProcess) -> None:
        process.end(Exit("killed", "The guest's process was killed."))
        running = self._running.get(process.key)
        if running is not None:
            running.ended()

    def gone(self, key: str) -> None:
        self._running.pop(key, None)

    async def _begin(
        self, guest: Guest, resources: Resources, record: LaunchRecord, process: FakeProcess
    ) -> FakeRunning:
        cards = FakeCards(process.nics)
        inside = FakeGuest(guest, resources.runtime, lambda r: self.exit_guest(guest.id, r), cards)
        await inside.open()
        running = FakeRunning(self, record, process, inside, cards)
        self._running[process.key] = running
        return running

    def _alive(self) -> list[FakeProcess]:
        found = (FakeProcess(self._folder, p.stem) for p in sorted(self._folder.glob("*.json")))
        return [process for process in found if process.alive(self.boot)]

    def _process(self, guest_id: str) -> FakeProcess:
        for process in self._alive():
            if process.guest == guest_id:
                return process
        raise NotFound(f"No fake process of guest {guest_id} runs.")

    def _next_pid(self) -> int:
        return _FIRST_PID + len(list(self._folder.glob("*.json")))


class FakeRunning:
    """Keeps `Running`'s contract."""

    def __init__(
        self,
        driver: FakeDriver,
        record: LaunchRecord,
        process: FakeProcess,
        inside: FakeGuest,
        cards: FakeCards,
    ) -> None:
        self.fan = Fanout()
        self._driver, self._record, self._process = driver, record, process
        self.inside = inside
        self.cards = cards
        self._end = asyncio.Event()
        self._cleaning: asyncio.Task[None] | None = None
        self._plugged: dict[str, int] = {}

    @property
    def record(self) -> LaunchRecord:
        return self._record

    async def state(self) -> tuple[str, str]:
        return self._enter("state")

    async def pause(self) -> None:
        if self._enter("pause")[0] == "running":
            self._process.update(state="paused", reason="user")
            self.fan.send(DriverEvent("paused"))

    async def resume(self) -> None:
        state, reason = self._enter("resume")
        if reason in _NEEDS_RESET:
            raise QmpFailed(
                f"The guest cannot go on after what stopped it ({reason}).",
                hint="Reset it, or stop it.",
                reason=reason,
            )
        if state == "paused":
            self._process.update(state="running", reason="")
            self.fan.send(DriverEvent("resumed"))

    async def power_button(self) -> None:
        """A fake guest obeys, unless it is paused."""
        state, _reason = self._enter("power_button")
        self.fan.send(DriverEvent("powerdown"))
        if state == "running":
            self._process.end(Exit("guest-shutdown", "The guest switched itself off."))
            self.fan.send(DriverEvent("shutdown", {"guest": True, "reason": "guest-shutdown"}))
            self.ended()

    async def reset(self) -> None:
        """After a first boot by the kernel it ends: the next process starts from the disk."""
        state, reason = self._enter("reset")
        record = self._record
        if record.boot is BootPath.KERNEL and record.spec.boot is BootPath.FIRST_KERNEL:
            self._driver.exit_guest(self._process.guest, "guest-reset", "The guest was reset.")
            return
        self.fan.send(DriverEvent("reset"))
        if state == "paused":
            self._process.update(reason="starting")
        if reason in _NEEDS_RESET:
            self._process.update(state="running", reason="")
            self.fan.send(DriverEvent("resumed"))

    async def kill(self) -> None:
        self._driver.check("kill")
        if self._process.exit is None:
            self._process.end(Exit("killed", "The guest's process was killed (SIGKILL)."))
            self.ended()

    async def screenshot(self) -> bytes:
        self._enter("screenshot")
        if not self._record.spec.display:
            raise InvalidInput("The guest has no display.", field="display")
        return _png()

    async def publish(self, nic: int, port: Publish) -> Publish:
        self._enter("publish")
        self.cards.require(nic)
        real = await reserve(port, {}, privileged=False)
        self._driver.check_port(real)
        self._process.ports = [*self._process.ports, real]
        return real

    async def unpublish(self, nic: int, port: Publish) -> None:
        self._enter("unpublish")
        self.cards.require(nic)
        self._process.ports = [p for p in self._process.ports if not overlap(p, port)]

    async def plug_port(self, name: str, connection: int, *, seen_as: str) -> None:
        self._enter("plug_port")
        await self.unplug_port(name)
        self._plugged[name] = os.dup(connection)

    async def unplug_port(self, name: str) -> None:
        self._enter("unplug_port")
        if name in self._plugged:
            os.close(self._plugged.pop(name))

    async def plug_nic(self, nic: Nic) -> None:
        self._enter("plug_nic")
        self.cards.plug(nic)
        self._process.nics = self.cards.nics.values()

    async def unplug_nic(self, index: int) -> None:
        paused = self._enter("unplug_nic")[0] == "paused"
        there = index in self.cards.nics
        self.cards.unplug(index, paused=paused)
        self._process.nics = self.cards.nics.values()
        if there:
            self.fan.send(DriverEvent("unplugged", {"device": f"nic{index}"}))

    async def move_nic(self, nic: Nic) -> None:
        self._enter("move_nic")
        self.cards.move(nic)
        self._process.nics = self.cards.nics.values()

    async def set_link(self, index: int, *, up: bool) -> None:
        self._enter("set_link")
        self.cards.link(index, up=up)
        self._process.nics = self.cards.nics.values()

    async def folders_lack(self) -> tuple[str, str]:
        self._enter("folders_lack")
        return "", ""

    async def plug_folder(self, name: str, connection: int) -> None:
        self._enter("plug_folder")
        self._plugged[name] = os.dup(connection)

    async def unplug_folder(self, name: str) -> None:
        await self.unplug_port(name)

    def events(self) -> AsyncIterator[DriverEvent]:
        return self.fan.listen()

    async def wait_exit(self) -> Exit:
        await self._end.wait()
        if self._cleaning is not None:  # as with QEMU, its sockets have gone with it
            await asyncio.shield(self._cleaning)
        found = self._process.exit
        assert found is not None  # the event is set after it was written
        return found

    async def detach(self) -> None:
        self._driver.gone(self._process.key)
        self.fan.detach()
        await self.inside.close()

    def ended(self) -> None:
        """Its file says how it ended: tell everybody."""
        found = self._process.exit
        assert found is not None  # the caller wrote it
        while self._plugged:
            os.close(self._plugged.popitem()[1])
        self._driver.gone(self._process.key)
        self._cleaning = asyncio.get_running_loop().create_task(self.inside.close())
        self._end.set()
        self.fan.send(DriverEvent("exit", {"reason": found.reason, "message": found.message}))

    def _enter(self, call: str) -> tuple[str, str]:
        self._driver.check(call)
        if self._process.exit is not None:
            raise NotFound("The guest's process has ended.", pid=self._record.pid)
        return self._process.state


def _check_resources(resources: Resources) -> None:
    for disk in resources.disks:
        for path in disk.chain:
            if not path.exists():
                raise NotFound(f"{path} is not there.", path=str(path))


def _record(guest: Guest, path: BootPath, incarnation: int, pid: int, boot: str) -> LaunchRecord:
    return LaunchRecord(
        incarnation=incarnation,
        argv=("fake", guest.name),
        machine=guest.spec.machine or "fake-1.0",
        cpu=guest.spec.cpu or "fake",
        accelerator="tcg",
        accelerator_reason="Nothing is run.",
        engine="fake 1.0",
        boot=path,
        spec=guest.spec,
        pid=pid,
        pid_start=1,
        boot_id=boot,
        launched_at=time.time(),
    )


def _png() -> bytes:
    """One black pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0\0")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    )
