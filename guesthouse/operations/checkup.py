"""Looks at the house itself: its documents, its disks, its guests' processes. Changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import NamedTuple

from guesthouse.errors import GuesthouseError
from guesthouse.host.process import is_alive
from guesthouse.model.checkup import Check, Checkup, Health
from guesthouse.model.guest import Guest
from guesthouse.model.host import HostFacts
from guesthouse.model.states import LIVE, GuestState
from guesthouse.model.units import format_size
from guesthouse.operations.rooms import Rooms
from guesthouse.operations.survey import unknown_copies
from guesthouse.storage.durable import Space
from guesthouse.storage.usage import lineage, tops_of

FULL = 512 << 20
"""Bytes free, below which hardly anything can be done any more."""
NARROW = 5 << 30
NARROW_SHARE = 0.05
"""Of the file system; it is narrow when both this and `NARROW` are not reached."""

_MAKE_ROOM = "guest trash empty; guest image rm IMAGE; guest rm GUEST"


class KeeperFacts(NamedTuple):
    """:ivar processes: how many guests' processes it looks after."""

    pid: int
    processes: int


async def check_up(rooms: Rooms, keeper: Callable[[], Awaitable[KeeperFacts]]) -> Checkup:
    """Everything, in a fixed order. What cannot be looked at is a finding, not an error."""
    found = [
        *_documents(rooms),
        *_database(rooms),
        await _keeper(keeper),
        check_space(await rooms.pool.space(), str(rooms.pool.root)),
        *await asyncio.to_thread(_disks, rooms),
        *await asyncio.to_thread(_guests, rooms),
        *await rooms.clashes.checks(),
    ]
    return Checkup(checks=tuple(found))


def _documents(rooms: Rooms) -> Iterator[Check]:
    view = rooms.view
    for key, why in sorted(view.quarantined.items()):
        yield Check(
            name="documents",
            health=Health.TROUBLE,
            message=f"{key} cannot be read and is set aside; its disks stay untouched: {why}",
            cure="guest doctor --bundle help.tar.gz (and have somebody look at it)",
        )
    if not view.quarantined:
        count = len(view.guests) + len(view.images) + len(view.volumes) + len(view.jobs)
        yield Check(
            name="documents", health=Health.FINE, message=f"All {count} documents can be read."
        )


def _database(rooms: Rooms) -> Iterator[Check]:
    store = rooms.documents.store
    read_only = store.read_only or rooms.view.newer
    unknown = len(unknown_copies(rooms))
    if read_only:
        yield Check(
            name="database",
            health=Health.TROUBLE,
            message=f"It refuses every change. {read_only}",
            cure="Upgrade Guesthouse to the version that wrote it.",
        )
    if unknown:
        what = "1 document lies" if unknown == 1 else f"{unknown} documents lie"
        yield Check(
            name="database",
            health=Health.TROUBLE,
            message=f"{what} beside the disks that the database does not know: it was lost or "
            "replaced.",
            cure="guest recover",
        )
    if not (read_only or unknown):
        yield Check(
            name="database",
            health=Health.FINE,
            message="It takes changes, and knows all that lies beside the disks.",
        )


async def _keeper(ask: Callable[[], Awaitable[KeeperFacts]]) -> Check:
    try:
        keeper = await ask()
    except GuesthouseError as error:
        return Check(
            name="keeper",
            health=Health.TROUBLE,
            message=f"{error.message} Guests run on; how they end cannot be told.",
            cure="guest daemon restart",
        )
    guests = "1 guest" if keeper.processes == 1 else f"{keeper.processes} guests"
    return Check(
        name="keeper",
        health=Health.FINE,
        message=f"Process {keeper.pid} looks after {guests}.",
    )


def check_space(space: Space, folder: str) -> Check:
    """Of the file system that the disks lie on."""
    said = f"{format_size(space.free >> 20 << 20)} of {format_size(space.total >> 20 << 20)} free"
    if space.free < FULL:
        return Check(
            name="space",
            health=Health.TROUBLE,
            message=f"{folder} is full: {said}. Guests that write are paused.",
            cure=_MAKE_ROOM,
        )
    if space.free < min(NARROW, space.total * NARROW_SHARE):
        return Check(
            name="space",
            health=Health.NOTICE,
            message=f"{folder} is getting full: {said}.",
            cure=_MAKE_ROOM,
        )
    return Check(name="space", health=Health.FINE, message=f"{folder}: {said}.")


