"""How long ended jobs are kept: some days, and not too many."""

from __future__ import annotations

import asyncio
import logging
import time
from itertools import islice

from guesthouse.errors import GuesthouseError
from guesthouse.jobs.logs import LogFolder
from guesthouse.model.job import Job
from guesthouse.store.contract import Op
from guesthouse.store.documents import Documents, Versioned

KEPT_SECONDS = 7 * 24 * 3600.0
KEPT_JOBS = 1000
BATCH = 100
"""Jobs deleted in one transaction."""
INTERVAL = 3600.0
"""Seconds between two rounds."""

_LOG = logging.getLogger(__name__)


def outdated(
    jobs: list[Versioned[Job]], now: float, kept: float = KEPT_SECONDS
) -> list[Versioned[Job]]:
    """The ended jobs that are too old or beyond the newest so many."""
    ended = [found for found in jobs if found.doc.ended]
    ended.sort(key=lambda found: found.doc.id, reverse=True)
    return [
        found
        for place, found in enumerate(ended)
        if place >= KEPT_JOBS or now - (found.doc.ended_at or found.doc.created_at) > kept
    ]


class Retention:
    def __init__(
        self, documents: Documents, logs: LogFolder, *, kept: float = KEPT_SECONDS
    ) -> None:
        """:param kept: seconds that ended jobs stay."""
        self._documents = documents
        self._logs = logs
        self._kept = kept
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Tidy now and then every hour, until `close`."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="job retention")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                await self.tidy()
            except (GuesthouseError, OSError) as error:
                _LOG.warning("old jobs stay for now: %s", error)
            await asyncio.sleep(INTERVAL)

    async def tidy(self, now: float | None = None) -> int:
        """Delete outdated jobs with their logs, and logs without a job. Answers how many jobs."""
        # Logs first: one that appears later belongs to a job that this listing may not have.
        logs = await asyncio.to_thread(self._logs.jobs)
        listed = await self._documents.jobs.list()
        old = outdated(listed.documents, time.time() if now is None else now, self._kept)
        queue = iter(old)
        while batch := list(islice(queue, BATCH)):
            ops: list[Op] = [
                self._documents.jobs.delete_op(found.doc.id, found.revision) for found in batch
            ]
            await self._documents.store.commit(ops)
        kept = {found.doc.id for found in listed.documents} - {found.doc.id for found in old}
        broken = {key.removeprefix(self._documents.jobs.prefix) for key in listed.broken}
        await asyncio.to_thread(self._logs.delete, logs - kept - broken)
        return len(old)
