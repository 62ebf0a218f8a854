"""The runner of jobs: takes them, runs them, cancels them, tells of them, recovers them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from guesthouse.errors import Conflict, DeadlineExceeded, Internal, Unavailable
from guesthouse.jobs.active import ActiveJobs
from guesthouse.jobs.execution import Execution
from guesthouse.jobs.feed import Follower
from guesthouse.jobs.locks import Locks, rank
from guesthouse.jobs.logs import LogFolder
from guesthouse.jobs.problems import plain, unforeseen
from guesthouse.jobs.record import JobRecord, Observer, Stopping, retrieve
from guesthouse.jobs.recovery import plan_recovery
from guesthouse.jobs.registry import Operation, Registry
from guesthouse.jobs.retention import KEPT_SECONDS, Retention
from guesthouse.model.document import Noun, convert_strict
from guesthouse.model.ids import new_id
from guesthouse.model.job import Job, JobProgress, JobState
from guesthouse.store.contract import ABSENT
from guesthouse.store.documents import Documents

_LOG = logging.getLogger(__name__)


class JobRunner:
    """One per daemon. Call `recover` once at its start, before anything is submitted.

    :param folder: where the logs of jobs are. :param requester: of jobs that name none.
    :param kept: seconds that ended jobs stay.
    :param observer: told of every write of a job's document; for tests of crashes.
    """

    def __init__(
        self,
        documents: Documents,
        registry: Registry,
        folder: Path,
        *,
        requester: str = "daemon",
        observer: Observer | None = None,
        kept: float = KEPT_SECONDS,
    ) -> None:
        self._documents = documents
        self._registry = registry
        self._requester = requester
        self._observer = observer
        self._locks = Locks()
        self._logs = LogFolder(folder)
        self._logs.prepare()
        self._retention = Retention(documents, self._logs, kept=kept)
        self._active = ActiveJobs()
        self._stopping = False

    async def submit(
        self,
        kind: str,
        params: Noun | Mapping[str, object],
        *,
        target: str = "",
        target_name: str = "",
        requester: str = "",
        dedupe: str | None = None,
        job_id: str = "",
        urgent: bool = False,
    ) -> Job:
        """Accept a job; it is durable when this returns, and runs by itself.

        :param dedupe: while a job of this kind with the same key is active, that one is answered.
        :param job_id: an id recorded before; when a job has it already, that one is answered.
        :param urgent: waits for its locks before all others (after `interrupt`, say).
        :raise InvalidInput: the parameters are wrong. :raise Internal: no such kind.
        :raise NoSpace: :raise ReadOnlyStore: it cannot be recorded, so it is not done.
        :raise Unavailable: the daemon is stopping.
        """
        if self._stopping:
            raise Unavailable("The daemon is stopping.", hint="Try again in a moment.")
        operation = self._registry.get(kind)
        decoded = _decode(operation, params)
        if job_id and (known := await self._known(job_id)):
            return known
        if dedupe is not None and (same := self._active.same(kind, dedupe)):
            same.interested += 1
            await asyncio.shield(same.accepted)
            return same.job
        job = Job(
            id=job_id or new_id(),
            kind=kind,
            target=target,
            target_name=target_name,
            params=plain(decoded),
            locks=tuple(sorted(set(operation.locks(decoded)), key=rank)),
            requester=requester or self._requester,
            dedupe=dedupe or "",
            may_cancel=operation.may_cancel,
            created_at=time.time(),
        )
        record = self._remember(job, ABSENT)
        accepting = asyncio.create_task(self._accept(record, operation, decoded, urgent=urgent))
        accepting.add_done_callback(retrieve)
        await asyncio.shield(accepting)
        return record.job

    async def _known(self, job_id: str) -> Job | None:
        if active := self._active.get(job_id):
            active.interested += 1
            await asyncio.shield(active.accepted)
            return active.job
        found = await self._documents.jobs.get(job_id)
        return found.doc if found else None

    def _remember(self, job: Job, revision: int) -> JobRecord:
        log = self._logs.open(job.id)
        record = JobRecord(job, revision, self._documents, log, self._observer)
        self._active.add(record)
        return record

    async def _accept(
        self, record: JobRecord, operation: Operation[Any], params: Any, *, urgent: bool
    ) -> None:
        # A job that need not wait is accepted and taken up in one write: one fsync less.
        if self._locks.try_acquire(record.id, record.job.locks):
            record.amend(state=JobState.RUNNING, attempts=1, started_at=record.job.created_at)
        try:
            await record.write("accepted", lambda job: job)
        except BaseException as error:
            self._locks.release(record.id)
            self._active.remove(record)
            record.accepted.set_exception(error)
            raise
        record.accepted.set_result(None)
        self._start(record, Execution(record, operation, params, self._locks, self, urgent=urgent))

    def _start(self, record: JobRecord, execution: Execution) -> None:
        if self._stopping:  # accepted while the daemon stops: the next start takes it up
            self._locks.release(record.id)
            record.ended.set_exception(_stopping())
            return
        record.drive = asyncio.create_task(
            self._drive(record, execution), name=f"drive {record.id}"
        )

    async def _drive(self, record: JobRecord, execution: Execution) -> None:
        try:
            await execution.drive()
        except Exception as error:  # its end cannot be written and never will be
            _LOG.exception("job %s (%s) cannot be ended", record.id, record.job.kind)
            if not record.ended.done():
                record.ended.set_exception(unforeseen(error, f"ending {record.job.kind}"))
            self._active.remove(record)
        finally:
            if record.job.ended:
                self.announce_end(record, record.job)
                self._active.remove(record)
            elif not record.ended.done():
                record.ended.set_exception(_stopping())
            record.feed.close()

    def announce_end(self, record: JobRecord, job: Job) -> None:
        """Tell those who wait; for the machinery of jobs."""
        if record.ended.done():
            return
        record.ended.set_result(job)
        if record.job is not job:
            record.feed.tell(job)
        record.feed.close()

    def find(self, job_id: str) -> Job | None:
        """The job as it is in memory, while it is there; later it is in the store alone."""
        record = self._active.get(job_id)
        return record.known if record else None

    def active(self) -> list[Job]:
        """Every job that has not ended, the oldest first."""
        return self._active.jobs()

    def holder(self, key: str) -> str | None:
        """Id of the job that holds the lock on a document (`guests/01J…`)."""
        return self._locks.holder(key)

    def last_progress(self, job_id: str) -> JobProgress | None:
        record = self._active.get(job_id)
        return record.feed.last if record else None

    async def cancel(self, job_id: str, reason: str = "It was cancelled.") -> Job:
        """Have a job stop where it is and undo what it did. Answers it as it is then.

        :raise NotFound: no such job. :raise Conflict: it has ended, or may not be cancelled.
        """
        record = await self._stoppable(job_id)
        if not record.job.may_cancel:
            raise Conflict(
                f"A job of kind {record.job.kind} cannot be cancelled: "
                "half of what it does is worse than all of it.",
                hint=f"Wait for it: guest job show {job_id}",
                job=job_id,
            )
        return await self._stop(record, reason)

    async def interrupt(self, job_id: str, reason: str) -> Job:
        """Like `cancel`, also for jobs that users may not cancel. Already ended is fine."""
        try:
            record = await self._stoppable(job_id)
        except Conflict:
            return await self.get(job_id)
        return await self._stop(record, reason)

    def withdraw(self, job_id: str, reason: str) -> None:
        """One of those who submitted the job does not want it any more; the last cancels it."""
        record = self._active.get(job_id)
        if record is None:
            return
        record.interested -= 1
        if record.interested <= 0 and record.job.may_cancel and not record.settling:
            self._break_off(record, reason)

    async def _stoppable(self, job_id: str) -> JobRecord:
        record = self._active.get(job_id)
        if record is not None and not record.settling:
            return record
        job = await self.get(job_id)
        raise Conflict(
            f"Job {job_id} ({job.kind}) has ended already: {job.state.value}."
            if job.ended
            else f"Job {job_id} ({job.kind}) is ending already.",
            job=job_id,
        )

    async def _stop(self, record: JobRecord, reason: str) -> Job:
        # Durable first: a daemon that dies now must not finish what was to be cancelled.
        try:
            await asyncio.shield(record.accepted)
            await record.write(
                "cancel",
                lambda job: job if job.ended else _cancel_requested(job),
            )
        except Unavailable:
            raise
        except Exception as error:  # a full disk must not keep anybody from cancelling
            _LOG.warning("the cancel of job %s is not recorded: %s", record.id, error)
        self._break_off(record, reason)
        return record.job

    def _break_off(self, record: JobRecord, reason: str) -> None:
        if record.settling or record.cancel_reason is not None:
            return
        record.cancel_reason = reason
        record.cancelled.set()
        if record.work is not None:
            record.work.cancel()

    async def get(self, job_id: str) -> Job:
        """:raise NotFound: no such job."""
        return self.find(job_id) or (await self._documents.jobs.require(job_id)).doc

    async def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """The ended job.

        :raise DeadlineExceeded: not within `timeout` seconds; the job goes on.
        :raise NotFound: no such job. :raise Unavailable: the daemon stops, or does not run it.
        """
        record = self._active.get(job_id)
        if record is None:
            job = await self.get(job_id)
            if not job.ended:
                raise Unavailable(f"Job {job_id} ({job.kind}) is not being run by this daemon.")
            return job
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(record.ended)
        except TimeoutError:
            raise DeadlineExceeded(
                f"Job {job_id} ({record.job.kind}) did not end within {timeout:g} s; it goes on.",
                job=job_id,
            ) from None

    def subscribe(self, job_id: str) -> Follower:
        """The job now, then its documents, progress and log lines as they come, and its end.

        Answers `Job`, `JobProgress` and `str` (a line of the log). For a job that has ended it is
        that job alone; the first item raises `NotFound` when there is none.
        """
        record = self._active.get(job_id)
        if record is None:
            return Follower(first=lambda: self.get(job_id))
        return record.feed.follow(record.known)

    async def log_lines(self, job_id: str) -> list[str]:
        """The job's log so far."""
        if record := self._active.get(job_id):
            await record.log.flush()
        return await self._logs.read(job_id)

    async def recover(self) -> list[Job]:
        """Take up every job that an earlier daemon left, and begin to delete old ones.

        Answers the jobs that run again. Does nothing on a read-only store.
        """
        if self._documents.store.read_only:
            return []
        listed = await self._documents.jobs.list()
        for key, why in listed.broken.items():
            _LOG.error("%s does not parse and is left alone: %s", key, why)
        left = [found for found in listed.documents if not found.doc.ended]
        # Those that had their locks get them before those that waited, and before new ones.
        left.sort(key=lambda found: (found.doc.started_at is None, found.doc.id))
        taken_up = []
        for found in left:
            plan = plan_recovery(found.doc, self._registry)
            record = self._remember(plan.job, found.revision)
            record.accepted.set_result(None)
            record.undoing, record.avoiding = plan.undoing, plan.avoiding
            record.cancel_reason = plan.cancel_reason
            if plan.cancel_reason is not None:
                record.cancelled.set()
            if plan.operation is None:
                record.settling = True
                record.drive = asyncio.create_task(self._give_up(record))
                continue
            if record.job.started_at is not None:
                self._locks.try_acquire(record.id, record.job.locks)
            record.write_line(f"taken up again, attempt {record.job.attempts}")
            taken_up.append(record.job)
            self._start(record, Execution(record, plan.operation, plan.params, self._locks, self))
        self._retention.start()
        return taken_up

    async def _give_up(self, record: JobRecord) -> None:
        """Record the end that recovery decided on, for a job that cannot be run."""
        try:
            await record.persist(record.job.state.value, lambda job: job)
            self.announce_end(record, record.job)
        except Stopping:
            record.ended.set_exception(_stopping())
        finally:
            record.feed.close()
            self._active.remove(record)

    async def close(self, *, deadline: float = 10.0) -> None:
        """Let go of all jobs, without undoing or ending them: the next start takes them up.

        :param deadline: seconds to wait for undos that are under way.
        """
        self._stopping = True
        await self._retention.close()
        records = list(self._active)
        for record in records:
            record.stopping.set()
            if record.work is not None and not record.settling:
                record.work.cancel()
        drives = [record.drive for record in records if record.drive is not None]
        if drives:
            await asyncio.wait(drives, timeout=deadline)
            for drive in drives:
                drive.cancel()
            await asyncio.wait(drives)
        begun = [r for r in records if not r.known.ended and r.job.attempts > 0]
        await asyncio.gather(*(self._uncount(record) for record in begun))
        await asyncio.gather(*(record.log.flush() for record in records))

    async def _uncount(self, record: JobRecord) -> None:
        """An orderly stop is no failed attempt."""
        try:
            await record.write(
                "released", lambda job: msgspec.structs.replace(job, attempts=job.attempts - 1)
            )
        except Exception as error:
            _LOG.warning("job %s keeps its count of attempts: %s", record.id, error)


def _decode(operation: Operation[Any], params: Noun | Mapping[str, object]) -> Noun:
    if isinstance(params, operation.Params):
        return params
    if isinstance(params, Mapping):
        return convert_strict(dict(params), operation.Params, what=f"{operation.kind} job")
    raise Internal(f"{operation.kind} takes {operation.Params.__name__}, not {params!r}.")


def _cancel_requested(job: Job) -> Job:
    return msgspec.structs.replace(job, cancel_requested=True)


def _stopping() -> Unavailable:
    return Unavailable(
        "The daemon is stopping; the job goes on at its next start.",
        hint="Start it again: guest daemon start",
    )