def _disks(rooms: Rooms) -> list[Check]:
    """Whether each layer's file is there and is what its document says; blocks."""
    volumes = rooms.view.volumes
    broken: dict[str, GuesthouseError] = {}
    for volume in volumes.values():
        try:
            rooms.pool.layers.assert_sound(volume, rooms.pool.layers.existing(volume))
        except GuesthouseError as error:
            broken[volume.id] = error
    found = [
        Check(
            name="disks",
            health=Health.TROUBLE,
            message=f"{error.message} {_users(rooms, id)}",
            cure=error.hint or "Bring the file back from a backup.",
        )
        for id, error in broken.items()
    ]
    if not found:
        files = "the 1 layer is" if len(volumes) == 1 else f"all {len(volumes)} layers are"
        message = f"The files of {files} there and sound." if volumes else "There are none yet."
        found.append(Check(name="disks", health=Health.FINE, message=message))
    return found


def _users(rooms: Rooms, volume: str) -> str:
    names = [
        guest.name
        for guest in rooms.view.guests.values()
        if any(volume in lineage(rooms.view.volumes, top) for top in tops_of(guest))
    ]
    return f"Guests that need it: {', '.join(sorted(names))}." if names else "No guest needs it."


def _guests(rooms: Rooms) -> list[Check]:
    """What running guests suffer from, and what the next start will bring; blocks."""
    facts = rooms.facts()
    guests = sorted(
        (guest for guest in rooms.view.guests.values() if not guest.in_trash),
        key=lambda guest: guest.name,
    )
    found = [check for guest in guests for check in check_guest(guest, facts)]
    if not found:
        count = _alive(guests)
        runs = "1 guest runs" if count == 1 else f"{count} guests run"
        found.append(Check(name="guests", health=Health.FINE, message=f"{runs}; all is well."))
    return found


def check_guest(
    guest: Guest,
    facts: HostFacts,
    *,
    alive: Callable[[int, int | None], bool] = is_alive,
) -> Iterator[Check]:
    """Findings about one guest; none when all is well."""
    name, launch = guest.name, guest.launch
    running = guest.state in LIVE and launch is not None and guest.status.pid is not None
    if running and launch is not None and not alive(launch.pid, launch.pid_start):
        yield Check(
            name="guests",
            health=Health.TROUBLE,
            message=f"{name} is said to be {guest.state.value}, but its process has gone.",
            cure="guest daemon restart (it looks at all guests anew)",
        )
        return
    if guest.state is GuestState.PAUSED and guest.status.reason == "io-error":
        yield Check(
            name="guests",
            health=Health.TROUBLE,
            message=f"{name} is paused since its disk could not be written.",
            cure=f"Make room, then: guest resume {name}",
        )
    if guest.state is GuestState.FAILED:
        why = f": {guest.status.message}" if guest.status.message else "."
        yield Check(
            name="guests",
            health=Health.NOTICE,
            message=f"{name} failed{why}",
            cure=f"guest logs {name}; guest start {name}",
        )
    if facts.qemu is None:
        return
    installed = f"QEMU {facts.qemu.version_text}"
    engine = launch.engine if running and launch is not None else ""
    if engine.startswith("QEMU ") and engine != installed:
        yield Check(
            name="guests",
            health=Health.NOTICE,
            message=f"{name} runs on {engine}; {installed} is installed.",
            cure=f"guest restart {name}",
        )
    machine = guest.spec.machine
    if machine and facts.qemu.machines and machine not in facts.qemu.machines:
        yield Check(
            name="guests",
            health=Health.TROUBLE,
            message=f"{name} needs the machine type {machine}, which {installed} does not have: it "
            "cannot start any more.",
            cure="Install a QEMU that has it, see: qemu-system-x86_64 -machine help",
        )


def _alive(guests: Iterable[Guest]) -> int:
    return sum(guest.state in LIVE for guest in guests)
