"""Guests' clocks, after they stood still: a pause that ended, or a host that slept.

A full disk pauses a guest as well, so that is a pause like any other here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from guesthouse.host.clock import ClockWatch
from guesthouse.model.states import GuestState
from guesthouse.operations.clocks import step_guest_clock
from guesthouse.operations.live import LiveGuest
from guesthouse.operations.rooms import Rooms

log = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds for a guest's agent to answer; one that just woke with its host may be slow."""


async def follow_clock(
    rooms: Rooms, guest_id: str, live: LiveGuest, unlocked: Callable[[], Awaitable[None]]
) -> None:
    """As long as the incarnation lives.

    :param unlocked: waits for the job that holds the guest: a resume looks at the clock itself.
    """
    async for event in live.running.events():
        if event.kind == "exit":
            return
        if event.kind == "resumed":
            await unlocked()
            await _step(rooms, guest_id, live)


async def _step(rooms: Rooms, guest_id: str, live: LiveGuest) -> None:
    guest = rooms.view.guests.get(guest_id)
    # One that is paused cannot answer; its clock is looked at when it goes on.
    if guest is not None and guest.state is GuestState.RUNNING:
        await step_guest_clock(guest.name, live, timeout=PATIENCE)


class Clocks:
    """Sets the clocks of all running guests when the host's has jumped."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._watch: ClockWatch | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        try:
            self._watch = ClockWatch(self.jumped)
        except OSError as error:
            log.warning("guests' clocks are not set after this host slept: %s", error)

    def jumped(self, slept: float) -> None:
        """The host's clock jumped. :param slept: seconds that the host slept just now."""
        why = f"this host slept for {slept:.0f} s" if slept else "this host's clock was set"
        log.info("%s; looking at the clocks of its guests", why)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._step_all(), name="clocks of guests")

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _step_all(self) -> None:
        await asyncio.gather(
            *(_step(self._rooms, live.guest_id, live) for live in self._rooms.live)
        )
