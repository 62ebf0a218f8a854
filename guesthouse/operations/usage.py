"""What guests take of their host, measured when somebody asks."""

from __future__ import annotations

import asyncio

from guesthouse.errors import NotFound
from guesthouse.host.measuring import measure
from guesthouse.model.device import Disk
from guesthouse.model.guest import Guest
from guesthouse.model.states import LIVE
from guesthouse.model.usage import DiskUsage, GuestUsage, ProcessUsage
from guesthouse.operations.rooms import Rooms


async def usage_of(rooms: Rooms, guest: Guest) -> GuestUsage:
    """One guest, running or not, with its disks."""
    process = await asyncio.to_thread(_process, guest)
    return _usage(guest, process, tuple([await _disk(rooms, disk) for disk in guest.spec.disks]))


async def usage_of_running(rooms: Rooms) -> list[GuestUsage]:
    """All guests that have a process, sorted by name, without their disks."""
    guests = sorted(
        (one for one in rooms.view.guests.values() if one.state in LIVE), key=lambda one: one.name
    )
    processes = await asyncio.to_thread(lambda: [_process(guest) for guest in guests])
    pairs = zip(guests, processes, strict=True)
    return [_usage(guest, process) for guest, process in pairs if process is not None]


def _usage(
    guest: Guest, process: ProcessUsage | None, disks: tuple[DiskUsage, ...] = ()
) -> GuestUsage:
    """What a running guest was given may differ from what it is to get at its next start."""
    spec = guest.launch.spec if guest.launch and process else guest.spec
    return GuestUsage(
        id=guest.id,
        name=guest.name,
        state=guest.state,
        cpus=spec.cpus,
        memory=spec.memory,
        process=process,
        disks=disks,
    )


def _process(guest: Guest) -> ProcessUsage | None:
    if guest.launch is None or guest.status.pid is None:
        return None
    try:
        return measure(guest.launch.pid, guest.launch.pid_start)
    except NotFound:
        return None


async def _disk(rooms: Rooms, disk: Disk) -> DiskUsage:
    volume = rooms.view.volumes.get(disk.volume)
    try:
        used = None if volume is None else await rooms.pool.usage(volume)
    except NotFound:
        used = None
    return DiskUsage(name=disk.name, size=disk.size, used=used)
