"""What the house does by itself at its start and every hour: what is old in the trash goes, and so
do uploads that nobody uses."""

from __future__ import annotations

import asyncio
import logging
import time

from guesthouse.errors import GuesthouseError
from guesthouse.images.importing import ImportImage
from guesthouse.jobs.runner import JobRunner
from guesthouse.operations.rooms import Rooms
from guesthouse.operations.trash import PurgeParams, expired
from guesthouse.store.documents import GUESTS

INTERVAL = 3600.0
"""Seconds between two rounds."""

log = logging.getLogger(__name__)


class Housekeeping:
    def __init__(self, rooms: Rooms, jobs: JobRunner) -> None:
        self.rooms = rooms
        self.jobs = jobs
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Once jobs can be submitted."""
        self._task = asyncio.create_task(self._run(), name="housekeeping")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self.round(time.time())
            except GuesthouseError as error:
                log.warning("what is old is left as it is for now: %s", error)
            await asyncio.sleep(INTERVAL)

    async def round(self, now: float) -> None:
        """Do what is due. :param now: seconds since the epoch."""
        await self.rooms.uploads.sweep(self._uploads_needed())
        for guest in expired(self.rooms, now):
            assert guest.deleted_at is not None  # it is in the trash
            await self.jobs.submit(
                "guest.purge",
                PurgeParams(guest=guest.id, deleted_at=guest.deleted_at),
                target=GUESTS.key(guest.id),
                target_name=guest.name,
                requester="housekeeping",
                dedupe=guest.id,
            )

    def _uploads_needed(self) -> set[str]:
        return {
            str(job.params.get("upload"))
            for job in self.rooms.view.jobs.values()
            if not job.ended and job.kind == ImportImage.kind
        }
