"""Mounts a guest's shares when it comes up, after a reset, and after the daemon's restart."""

from __future__ import annotations

import asyncio
import logging

from guesthouse.guestos.readiness import SSH
from guesthouse.operations.live import LiveGuest
from guesthouse.operations.rooms import Rooms

log = logging.getLogger(__name__)


async def follow_shares(rooms: Rooms, guest_id: str, live: LiveGuest) -> None:
    """As long as the incarnation lives. Those that are mounted already stay as they are."""
    if live.shares is None:
        return
    events = live.running.events()
    while SSH.name not in live.progress.passed:
        changed = asyncio.ensure_future(live.progress.changed())
        ended = asyncio.ensure_future(live.ended.wait())
        await asyncio.wait({changed, ended}, return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()
        ended.cancel()
        if live.ended.is_set():
            return
    await _mount(rooms, guest_id, live)
    async for event in events:
        if event.kind == "exit":
            return
        if event.kind == "reset":
            await _drop(rooms, guest_id, live)
        elif event.kind == "ssh-open":
            await _mount(rooms, guest_id, live)


async def _mount(rooms: Rooms, guest_id: str, live: LiveGuest) -> None:
    guest = rooms.view.guests.get(guest_id)
    if guest is None:
        return
    for name, error in (await live.mount_shares(guest.spec.shares)).items():
        log.warning("guest %s: its share %s is not mounted: %s", guest.name, name, error)


async def _drop(rooms: Rooms, guest_id: str, live: LiveGuest) -> None:
    guest = rooms.view.guests.get(guest_id)
    if guest is None or live.shares is None:
        return
    for share in guest.spec.shares:
        await live.shares.dropped(share)
