"""The memory of a job that has not ended, and the one way in which its document is written."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from guesthouse.errors import GuesthouseError, Shortage, Unavailable
from guesthouse.jobs.feed import Feed
from guesthouse.jobs.logs import JobLog
from guesthouse.model.job import Job, JobProgress
from guesthouse.store.contract import Op
from guesthouse.store.documents import Documents

_LOG = logging.getLogger(__name__)

Observer = Callable[[Job, str, Literal["before", "after"]], None]
"""Told of every write of a job's document: (job, what is written, before or after it is durable).

What is written: `accepted`, `running`, `recovering`, `step:<name>`, `cancel`, `released`, `done`,
`failed`, `cancelled`.
"""

RETRY_FIRST, RETRY_MOST = 0.5, 15.0
"""Seconds between attempts to write while the disk is full."""


class Stopping(Exception):
    """The daemon stops while this waits. Never leaves this package."""


class JobRecord:
    """One active job.

    :ivar job: the document as it is, with what the next write will add.
    :ivar accepted: done when the job is durable. :ivar ended: its ended document.
    :ivar cancel_reason: why it shall not go on; None while it shall.
    :ivar undoing: it was interrupted too often; it runs only as far as it got, to be undone.
    :ivar avoiding: that was tried and killed the daemon too: its last step is not repeated.
    :ivar interested: submissions that this job answers.
    """

    def __init__(
        self, job: Job, revision: int, documents: Documents, log: JobLog, observer: Observer | None
    ) -> None:
        self.job = job
        self.log = log
        self.feed = Feed()
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        for future in (self.accepted, self.ended):
            future.add_done_callback(retrieve)
        self.cancelled = asyncio.Event()
        self.cancel_reason: str | None = None
        self.stopping = asyncio.Event()
        self.settling = False
        self.undoing = False
        self.avoiding = False
        self.interested = 1
        self.work: asyncio.Task[object] | None = None
        self.drive: asyncio.Task[None] | None = None
        self._revision = revision
        self._documents = documents
        self._observer = observer
        self._writing = asyncio.Lock()

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def known(self) -> Job:
        """The newest that is known, also an end that could not be recorded yet."""
        if self.ended.done() and self.ended.exception() is None:
            return self.ended.result()
        return self.job

    def amend(self, **fields: object) -> None:
        """Change the document in memory; the next write makes it durable."""
        self.job = msgspec.structs.replace(self.job, **fields)

    async def write(self, what: str, change: Callable[[Job], Job], ops: Sequence[Op] = ()) -> None:
        """Make a change of the document durable, with `ops` in the same transaction.

        When the caller is cancelled the write still happens, and later ones come after it.
        """
        task = asyncio.ensure_future(self._write(what, change, ops))
        task.add_done_callback(retrieve)
        await asyncio.shield(task)

    async def _write(self, what: str, change: Callable[[Job], Job], ops: Sequence[Op]) -> None:
        async with self._writing:
            base = self.job
            job = change(base)
            if self._observer:
                self._observer(job, what, "before")
            put = self._documents.jobs.put_op(job, self._revision)
            self._revision = await self._documents.store.commit([put, *ops])
            # What was amended while the write was under way stays, for the next write.
            self.job = job if self.job is base else change(self.job)
            if self._observer:
                self._observer(job, what, "after")
        self.feed.tell(job)

    async def persist(self, what: str, change: Callable[[Job], Job]) -> None:
        """Write, and try again for as long as the disk is full.

        :raise Stopping: the daemon stops before that.
        """
        delay = RETRY_FIRST
        while True:
            try:
                await self.write(what, change)
                return
            except (Shortage, Unavailable) as error:
                await self.wait_for_room(error, delay)
                delay = min(delay * 2, RETRY_MOST)

    async def wait_for_room(self, error: GuesthouseError, seconds: float) -> None:
        """Say that the job cannot be recorded, and wait. :raise Stopping: the daemon stops."""
        _LOG.error("job %s (%s) cannot be recorded: %s", self.id, self.job.kind, error)
        self.progress(None, f"cannot be recorded: {error.message}")
        try:
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        except TimeoutError:
            return
        raise Stopping from error

    def progress(self, fraction: float | None, message: str) -> None:
        if fraction is not None:
            fraction = min(max(fraction, 0.0), 1.0)
        self.feed.progress(JobProgress(job=self.id, fraction=fraction, message=message))

    def write_line(self, line: str) -> None:
        """A line, or several, of the job's log."""
        for part in line.rstrip("\n").split("\n"):
            self.log.append(part)
            self.feed.tell(part)


def retrieve(future: asyncio.Future[Any]) -> None:
    """Take note of a failure that nobody may come for, so that asyncio does not complain."""
    if not future.cancelled():
        future.exception()
