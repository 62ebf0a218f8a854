"""Start, stop, pause and their kin."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar, TypeVar

from guesthouse.drivers.base import Exit, Running
from guesthouse.errors import (
    Cancelled,
    Conflict,
    EngineError,
    GuesthouseError,
    LaunchFailed,
    NotFound,
)
from guesthouse.jobs.context import JobContext
from guesthouse.jobs.registry import Operation
from guesthouse.model.document import Noun
from guesthouse.model.guest import Guest
from guesthouse.model.states import LIVE, GuestState, require_state
from guesthouse.operations.clocks import step_guest_clock
from guesthouse.operations.live import LiveGuest
from guesthouse.operations.rooms import Rooms
from guesthouse.operations.running import end_status, exited, launch_guest, with_state
from guesthouse.store.documents import GUESTS

S = GuestState
STARTABLE = frozenset({S.STOPPED, S.FAILED})
STOPPABLE = LIVE
_ENDING_SECONDS = 10.0
"""What it takes at most to learn how a process ended that is ending now."""
CLOCK_SECONDS = 5.0
"""That a resume waits for the guest's clock. The supervisor then tries on."""
HOST_SHUTDOWN = "host-shutdown"
"""Reason of a guest that was stopped because its host went down."""


class GuestParams(Noun, kw_only=True, frozen=True):
    guest: str


G = TypeVar("G", bound=GuestParams)


class GuestOperation(Operation[G]):
    """An operation on one guest, which it locks."""

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms

    def locks(self, params: G) -> Sequence[str]:
        return (GUESTS.key(params.guest),)


class StartParams(GuestParams, kw_only=True, frozen=True):
    paused: bool = False
    wait_ready: bool = False
    ready_timeout: float = 300.0


RUNS_ALREADY = {S.RUNNING: "It runs already. To start it anew: guest restart {name}"}


class Start(GuestOperation[StartParams]):
    kind = "guest.start"
    Params = StartParams

    async def run(self, ctx: JobContext, params: StartParams) -> None:
        guest = await self.rooms.guest(params.guest)
        if not ctx.resumed:
            require_state(guest.name, guest.state, STARTABLE, verb="start it", cures=RUNS_ALREADY)
        await launch_guest(self.rooms, ctx, guest, paused=params.paused)
        if params.wait_ready and not params.paused:
            await wait_ready(self.rooms, ctx, guest, params.ready_timeout)


async def wait_ready(
    rooms: Rooms, ctx: JobContext, guest: Guest, timeout: float, *, start: float = 0.0
) -> None:
    """Wait for the readiness checks, with progress. Nothing is undone when they do not come.

    :raise NotReady: :raise Cancelled: the guest runs on either way, as it does when a shared
        folder cannot be mounted, which raises what `GuestShares.mount` does.
    """
    ctx.keep()
    live = rooms.live.get(guest.id)
    if live is None:
        raise LaunchFailed(
            f"Guest {guest.name!r} ended at once.", hint=f"See why: guest logs {guest.name}"
        )

    def report(waiting: str) -> None:
        done = len(live.progress.passed)
        ctx.progress(start + (1 - start) * done / 5, f"waiting for {waiting or 'the guest'}")

    try:
        await live.wait_ready(guest.name, timeout, report)
        if guest.spec.shares:
            ctx.progress(None, "mounting its shared folders")
        for problem in (await live.mount_shares(guest.spec.shares)).values():
            raise problem
    except asyncio.CancelledError:
        if not ctx.cancelled.is_set():
            raise  # the daemon stops
        raise Cancelled(
            f"Waiting for guest {guest.name!r} was cancelled. The guest runs on.",
            hint=f"See how far it is: guest info {guest.name}; end it: guest stop {guest.name}",
            guest=guest.name,
        ) from None


class StopParams(GuestParams, kw_only=True, frozen=True):
    """:ivar timeout: seconds to ask politely before the process is killed.

    :ivar with_host: the host goes down, and all guests with it.
    """

    force: bool = False
    timeout: float = 60.0
    with_host: bool = False

    @property
    def cause(self) -> str:
        """Reason of the status that tells of it."""
        return HOST_SHUTDOWN if self.with_host else "user"

    @property
    def by(self) -> str:
        return "with its host" if self.with_host else "by the user"


class Stop(GuestOperation[StopParams]):
    """Ask politely (agent, then the power button), wait, then kill, and say which it was."""

    kind = "guest.stop"
    Params = StopParams

    async def run(self, ctx: JobContext, params: StopParams) -> dict[str, str]:
        guest = await self.rooms.guest(params.guest)
        if guest.state is S.STOPPED:
            return {"how": "it was not running"}
        require_state(guest.name, guest.state, STOPPABLE | {S.FAILED}, verb="stop it")
        return {"how": await stop_guest(self.rooms, ctx, guest, params)}


