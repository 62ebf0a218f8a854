"""Mounts a guest's shares when it comes up, after a reset, after the daemon's restart, and when a
file server has died."""

from __future__ import annotations

import asyncio
import logging

from guesthouse.guestos.readiness import SSH
from guesthouse.model.states import GuestState
from guesthouse.operations.live import LiveGuest
from guesthouse.operations.rooms import Rooms

log = logging.getLogger(__name__)

_ENDING_SECONDS = 1.0
"""A file server also ends because its guest does, which is told a moment later."""
_FIRST_RETRY, _LAST_RETRY = 0.5, 30.0


async def follow_shares(rooms: Rooms, guest_id: str, live: LiveGuest) -> None:
    """As long as the incarnation lives. Those that are mounted already stay as they are."""
    if live.shares is None:
        return
    events = live.running.events()
    while SSH.name not in live.progress.passed:
        if await _ended(live, live.progress.changed()):
            return
    await _mount(rooms, guest_id, live)
    mending = asyncio.create_task(_mend(rooms, guest_id, live), name=f"shares {guest_id}")
    try:
        async for event in events:
            if event.kind == "exit":
                return
            if event.kind == "reset":
                await _after_reset(rooms, guest_id, live)
            elif event.kind == "ssh-open":
                await _mount(rooms, guest_id, live)
    finally:
        mending.cancel()
        await asyncio.gather(mending, return_exceptions=True)


async def _mend(rooms: Rooms, guest_id: str, live: LiveGuest) -> None:
    """Mount again whatever loses its file server: at once, then after ever longer pauses."""
    assert live.shares is not None
    while True:
        lost = await live.shares.lost()
        if await _ended(live, asyncio.sleep(_ENDING_SECONDS)):
            return
        log.warning("guest %s: the file server of its share %s died", guest_id, lost.name)
        pause = _FIRST_RETRY
        while not await _mended(rooms, guest_id, live, lost.name):
            if await _ended(live, asyncio.sleep(pause)):
                return
            pause = min(2 * pause, _LAST_RETRY)


async def _mended(rooms: Rooms, guest_id: str, live: LiveGuest, name: str) -> bool:
    """Whether nothing is left to be done for that share."""
    guest = rooms.view.guests.get(guest_id)
    if guest is None or all(share.name != name for share in guest.spec.shares):
        return True
    if guest.state is not GuestState.RUNNING:
        return False  # one that is paused cannot mount
    await _mount(rooms, guest_id, live)
    return name not in live.share_problems


async def _ended(live: LiveGuest, other: object) -> bool:
    """Wait for `other` or for the end of the incarnation, and tell whether that has come."""
    waits = {
        asyncio.ensure_future(other),  # type: ignore[call-overload]  # awaitables of different kinds
        asyncio.ensure_future(live.ended.wait()),
    }
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return live.ended.is_set()


async def _mount(rooms: Rooms, guest_id: str, live: LiveGuest) -> None:
    guest = rooms.view.guests.get(guest_id)
    if guest is None:
        return
    for name, error in (await live.mount_shares(guest.spec.shares)).items():
        log.warning("guest %s: its share %s is not mounted: %s", guest.name, name, error)


async def _after_reset(rooms: Rooms, guest_id: str, live: LiveGuest) -> None:
    guest = rooms.view.guests.get(guest_id)
    if guest is None or live.shares is None:
        return
    for share in guest.spec.shares:
        await live.shares.after_reset(share)
