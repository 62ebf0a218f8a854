"""Follows each running guest: its events, its readiness, its end.

Event-driven throughout: a guest that does nothing costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from guesthouse.drivers.base import DriverEvent, Exit
from guesthouse.errors import EngineError, GuesthouseError, NoSpace, NotFound
from guesthouse.jobs.runner import JobRunner
from guesthouse.model.guest import Guest
from guesthouse.model.states import GuestState
from guesthouse.operations.lifecycle import SettleParams
from guesthouse.operations.live import LiveGuest
from guesthouse.operations.rooms import Rooms
from guesthouse.operations.running import with_state
from guesthouse.store.documents import GUESTS
from guesthouse.supervisor.clocks import Clocks, follow_clock
from guesthouse.supervisor.readiness import follow_readiness
from guesthouse.supervisor.sharing import follow_shares

S = GuestState
_RETRY_SECONDS = 1.0
log = logging.getLogger(__name__)

PAUSE_MESSAGES = {
    "io-error": "its disk reported an error, most often a full host; it goes on after 'resume'",
    "watchdog": "its watchdog fired",
    "panic": "its kernel panicked",
    "user": "paused",
}


class Supervisor:
    """One task for each incarnation. `add` is what `LiveGuests.on_added` calls."""

    def __init__(self, rooms: Rooms, jobs: JobRunner) -> None:
        self.rooms = rooms
        self.jobs = jobs
        self.clocks = Clocks(rooms)
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, guest: Guest, live: LiveGuest) -> None:
        self._spawn(self._follow(guest.id, live), f"follow {guest.name}")
        self._spawn(follow_readiness(self.rooms, guest, live), f"readiness {guest.name}")
        self._spawn(follow_shares(self.rooms, guest.id, live), f"shares of {guest.name}")
        clock = follow_clock(self.rooms, guest.id, live, partial(self._unlocked, guest.id))
        self._spawn(clock, f"clock of {guest.name}")

    def _spawn(self, work: object, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)  # type: ignore[arg-type]  # any coroutine of ours
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the task %r failed", task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Stop following. Guests are not touched."""
        await self.clocks.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, guest_id: str, live: LiveGuest) -> None:
        async for event in live.running.events():
            if event.kind == "exit":
                break
            try:
                await self._heed(guest_id, live, event)
            except GuesthouseError as error:
                log.warning("guest %s: event %s: %s", guest_id, event.kind, error)
        end = await live.running.wait_exit()
        live.ended.set()
        await self.settle(guest_id, live.incarnation, end)

    async def _heed(self, guest_id: str, live: LiveGuest, event: DriverEvent) -> None:
        if event.kind == "reset" and live.ssh is not None:
            live.ssh.drop()  # its sessions are gone; nobody inside will say so
        if event.kind in {"paused", "resumed", "io-error", "panic", "watchdog"}:
            await self._record(guest_id, live)

    async def _record(self, guest_id: str, live: LiveGuest) -> None:
        """Write what the engine says now, tried again while the disk is full: most often that is
        what stopped the guest."""
        end = asyncio.ensure_future(live.running.wait_exit())
        try:
            while not end.done():
                await self._unlocked(guest_id)
                try:
                    await self.sync_state(guest_id, live)
                    return
                except NoSpace as error:
                    log.warning("guest %s: its state is not recorded: %s", guest_id, error)
                await asyncio.wait({end}, timeout=_RETRY_SECONDS)
        finally:
            end.cancel()

    async def _unlocked(self, guest_id: str) -> None:
        """Wait for the job that holds the guest: it writes the state that it brings about."""
        while (holder := self.jobs.holder(GUESTS.key(guest_id))) is not None:
            await self.jobs.wait(holder)

    async def sync_state(self, guest_id: str, live: LiveGuest) -> None:
        """Write what the engine says: running, or paused and why. Only on a change."""
        try:
            state, reason = await live.running.state()
        except (NotFound, EngineError):
            return  # it ended meanwhile; the end is recorded by `settle`
        then = S.PAUSED if state == "paused" else S.RUNNING

        def synced(guest: Guest) -> Guest:
            if guest.launch is None or guest.launch.incarnation != live.incarnation:
                return guest
            if guest.state is then or guest.state not in {S.RUNNING, S.PAUSED, S.UNOBSERVED}:
                return guest
            message = PAUSE_MESSAGES.get(reason, reason) if then is S.PAUSED else "running"
            return with_state(guest, then, reason, message)

        try:
            await self.rooms.documents.guests.update(guest_id, synced)
        except NoSpace:
            if (guest := self.rooms.view.guests.get(guest_id)) is not None:
                live.unrecorded = synced(guest).status
            raise
        live.unrecorded = None

    def thaw_soon(self, guest: Guest, live: LiveGuest) -> None:
        """A daemon that died may have left the guest's file systems frozen."""
        if "agent" in guest.status.ready:
            self._spawn(self._thaw(guest, live), f"thaw {guest.name}")

    async def _thaw(self, guest: Guest, live: LiveGuest) -> None:
        try:
            if await live.agent.is_frozen():
                log.warning("guest %s was left frozen; thawing it", guest.name)
                await live.agent.thaw()
        except GuesthouseError as error:
            log.info(
                "guest %s: its agent does not tell whether it is frozen: %s", guest.name, error
            )

    def settle_soon(self, guest_id: str, incarnation: int, end: Exit) -> asyncio.Task[None]:
        """As `settle`, without waiting for the jobs that hold the guest."""
        return self._spawn(self.settle(guest_id, incarnation, end), f"settle {guest_id}")

    async def settle(self, guest_id: str, incarnation: int, end: Exit) -> None:
        """Have an end recorded by a job, unless whoever holds the guest now records it.

        As long as the disk is full it waits: nobody else would record that end.
        """
        while True:
            try:
                await self._settle(guest_id, incarnation, end)
                return
            except NoSpace as error:
                log.warning("guest %s: its end is not recorded: %s", guest_id, error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _settle(self, guest_id: str, incarnation: int, end: Exit) -> None:
        await self._unlocked(guest_id)
        await self.rooms.view.wait_for(self.rooms.documents.store.revision)
        guest = self.rooms.view.guests.get(guest_id)
        if guest is None or guest.status.pid is None or guest.launch is None:
            return
        if guest.launch.incarnation != incarnation:
            return
        await self.jobs.submit(
            "guest.settle",
            SettleParams(
                guest=guest_id, incarnation=incarnation, reason=end.reason, message=end.message
            ),
            target=GUESTS.key(guest_id),
            target_name=guest.name,
            requester="supervisor",
        )
