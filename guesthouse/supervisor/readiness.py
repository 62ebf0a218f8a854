"""How far a guest has come up: the checks of `guestos.readiness`, asked in this house."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec

from guesthouse.drivers.base import SERIAL_LOG, DriverEvent
from guesthouse.errors import GuesthouseError, NotFound, NotReady
from guesthouse.guestos.readiness import (
    AGENT,
    CHECKS,
    KERNEL,
    NETWORK,
    PROCESS,
    SSH,
    Check,
    Probe,
    covers,
    watch,
)
from guesthouse.model.device import Link
from guesthouse.model.guest import Guest
from guesthouse.operations.live import LiveGuest
from guesthouse.operations.rooms import Rooms

PATIENCE = 86400.0
"""Seconds after which nobody asks any more. Who waits for a guest has a deadline of his own."""


def expected(guest: Guest) -> tuple[Check, ...]:
    """The checks that can come. Of a guest without an agent only its process is known: its kernel
    may never write to the serial console.
    """
    spec = guest.spec
    if not spec.agent:
        return (PROCESS,)
    return CHECKS if spec.ssh_port else (PROCESS, KERNEL, AGENT, NETWORK)


class Readiness:
    """Follows one incarnation until it is ready or gone."""

    def __init__(self, rooms: Rooms, guest: Guest, live: LiveGuest) -> None:
        self.rooms, self.guest, self.live = rooms, guest, live
        self._happened = asyncio.Event()
        self._serial = rooms.folders.guest_state(guest.id) / SERIAL_LOG
        self._serial_before = _size(self._serial)
        # Of this incarnation: a launch clears it, a restart of the daemon finds it again.
        self._before = guest.status.ready
        self._expected = expected(guest)

    async def run(self) -> None:
        left = [probe for probe in self._probes() if probe.check.name not in self._before]
        self._announce(left[0].check.name if left else "", self._before)
        if NETWORK.name in self._before:
            with contextlib.suppress(GuesthouseError):
                await self._network()
        listening = asyncio.create_task(self._listen(self.live.running.events()))
        try:
            await watch(left, self._passed, PATIENCE, guest=self.guest.name)
        except (NotReady, NotFound):
            pass  # it ended, or nobody waits any more; its progress says how far it came
        finally:
            listening.cancel()

    async def _listen(self, events: AsyncIterator[DriverEvent]) -> None:
        async for _ in events:
            self._happened.set()

    async def _event(self) -> None:
        await self._happened.wait()
        self._happened.clear()

    def _probes(self) -> list[Probe]:
        def probe(check: Check, ask: Callable[[], Awaitable[bool]], slowest: float) -> Probe:
            return Probe(check, ask, self._event, slowest)

        probes = [
            probe(PROCESS, self._process, 2.0),
            probe(KERNEL, self._kernel, 0.5),
            probe(AGENT, self._agent, 1.0),
            probe(NETWORK, self._network, 1.0),
            probe(SSH, self._ssh, 2.0),
        ]
        return [one for one in probes if one.check in self._expected]

    async def _process(self) -> bool:
        return (await self.live.running.state())[0] == "running"

    async def _kernel(self) -> bool:
        """It writes to its console, or its agent's port opens: whichever comes first."""
        return _size(self._serial) != self._serial_before or await self._agent()

    async def _agent(self) -> bool:
        await self.live.agent.ping()
        return True

    async def _network(self) -> bool:
        addresses = await self.live.agent.addresses()
        self.live.progress.addresses = tuple(a.ip for a in addresses if not a.link_local)
        guest = self.rooms.view.guests.get(self.guest.id, self.guest)
        return covers(addresses, [nic.mac for nic in guest.spec.nics if nic.link is Link.UP])

    async def _ssh(self) -> bool:
        if self.live.ssh is None:
            return True
        await self.live.ssh.answers(timeout=30.0)
        return True

    async def _passed(self, check: Check) -> None:
        passed = (*self.live.progress.passed, check.name)

        def reached(guest: Guest) -> Guest:
            if guest.launch is None or guest.launch.incarnation != self.live.incarnation:
                return guest
            status = msgspec.structs.replace(guest.status, ready=passed)
            booted = guest.booted or check is AGENT
            return msgspec.structs.replace(guest, status=status, booted=booted)

        await self.rooms.documents.guests.update(self.guest.id, reached)
        self._announce(self._after(check), passed)

    def _after(self, check: Check) -> str:
        following = self._expected[self._expected.index(check) + 1 :]
        return following[0].name if following else ""

    def _announce(self, waiting: str, passed: tuple[str, ...] = ()) -> None:
        hint = next((c.hint for c in CHECKS if c.name == waiting), "")
        self.live.progress.update(passed, waiting, hint.format(guest=self.guest.name))


async def follow_readiness(rooms: Rooms, guest: Guest, live: LiveGuest) -> None:
    """Ask until the guest is ready; ends early when it is gone."""
    work = asyncio.create_task(Readiness(rooms, guest, live).run())
    gone = asyncio.create_task(live.ended.wait())
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        work.cancel()
        gone.cancel()
    if work.done() and not work.cancelled():
        error = work.exception()
        if error is not None and not isinstance(error, GuesthouseError):
            raise error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
