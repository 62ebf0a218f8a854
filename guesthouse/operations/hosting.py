"""What happens to guests when their host comes up and goes down: two jobs, and who is in them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from itertools import groupby

from guesthouse.errors import DeadlineExceeded, GuesthouseError, NotFound
from guesthouse.jobs.context import JobContext
from guesthouse.jobs.registry import Operation
from guesthouse.model.document import Noun
from guesthouse.model.guest import Autostart, Guest, ShutdownAction
from guesthouse.model.host import HostRecord
from guesthouse.model.ids import new_id
from guesthouse.model.job import Job
from guesthouse.model.states import LIVE, GuestState
from guesthouse.operations.lifecycle import HOST_SHUTDOWN, StartParams, StopParams
from guesthouse.operations.rooms import Rooms
from guesthouse.store.documents import GUESTS, CollectionKind

log = logging.getLogger(__name__)

HOSTS = CollectionKind("host", "hosts/", HostRecord)
THIS_HOST = "local"
"""Id of the record of the host that a house of one host is on."""
HOST_LOCK = HOSTS.key(THIS_HOST)

GRACE = 30.0
"""Seconds beyond a guest's own time-out: for the agent's last word, the kill and the record."""
GOING_DOWN = "The host goes down."
PATIENCE = 10.0
"""Seconds that a job at work on a guest may take to end by itself when the host goes down."""


class StartGuestsParams(Noun, kw_only=True, frozen=True):
    """:ivar boot_id: the boot of the host after which they start.

    :ivar ran: ids of the guests that ran when the host went down before.
    """

    boot_id: str
    ran: tuple[str, ...] = ()


class StartGuests(Operation[StartGuestsParams]):
    """After a boot of the host: start the guests that want it, one after the other."""

    kind = "host.start-guests"
    Params = StartGuestsParams

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms

    def locks(self, params: StartGuestsParams) -> Sequence[str]:
        return (HOST_LOCK,)

    async def run(self, ctx: JobContext, params: StartGuestsParams) -> dict[str, object]:
        boot = self.rooms.facts().boot_id
        if boot != params.boot_id:
            return {"skipped": "the host was restarted again"}
        wanted = wants_start(self.rooms.view.guests.values(), params.ran)
        plan = {} if ctx.has_step("start") else {guest.id: new_id for guest in wanted}
        jobs = await ctx.step("start", **plan)
        started: list[str] = []
        failed: dict[str, str] = {}
        wait = 0.0
        for at, (guest_id, job_id) in enumerate(jobs.items()):
            guest = self.rooms.view.guests.get(guest_id)
            known = await self.rooms.documents.jobs.get(job_id) is not None
            if guest is None or (not known and _runs(guest, boot)):
                continue
            if not known and wait:
                ctx.progress(at / len(jobs), f"{guest.name} in {wait:.0f} s")
                await asyncio.sleep(wait)
            since = time.time()
            try:
                job = await self._start(ctx, guest, job_id, at, len(jobs))
            except GuesthouseError as error:  # it does not keep the others from starting
                failed[guest.name] = error.message
                log.warning("autostart of %s: %s", guest.name, error)
            else:
                started.append(guest.name)
                since = job.ended_at or since
            delay = guest.spec.autostart_delay
            # A restart of the daemon begins no delay anew; nor does a clock that jumps prolong one.
            wait = min(max(since + delay - time.time(), 0.0), delay)
        return {"started": started, "failed": failed}

    async def _start(self, ctx: JobContext, guest: Guest, job_id: str, at: int, of: int) -> Job:
        ctx.progress(at / of, f"starting {guest.name}")
        await ctx.submit(
            "guest.start",
            StartParams(guest=guest.id),
            target=GUESTS.key(guest.id),
            target_name=guest.name,
            job_id=job_id,
        )
        return await ctx.join(job_id, span=(at / of, (at + 1) / of))


def wants_start(guests: Iterable[Guest], ran: Iterable[str]) -> list[Guest]:
    """Those to start after a boot, in order: by their number, then by name.

    :param ran: ids of those that ran before it.
    """
    before = frozenset(ran)
    chosen = [
        guest
        for guest in guests
        if not guest.in_trash
        and (
            guest.spec.autostart is Autostart.ON
            or (guest.spec.autostart is Autostart.LAST and guest.id in before)
        )
    ]
    return sorted(chosen, key=lambda guest: (guest.spec.autostart_order, guest.name))


def ran_before(guests: Iterable[Guest], boot_id: str) -> list[str]:
    """Ids of the guests that ran when the host of that boot went down.

    Asked before anybody records that they ended. One that a user was stopping did not run.
    """
    return [
        guest.id
        for guest in guests
        if guest.launch is not None and guest.launch.boot_id == boot_id and _went_with_host(guest)
    ]


def _went_with_host(guest: Guest) -> bool:
    if guest.status.reason == HOST_SHUTDOWN:
        return True
    return guest.status.pid is not None and guest.state in LIVE - {GuestState.STOPPING}


def _runs(guest: Guest, boot_id: str) -> bool:
    """Whether it has a process now; one of an earlier boot is about to be recorded as gone."""
    now = guest.launch is not None and guest.launch.boot_id == boot_id
    return now and guest.state in LIVE


class StopGuestsParams(Noun, kw_only=True, frozen=True):
    """As `model.reports.StopGuestsRequest`. :ivar boot_id: the boot of the host that shall end."""

    boot_id: str
    action: ShutdownAction | None = None
    timeout: float | None = None


class StopGuests(Operation[StopGuestsParams]):
    """The host goes down: stop all guests, the last in order first, equal ones together."""

    kind = "host.stop-guests"
    Params = StopGuestsParams

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms

    def locks(self, params: StopGuestsParams) -> Sequence[str]:
        return (HOST_LOCK,)

    async def run(self, ctx: JobContext, params: StopGuestsParams) -> dict[str, object]:
        if params.boot_id != self.rooms.facts().boot_id:
            # The host went down before this was through. What runs now was started since.
            return {"skipped": "the host was restarted meanwhile"}
        wanted, left = self._wanted(params)
        plan = {} if ctx.has_step("stop") else {guest.id: new_id for guest in wanted}
        jobs = await ctx.step("stop", **plan)
        guests = [g for guest in jobs if (g := self.rooms.view.guests.get(guest)) is not None]
        stopped: dict[str, str] = {}
        failed: dict[str, str] = {}
        for at, group in enumerate(groups := stop_groups(guests)):
            ctx.progress(at / len(groups), f"stopping {', '.join(g.name for g in group)}")
            stops = (self._stop(ctx, params, guest, jobs[guest.id]) for guest in group)
            ends = await asyncio.gather(*stops)
            for guest, end in zip(group, ends, strict=True):
                if isinstance(end, GuesthouseError):
                    failed[guest.name] = end.message
                    log.warning("guest %s did not stop: %s", guest.name, end)
                else:
                    stopped[guest.name] = end
        return {"stopped": stopped, "failed": failed, "left": [guest.name for guest in left]}

    def _wanted(self, params: StopGuestsParams) -> tuple[list[Guest], list[Guest]]:
        """Those to stop, and those that are left to their fate."""
        alive = [guest for guest in self.rooms.view.guests.values() if guest.state in LIVE]
        left = [guest for guest in alive if _action(params, guest) is ShutdownAction.LEAVE]
        return [guest for guest in alive if guest not in left], left

    async def _stop(
        self, ctx: JobContext, params: StopGuestsParams, guest: Guest, job_id: str
    ) -> str | GuesthouseError:
        """How it was stopped, or why not."""
        key = GUESTS.key(guest.id)
        force = _action(params, guest) is ShutdownAction.KILL
        timeout = guest.spec.shutdown_timeout if params.timeout is None else params.timeout
        try:
            if force:
                await _free(ctx, key, job_id)
            await ctx.submit(
                "guest.stop",
                StopParams(guest=guest.id, force=force, timeout=timeout, with_host=True),
                target=key,
                target_name=guest.name,
                job_id=job_id,
                urgent=True,
            )
            ending = asyncio.create_task(ctx.join(job_id))
            try:
                done, _ = await asyncio.wait({ending}, timeout=PATIENCE)
                if not done:
                    await _free(ctx, key, job_id)
                    done, _ = await asyncio.wait({ending}, timeout=timeout + GRACE)
            finally:
                ending.cancel()
                await asyncio.gather(ending, return_exceptions=True)
            if not done:
                raise DeadlineExceeded(f"Guest {guest.name!r} does not end.")
            return str((ending.result().result or {}).get("how", "stopped"))
        except NotFound:
            return "it is gone: what was launching it was interrupted"
        except GuesthouseError as error:
            return error


async def _free(ctx: JobContext, key: str, job_id: str) -> None:
    """Interrupt the job that is at work on a guest, unless it is the one of that id."""
    holder = ctx.holder(key)
    if holder is not None and holder != job_id:
        await ctx.interrupt(holder, GOING_DOWN)


def stop_groups(guests: Iterable[Guest]) -> list[list[Guest]]:
    """The reverse of the order in which they start. Those of one group go together."""

    def order(guest: Guest) -> int:
        return guest.spec.autostart_order

    chosen = sorted(guests, key=lambda guest: (-order(guest), guest.name))
    return [list(group) for _, group in groupby(chosen, key=order)]


def _action(params: StopGuestsParams, guest: Guest) -> ShutdownAction:
    return params.action or guest.spec.shutdown_action