async def stop_guest(rooms: Rooms, ctx: JobContext, guest: Guest, params: StopParams) -> str:
    """Bring a guest down. Answers how it went, as a phrase for people."""
    live = rooms.live.get(guest.id)
    if live is None:
        return await _stop_unfollowed(rooms, guest, params)
    await ctx.step("stop")
    how, reason = "", "killed"
    if not params.force:
        ctx.undo(lambda: _not_stopped(rooms, guest.id))
        await rooms.documents.guests.update(
            guest.id, lambda g: with_state(g, S.STOPPING, params.cause, "asked to power off")
        )
        how, reason = await _asked(rooms, ctx, guest, live, params.timeout)
    if not how:
        ctx.progress(0.9, "killing it")
        await live.running.kill()
        how = "killed as asked" if params.force else f"killed after {params.timeout:.0f} s"
        reason = "killed"
    if params.with_host:
        reason = params.cause
    await exited(rooms, guest.id, live.incarnation)

    def stopped(current: Guest) -> Guest:
        return end_status(current, S.STOPPED, reason, f"stopped {params.by}: {how}")

    await ctx.insist(lambda: rooms.documents.guests.update(guest.id, stopped))
    return how


async def _asked(
    rooms: Rooms, ctx: JobContext, guest: Guest, live: LiveGuest, timeout: float
) -> tuple[str, str]:
    """Ask it to power off; answers how it ended and the reason, both empty if it goes on."""
    try:
        if await _is_paused(live.running):
            await live.running.resume()  # a paused guest cannot hear that it shall power off
        return await _ask(ctx, rooms, guest, timeout), "guest-shutdown"
    except (NotFound, EngineError):
        # Somebody else may have ended it just then: that is what was wanted, told as it was.
        done, _ = await asyncio.wait(
            {end := asyncio.ensure_future(live.running.wait_exit())}, timeout=_ENDING_SECONDS
        )
        if not done:
            end.cancel()
            raise
        return "it ended by another hand", end.result().reason


async def _stop_unfollowed(rooms: Rooms, guest: Guest, params: StopParams) -> str:
    """A guest that ended a moment ago, or whose process could not be taken up: it may live on.

    :raise Conflict: it does, nobody can ask it to power off, and it shall not be killed.
    """
    if not (params.force or params.with_host) and await rooms.driver.find(guest) is not None:
        raise Conflict(
            f"Guest {guest.name!r} runs, but cannot be asked to power off:"
            f" {guest.status.message or 'its process is not followed'}",
            hint=f"Power it off from inside, or kill it: guest stop --force {guest.name}",
            guest=guest.name,
            state=guest.state.value,
        )
    killed = await rooms.driver.end(guest)
    how = "killed: it could not be asked" if killed else "it had ended already"
    reason = params.cause if params.with_host or not killed else "killed"
    await rooms.documents.guests.update(
        guest.id, lambda g: end_status(g, S.STOPPED, reason, f"stopped {params.by}: {how}")
    )
    return how


async def _is_paused(running: Running) -> bool:
    return (await running.state())[0] == "paused"


async def _not_stopped(rooms: Rooms, guest_id: str) -> None:
    """A stop was called off: the guest goes on, unless it obeyed meanwhile (see `Settle`)."""

    live = rooms.live.get(guest_id)
    if live is None:
        return
    state = S.RUNNING
    with suppress(NotFound, EngineError):
        state = S.PAUSED if await _is_paused(live.running) else S.RUNNING

    def back(guest: Guest) -> Guest:
        if guest.state is not S.STOPPING or rooms.live.get(guest_id) is None:
            return guest
        return with_state(guest, state, "user", "its stop was called off")

    await rooms.documents.guests.update(guest_id, back)


async def _ask(ctx: JobContext, rooms: Rooms, guest: Guest, timeout: float) -> str:
    """Ask the agent, then press the power button every few seconds. Empty when it did not obey."""
    live = rooms.live.require(guest, verb="stop it")
    gone = asyncio.create_task(live.running.wait_exit())
    ended = time.monotonic() + timeout
    way = "powered off by its power button"
    try:
        if "agent" in live.progress.passed:
            ctx.progress(0.1, "asking its agent to power off")
            try:
                await live.agent.shutdown("powerdown")
                way = "powered off by its agent"
            except GuesthouseError as error:
                ctx.log(f"the agent did not take it: {error.message}")
        while (left := ended - time.monotonic()) > 0:
            if way.endswith("button"):
                ctx.progress(0.3, "pressing the power button")
                await live.running.power_button()
            done, _ = await asyncio.wait({gone}, timeout=min(left, 10.0))
            if done:
                return way
            # Some guests drop the first press while they boot; an agent may have lied.
            way = "powered off by its power button"
        return ""
    finally:
        gone.cancel()


class RestartParams(StopParams, kw_only=True, frozen=True):
    wait_ready: bool = False
    ready_timeout: float = 300.0


class Restart(GuestOperation[RestartParams]):
    """Stop and start under one lock; pending changes take effect."""

    kind = "guest.restart"
    Params = RestartParams

    async def run(self, ctx: JobContext, params: RestartParams) -> dict[str, str]:
        guest = await self.rooms.guest(params.guest)
        how = "it was not running"
        if guest.state in STOPPABLE and not ctx.has_step("launch"):
            how = await stop_guest(self.rooms, ctx, guest, params)
            guest = await self.rooms.guest(params.guest)
        if not ctx.resumed:
            require_state(guest.name, guest.state, STARTABLE, verb="restart it")
        await launch_guest(self.rooms, ctx, guest)
        if params.wait_ready:
            await wait_ready(self.rooms, ctx, guest, params.ready_timeout)
        return {"how": how}


