"""After a boot of the host: notice it, and have the guests started that want it.

A mere restart of the daemon starts nothing: the boot's id is what tells. It is recorded together
with what is to be done, before that is done, so that a daemon that dies in between neither forgets
it nor does it twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

import msgspec

from guesthouse.errors import GuesthouseError
from guesthouse.jobs.runner import JobRunner
from guesthouse.model.host import HostRecord, PendingAutostart
from guesthouse.model.ids import new_id
from guesthouse.operations.hosting import (
    HOSTS,
    THIS_HOST,
    StartGuests,
    StartGuestsParams,
    ran_before,
)
from guesthouse.operations.rooms import Rooms
from guesthouse.store.contract import ABSENT
from guesthouse.store.documents import Collection as Documents

log = logging.getLogger(__name__)

SETTLE_SECONDS = 60.0
"""How long guests that went down with the host may take to be recorded as such."""


class Boot:
    """This boot of the host, as the house sees it."""

    def __init__(self, rooms: Rooms, jobs: JobRunner) -> None:
        self.rooms = rooms
        self.jobs = jobs
        self._hosts = Documents(HOSTS, rooms.documents.store)
        self._pending: PendingAutostart | None = None
        self._task: asyncio.Task[None] | None = None

    async def notice(self) -> None:
        """Before anything is changed that tells how the host went down.

        A disk that is full or a store that is read only keeps nobody from starting the daemon;
        the boot is then noticed by the next one.
        """
        try:
            self._pending = await self._noticed()
        except GuesthouseError as error:
            log.error("guests are not started by themselves after this boot: %s", error)

    async def _noticed(self) -> PendingAutostart | None:
        now = self.rooms.facts().boot_id
        found = await self._hosts.get(THIS_HOST)
        if found is not None and found.doc.boot_id == now:
            return found.doc.autostart
        before = found.doc.boot_id if found else ""
        pending = None
        if before:  # else a new house, or a new database: nothing ran that we know of
            pending = PendingAutostart(job=new_id(), ran=self._ran(before))
        record = HostRecord(id=THIS_HOST, boot_id=now, autostart=pending)
        expect = found.revision if found else ABSENT
        await self.rooms.documents.store.commit([HOSTS.put_op(record, expect)])
        return pending

    def _ran(self, before: str) -> tuple[str, ...]:
        """With those whose turn had not come when the host went down again."""
        guests = self.rooms.view.guests
        ran = ran_before(guests.values(), before)
        for job in self.rooms.view.jobs.values():
            if job.kind == StartGuests.kind and not job.ended:
                waiting = msgspec.convert(job.params, StartGuestsParams).ran
                ran += [guest for guest in waiting if not self._was_launched(guest, before)]
        return tuple(dict.fromkeys(ran))

    def _was_launched(self, guest_id: str, boot_id: str) -> bool:
        guest = self.rooms.view.guests.get(guest_id)
        return guest is None or (guest.launch is not None and guest.launch.boot_id == boot_id)

    def start_guests(self, settling: Collection[asyncio.Task[None]]) -> None:
        """Have them started soon. :param settling: the ends that are being recorded."""
        if self._pending is not None:
            self._task = asyncio.create_task(
                self._start_guests(self._pending, settling), name="autostart"
            )

    async def _start_guests(
        self, pending: PendingAutostart, settling: Collection[asyncio.Task[None]]
    ) -> None:
        # Their jobs come before ours in the queue of each guest.
        if settling:
            await asyncio.wait(settling, timeout=SETTLE_SECONDS)
        try:
            await self.jobs.submit(
                StartGuests.kind,
                StartGuestsParams(boot_id=self.rooms.facts().boot_id, ran=pending.ran),
                target_name="host",
                requester="autostart",
                job_id=pending.job,
            )
            await self._hosts.update(
                THIS_HOST, lambda record: msgspec.structs.replace(record, autostart=None)
            )
        except GuesthouseError as error:
            log.error("guests are not started by themselves: %s", error)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
