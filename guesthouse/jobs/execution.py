"""The course of one job: locks, run, and its end, with everything undone if it did not go well."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from guesthouse.errors import (
    Cancelled,
    GuesthouseError,
    Internal,
    ReadOnlyStore,
    RevisionConflict,
    Shortage,
    Unavailable,
)
from guesthouse.jobs.context import JobContext
from guesthouse.jobs.locks import Locks
from guesthouse.jobs.problems import as_problem, plain, unforeseen
from guesthouse.jobs.record import RETRY_FIRST, RETRY_MOST, JobRecord, Stopping
from guesthouse.jobs.registry import Operation
from guesthouse.jobs.waiting import take_locks
from guesthouse.model.job import Job, JobState

if TYPE_CHECKING:
    from guesthouse.jobs.runner import JobRunner

_LOG = logging.getLogger(__name__)

CONFLICTS = 16
"""How often final operations are made anew after somebody else's change."""


class Outcome(NamedTuple):
    """:ivar error: None when it went well."""

    result: dict[str, Any] | None
    error: GuesthouseError | None


class Execution:
    """Drives one job from its acceptance to its end. `drive` runs in a task that nobody cancels;
    the operation runs in another (`record.work`), which a cancel cancels."""

    def __init__(
        self,
        record: JobRecord,
        operation: Operation[Any],
        params: Any,
        locks: Locks,
        runner: JobRunner,
        *,
        urgent: bool = False,
    ) -> None:
        self._record = record
        self._operation = operation
        self._params = params
        self._locks = locks
        self._runner = runner
        self._urgent = urgent
        self._context = JobContext(record, locks, runner, lock_deadline=operation.lock_deadline)

    async def drive(self) -> None:
        """Run the job to its end, or until the daemon stops: then it is left as it is."""
        record = self._record
        try:
            if record.job.state is JobState.RECOVERING:
                await record.persist("recovering", lambda job: job)
            if record.stopping.is_set():
                return
            record.work = asyncio.create_task(self._work(), name=f"job {record.id}")
            if record.cancel_reason is not None and not self._goes_on_though_cancelled():
                record.work.cancel()
            await asyncio.wait({record.work})
            if record.stopping.is_set() and record.work.cancelled() and not record.cancel_reason:
                return
            await self._settle(self._judge(record.work))
        except Stopping:
            return
        except asyncio.CancelledError:  # the daemon stops and gave up waiting for us
            if record.work is not None:
                record.work.cancel()
            raise
        finally:
            self._locks.release(record.id)

    def _goes_on_though_cancelled(self) -> bool:
        """A job that was to be cancelled when the daemon died goes on until its first new step:
        only so are the undos of what it had done registered."""
        return self._context.resumed

    async def _work(self) -> object:
        record = self._record
        keys = {*self._operation.locks(self._params), *record.job.locks}
        await take_locks(
            self._locks,
            record,
            keys,
            self._runner,
            self._operation.lock_deadline,
            first=self._urgent,
        )
        if record.job.state is JobState.QUEUED:
            await record.write("running", _running)
        else:
            record.amend(state=JobState.RUNNING)
        return plain(await self._operation.run(self._context, self._params))

    def _judge(self, work: asyncio.Task[object]) -> Outcome:
        record = self._record
        reason = record.cancel_reason
        if work.cancelled():
            if reason is not None:
                return Outcome(None, Cancelled(reason))
            return Outcome(None, Internal("The operation was cancelled from within itself."))
        error = work.exception()
        if error is None:
            return Outcome(_as_result(work.result()), None)
        if not isinstance(error, Exception):
            raise error
        if not isinstance(error, GuesthouseError):
            self._note_defect(error)
            error = unforeseen(error, f"running {record.job.kind}")
        if reason is not None and not isinstance(error, Cancelled):
            record.write_line(f"failed while being cancelled: {error}")
            return Outcome(None, Cancelled(reason))
        return Outcome(None, error)

    def _note_defect(self, error: Exception) -> None:
        text = "".join(traceback.format_exception(error))
        _LOG.error("job %s (%s) met a defect\n%s", self._record.id, self._record.job.kind, text)
        self._record.write_line(text)

    async def _settle(self, outcome: Outcome) -> None:
        self._record.settling = True
        error = outcome.error
        if error is None:
            error = await self._end_well(outcome.result)
            if error is None:
                return
        how = "cancelled" if isinstance(error, Cancelled) else "failed"
        self._record.write_line(f"{how}: {error}")
        await self._context.roll_back()
        await self._end_badly(error)

    async def _end_well(self, result: dict[str, Any] | None) -> GuesthouseError | None:
        """Record that the job is done, with its final operations. Answers why that cannot be."""

        def done(job: Job) -> Job:
            return msgspec.structs.replace(
                job, state=JobState.DONE, result=result, ended_at=time.time()
            )

        record, context, conflicts, delay = self._record, self._context, 0, RETRY_FIRST
        while True:
            try:
                await record.write("done", done, await context.collect_final_ops())
                return None
            except ReadOnlyStore as error:
                return error
            except RevisionConflict as error:
                conflicts += 1
                if not context.can_repeat_final_ops or conflicts >= CONFLICTS:
                    return error
            except (Shortage, Unavailable) as error:
                # What it did is done; undoing it because nothing can be written would be worse.
                await record.wait_for_room(error, delay)
                delay = min(delay * 2, RETRY_MOST)
            except GuesthouseError as error:
                return error
            except Exception as error:
                self._note_defect(error)
                return unforeseen(error, f"ending {record.job.kind}")

    async def _end_badly(self, error: GuesthouseError) -> None:
        """Record that the job failed. Whoever waits hears of it at once, even if the disk is full
        and the document has to wait."""
        record = self._record
        wanted = record.cancel_reason is not None and isinstance(error, Cancelled)
        state = JobState.CANCELLED if wanted else JobState.FAILED
        problem, now = as_problem(error), time.time()

        def ended(job: Job) -> Job:
            return msgspec.structs.replace(job, state=state, problem=problem, ended_at=now)

        try:
            await record.write(state.value, ended)
        except GuesthouseError as failure:
            _LOG.error("job %s ended, not yet recorded: %s", record.id, failure)
            self._locks.release(record.id)
            self._runner.announce_end(record, ended(record.job))
            await record.persist(state.value, ended)


def _running(job: Job) -> Job:
    return msgspec.structs.replace(
        job, state=JobState.RUNNING, attempts=job.attempts + 1, started_at=time.time()
    )


def _as_result(value: object) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None
