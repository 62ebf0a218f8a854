"""What an operation sees of its job while it runs: journal, undo, progress, locks, other jobs."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, TypeVar

import msgspec

from guesthouse.errors import Cancelled, Internal, Interrupted, NoSpace, Unavailable
from guesthouse.jobs.locks import Locks
from guesthouse.jobs.problems import as_error
from guesthouse.jobs.record import RETRY_FIRST, RETRY_MOST, JobRecord, Stopping
from guesthouse.jobs.waiting import take_locks
from guesthouse.model.document import Noun
from guesthouse.model.job import Job, JobProgress, Step
from guesthouse.store.contract import Check, Delete, Op, Put

if TYPE_CHECKING:
    from guesthouse.jobs.runner import JobRunner

_LOG = logging.getLogger(__name__)

Undo = Callable[[], Awaitable[object]]
FinalOps = Callable[[], Awaitable[Sequence[Op]]]
Creates = str | Callable[[], str]
T = TypeVar("T")


class JobContext:
    def __init__(
        self, record: JobRecord, locks: Locks, runner: JobRunner, *, lock_deadline: float
    ) -> None:
        self._record = record
        self._locks = locks
        self._runner = runner
        self._lock_deadline = lock_deadline
        self._undos = AsyncExitStack()
        self._final: list[Op | FinalOps] = []
        self._resumed = bool(record.job.steps) or record.job.attempts > 1
        self._taken: set[str] = set()
        self._abandoned = False

    @property
    def job(self) -> Job:
        """The job's document as it is now."""
        return self._record.job

    @property
    def cancelled(self) -> asyncio.Event:
        """Set when the job shall not go on. Its task is cancelled as well."""
        return self._record.cancelled

    @property
    def resumed(self) -> bool:
        """Whether an earlier attempt was interrupted, so that traces of it may exist."""
        return self._resumed

    def has_step(self, name: str) -> bool:
        """Whether the journal has that step, from this attempt or an earlier one."""
        return any(step.name == name for step in self.job.steps)

    async def step(self, name: str, /, **creates: Creates) -> dict[str, str]:
        """Journal a step before it acts: what it will create is durable when this returns.

        :param creates: ids or paths by name, or functions that make them.
        :return: these ids; when an earlier attempt journaled the step, the ids recorded then, so
            that the operation looks for what exists instead of making a second one.
        :raise Cancelled: the step is new, and the job shall not go on.
        :raise Interrupted: the step is new, and the job was interrupted too often to go on.
        :raise NoSpace: the journal cannot be written; nothing may be done.
        """
        if name in self._taken:
            raise Internal(f"Step {name!r} stands twice in one run of {self.job.kind}.")
        self._taken.add(name)
        recorded = next((step for step in self.job.steps if step.name == name), None)
        if recorded is None:
            self._check_may_go_on(name)
        known = dict(recorded.creates) if recorded else {}
        ids = known | {
            key: value if isinstance(value, str) else value()
            for key, value in creates.items()
            if key not in known
        }
        if recorded is None or ids != known:
            # After an upgrade of the program a recorded step may have something new to create.
            step = Step(name=name, creates=ids)

            def journaled(job: Job) -> Job:
                others = tuple(s for s in job.steps if s.name != name)
                return msgspec.structs.replace(job, steps=(*others, step))

            await self._record.write(f"step:{name}", journaled)
        return dict(ids)

    def _check_may_go_on(self, name: str) -> None:
        if self._record.cancel_reason is not None:
            raise Cancelled(self._record.cancel_reason)
        if self._record.undoing:
            raise self._interrupted(name)

    def _interrupted(self, step: str) -> Interrupted:
        return Interrupted(
            f"The daemon died {self.job.attempts - 1} times in the middle of this; "
            "what had been done was undone.",
            hint="Look into the daemon's log for the reason, then try again.",
            step=step,
        )

    def undo(self, callback: Undo) -> None:
        """Have `callback` run if the job fails or is cancelled, the newest first.

        Register it before acting. It is tried again while the disk is full; any other failure of
        it is logged and does not stop the others.

        :raise Interrupted: the daemon died while it undid this job, so what its last step does is
            not done yet another time.
        """
        self._undos.push_async_callback(self._guarded, callback)
        if self._record.avoiding and all(step.name in self._taken for step in self.job.steps):
            raise self._interrupted(self.job.steps[-1].name if self.job.steps else "")

    async def _guarded(self, callback: Undo) -> None:
        delay = RETRY_FIRST
        while not self._abandoned:
            try:
                await callback()
                return
            except NoSpace as error:  # to take back what was written also takes room
                await self._wait_for_room(error, delay)
                delay = min(delay * 2, RETRY_MOST)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    self._abandoned = True  # the daemon stops now; the next one begins again
                    raise
                self._note_failed_undo("it was cancelled from within")
                return
            except Exception:
                self._note_failed_undo(traceback.format_exc())
                return

    async def _wait_for_room(self, error: NoSpace, delay: float) -> None:
        try:
            await self._record.wait_for_room(error, delay)
        except Stopping:
            self._abandoned = True
            raise

    def _note_failed_undo(self, why: str) -> None:
        _LOG.error("job %s (%s): undoing failed: %s", self.job.id, self.job.kind, why)
        self.log(f"undoing failed: {why}")

    async def insist(self, write: Callable[[], Awaitable[T]]) -> T:
        """What `write` answers, tried again while the disk is full.

        For recording what has happened and cannot be taken back.
        """
        delay = RETRY_FIRST
        while True:
            try:
                return await write()
            except NoSpace as error:
                await self._record.wait_for_room(error, delay)
                delay = min(delay * 2, RETRY_MOST)

    def keep(self) -> None:
        """Forget the undos so far: what was done stays, whatever comes."""
        self._undos.pop_all()

    async def roll_back(self) -> None:
        """Run the undos; for the machinery of jobs."""
        await self._undos.aclose()

    def progress(self, fraction: float | None, message: str) -> None:
        """How far it is: 0 to 1, or None for unknown. Never stored."""
        self._record.progress(fraction, message)

    def log(self, line: str) -> None:
        """Append to the job's log. No secrets."""
        self._record.write_line(line)

    async def lock(self, *keys: str) -> None:
        """Take further locks; those already held are fine. See `locks.ORDER`.

        :raise Busy: not in time; names the holder. :raise Internal: the order is violated.
        """
        await take_locks(self._locks, self._record, keys, self._runner, self._lock_deadline)

    def release(self, *keys: str) -> None:
        """Give up locks before the job ends."""
        self._locks.release(self.job.id, keys)
        self._record.amend(locks=tuple(key for key in self.job.locks if key not in keys))

    async def submit(
        self,
        kind: str,
        params: Noun | Mapping[str, object],
        *,
        target: str = "",
        target_name: str = "",
        dedupe: str | None = None,
        job_id: str = "",
        urgent: bool = False,
    ) -> Job:
        """Start another job for the same requester, see `JobRunner.submit`."""
        return await self._runner.submit(
            kind,
            params,
            target=target,
            target_name=target_name,
            requester=self.job.requester,
            dedupe=dedupe,
            job_id=job_id,
            urgent=urgent,
        )

    def holder(self, key: str) -> str | None:
        """Id of the job that holds the lock on a document."""
        return self._locks.holder(key)

    async def interrupt(self, job_id: str, reason: str) -> None:
        """Have another job stop where it is, see `JobRunner.interrupt`."""
        await self._runner.interrupt(job_id, reason)

    async def join(self, job_id: str, *, span: tuple[float, float] = (0.0, 1.0)) -> Job:
        """Wait for another job, showing its progress as ours between the two fractions of `span`.

        When this job is cancelled and nobody else wants the other, that is cancelled too.

        :raise GuesthouseError: what the other failed with, as its own class.
        """
        low, high = span
        ended: Job | None = None
        try:
            async for item in self._runner.subscribe(job_id):
                if isinstance(item, JobProgress):
                    part = item.fraction
                    self.progress(None if part is None else low + (high - low) * part, item.message)
                elif isinstance(item, Job) and item.ended:
                    ended = item
        except asyncio.CancelledError:
            if self._record.cancel_reason is not None:
                self._runner.withdraw(job_id, self._record.cancel_reason)
            raise
        if ended is None:
            raise Unavailable("The daemon is stopping.")
        if ended.problem is not None:
            raise as_error(ended.problem)
        return ended

    def final_ops(self, *ops: Op | FinalOps) -> None:
        """Operations for the transaction that marks this job done; when it fails the job fails.

        Functions among them are called right before, and again after a `RevisionConflict`.
        """
        self._final.extend(ops)

    async def collect_final_ops(self) -> list[Op]:
        """For the machinery of jobs."""
        found: list[Op] = []
        for item in self._final:
            if isinstance(item, Put | Delete | Check):
                found.append(item)
            else:
                found.extend(await item())
        return found

    @property
    def can_repeat_final_ops(self) -> bool:
        return any(not isinstance(item, Put | Delete | Check) for item in self._final)
