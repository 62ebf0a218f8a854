"""After the daemon's start: take up every guest that still runs, settle every one that ended."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import NamedTuple

import msgspec

from guesthouse.drivers.base import Exit
from guesthouse.errors import GuesthouseError
from guesthouse.model.guest import Guest
from guesthouse.model.states import LIVE, GuestState
from guesthouse.operations.rooms import Rooms
from guesthouse.operations.running import boot_path, resources, take_up, with_state
from guesthouse.supervisor.following import Supervisor

S = GuestState
log = logging.getLogger(__name__)


class Ended(NamedTuple):
    """A guest that went away while no daemon ran."""

    guest_id: str
    incarnation: int
    end: Exit


async def reattach(rooms: Rooms, supervisor: Supervisor) -> list[Ended]:
    """Before any job is recovered, so that a job finds its guest as it really is.

    Answers those that ended meanwhile, for `Supervisor.settle` once jobs can be submitted.
    """
    had_process = [g for g in rooms.view.guests.values() if g.launch and g.status.pid is not None]
    found = await asyncio.gather(*(_reattach(rooms, supervisor, g) for g in had_process))
    return [ended for ended in found if ended is not None]


async def take_up_found(rooms: Rooms, supervisor: Supervisor, guest: Guest) -> None:
    """As `reattach`, for one guest whose document was recovered."""
    ended = await _reattach(rooms, supervisor, guest)
    if ended is not None:
        supervisor.settle_soon(*ended)


async def _reattach(rooms: Rooms, supervisor: Supervisor, guest: Guest) -> Ended | None:
    assert guest.launch is not None  # the caller chose those that have one
    try:
        found = await rooms.driver.attach(
            guest, await resources(rooms, guest, boot_path(guest, booted=guest.booted))
        )
    except GuesthouseError as error:
        log.warning("guest %s cannot be observed: %s", guest.name, error)
        why = error
        await rooms.documents.guests.update(guest.id, lambda g: _unobserved(g, why))
        return None
    if isinstance(found, Exit):
        return Ended(guest.id, guest.launch.incarnation, found)
    live = take_up(rooms, guest, found)
    supervisor.thaw_soon(guest, live)
    await supervisor.sync_state(guest.id, live)
    return None


def _unobserved(guest: Guest, error: GuesthouseError) -> Guest:
    if guest.state not in LIVE or guest.state is S.UNOBSERVED:
        return guest
    return with_state(guest, S.UNOBSERVED, error.code, error.message)


async def settle_idle(rooms: Rooms) -> None:
    """Guests that claim to be on their way with neither a process nor a job: say so, once."""
    busy = {job.target for job in rooms.view.jobs.values() if not job.ended}
    for guest in tuple(rooms.view.guests.values()):
        stuck = guest.state in LIVE and guest.status.pid is None
        if stuck and rooms.documents.guests.key(guest.id) not in busy:
            await rooms.documents.guests.update(guest.id, _stopped)


def _stopped(guest: Guest) -> Guest:
    status = msgspec.structs.replace(
        guest.status,
        state=S.STOPPED,
        reason="interrupted",
        message="the daemon ended while it was on its way",
        since=time.time(),
    )
    return msgspec.structs.replace(guest, status=status)