class Press(GuestOperation[GuestParams]):
    """One thing done to a living guest at once: a button, or its CPUs stopped or let go."""

    Params = GuestParams
    may_cancel = False
    verb: ClassVar[str]
    allowed: ClassVar[frozenset[GuestState]] = LIVE
    ends_it: ClassVar[bool] = False
    """Whether its process may end by it."""

    async def run(self, ctx: JobContext, params: GuestParams) -> None:
        guest = await self.rooms.guest(params.guest)
        if self.ends_it and ctx.has_step("press") and self.rooms.live.get(guest.id) is None:
            return  # pressed before the daemon died, and heeded
        require_state(guest.name, guest.state, self.allowed, verb=self.verb)
        live = self.rooms.live.require(guest, verb=self.verb)
        await ctx.step("press")
        await self.press(live.running)
        await ctx.insist(lambda: self.rooms.documents.guests.update(guest.id, self.pressed))
        live.unrecorded = None  # what the full disk did not take is out of date now
        await self.afterwards(ctx, guest, live)

    @abstractmethod
    async def press(self, running: Running) -> None: ...

    async def afterwards(self, ctx: JobContext, guest: Guest, live: LiveGuest) -> None:
        """What may fail without the button being pressed in vain."""

    def pressed(self, guest: Guest) -> Guest:
        """The guest's document afterwards; the same where the supervisor tells what comes of it."""
        return guest


class Pause(Press):
    kind = "guest.pause"
    verb = "pause it"
    allowed = frozenset({S.RUNNING, S.PAUSED})

    async def press(self, running: Running) -> None:
        await running.pause()

    def pressed(self, guest: Guest) -> Guest:
        return with_state(guest, S.PAUSED, "user", "paused by the user")


class Resume(Press):
    kind = "guest.resume"
    verb = "resume it"
    allowed = frozenset({S.RUNNING, S.PAUSED})

    async def press(self, running: Running) -> None:
        await running.resume()

    def pressed(self, guest: Guest) -> Guest:
        return with_state(guest, S.RUNNING, "user", "resumed by the user")

    async def afterwards(self, ctx: JobContext, guest: Guest, live: LiveGuest) -> None:
        if told := await step_guest_clock(guest.name, live, timeout=CLOCK_SECONDS):
            ctx.log(told)


class Reset(Press):
    """The reset button: the guest's memory is lost, its process stays."""

    kind = "guest.reset"
    verb = "reset it"
    ends_it = True

    async def press(self, running: Running) -> None:
        await running.reset()


class PowerButton(Press):
    """Press the power button once and leave the rest to the guest."""

    kind = "guest.power-button"
    verb = "press its power button"
    ends_it = True

    async def press(self, running: Running) -> None:
        await running.power_button()


class SettleParams(GuestParams, kw_only=True, frozen=True):
    incarnation: int
    reason: str
    message: str


class Settle(GuestOperation[SettleParams]):
    """A guest's process ended by itself: record why; after a reboot, start it again.

    It is a job so that it waits for whoever holds the guest: a stop that is under way records the
    end itself, and then nothing is left to do here.
    """

    kind = "guest.settle"
    Params = SettleParams
    may_cancel = False

    async def run(self, ctx: JobContext, params: SettleParams) -> None:
        found = await self.rooms.documents.guests.get(params.guest)
        if found is None:
            return  # it was removed meanwhile, process and all
        guest = found.doc
        again = ctx.has_step("launch")
        current = guest.launch is not None and guest.launch.incarnation == params.incarnation
        if not again and (not current or guest.state not in LIVE):
            return
        await exited(self.rooms, guest.id, params.incarnation)
        if params.reason == "guest-reset":
            # The guest rebooted out of a direct kernel boot: its own boot loader takes over now.
            ctx.undo(lambda: self._record(ctx, guest.id, REBOOT_FAILED))
            await launch_guest(self.rooms, ctx, guest, booted=True)
            return
        await self._record(ctx, guest.id, Exit(params.reason, params.message))

    async def _record(self, ctx: JobContext, guest_id: str, end: Exit) -> None:
        """Unless something else already wrote how it ended."""
        await ctx.insist(
            lambda: self.rooms.documents.guests.update(
                guest_id, lambda g: settled(g, end) if g.state in LIVE else g
            )
        )


REBOOT_FAILED = Exit("reboot-failed", "it rebooted, and its start afterwards failed")
GOOD_ENDS = frozenset(
    {"guest-shutdown", "reboot-failed", "quit", "killed", "host-rebooted", "unknown"}
)


def settled(guest: Guest, end: Exit) -> Guest:
    """The status after an end that nobody asked for. Panics and crashes are failures."""
    state = S.STOPPED if end.reason in GOOD_ENDS else S.FAILED
    return end_status(guest, state, end.reason, end.message)
