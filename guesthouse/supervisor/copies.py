"""Keeps the copies of documents beside the layers up to date, whoever changed the documents.

It follows the view's events, so no operation needs to think of it. A copy comes a moment after its
document: a daemon that died in between compares all copies at its next start. Copies are removed
by the jobs that delete for good, never from here: a document that is not in the database may as
well mean that the database is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b

import msgspec

from guesthouse.errors import GuesthouseError
from guesthouse.model.document import Document, encode
from guesthouse.model.guest import Guest
from guesthouse.operations.rooms import Rooms
from guesthouse.storage.copies import KINDS
from guesthouse.store.documents import (
    GROUPS,
    GUESTS,
    IMAGES,
    LEASES,
    NETWORKS,
    SETS,
    VOLUMES,
)
from guesthouse.store.view import RESYNC, Event

GATHER = 0.5
"""Seconds in which changes of one document become one copy: a start changes its guest often, and
its own writes should not wait for ours."""
RETRY, SLOWEST = 1.0, 30.0
"""Seconds until a copy that could not be written is tried again; doubled up to the second."""

_PREFIXES: dict[str, str] = {
    kind.noun: kind.prefix for kind in (GUESTS, IMAGES, VOLUMES, NETWORKS, LEASES, GROUPS, SETS)
}
log = logging.getLogger(__name__)


class CopyKeeper:
    """Call `start` once the view is open, and `close` before it closes."""

    def __init__(self, rooms: Rooms) -> None:
        self._view, self._copies = rooms.view, rooms.pool.copies
        self._subscription = self._view.subscribe(kinds=_PREFIXES)
        self._dirty: dict[str, None] = {}
        self._written: dict[str, bytes] = {}
        self._wake = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Compare every copy with its document, then follow the changes."""
        self._everything()
        self._tasks = [
            asyncio.create_task(self._listen(), name="copies: listen"),
            asyncio.create_task(self._run(), name="copies: write"),
        ]

    async def close(self) -> None:
        """Write what is left, if it can be written."""
        self._subscription.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self.flush()
        except (GuesthouseError, OSError) as error:
            log.warning("%d copies are left for the next start: %s", len(self._dirty), error)

    async def flush(self) -> None:
        """Return when every copy says what the view shows.

        :raise NoSpace: :raise OSError: what is left is tried again later.
        """
        self._everything()
        await self._write()

    async def _write(self) -> None:
        async with self._one_at_a_time:
            while self._dirty:
                key = min(self._dirty, key=_rank)
                # Before the work: a change that comes meanwhile makes it dirty again.
                del self._dirty[key]
                try:
                    await self._refresh(key)
                except BaseException:
                    self._dirty[key] = None
                    raise

    async def _refresh(self, key: str) -> None:
        document = self._document(key)
        if document is None:
            self._written.pop(key, None)
            return
        wanted = _digest(document)
        if key not in self._written and (found := await self._found(key, document)):
            self._written[key] = found
        if self._written.get(key) == wanted:
            return
        kind = key.partition("/")[0]
        await self._copies.write(kind, document, wanted=lambda: self._document(key) is not None)
        self._written[key] = wanted

    def _shelf(self, kind: str) -> Mapping[str, Document]:
        view = self._view
        shelves: dict[str, Mapping[str, Document]] = {
            "guests": view.guests,
            "images": view.images,
            "volumes": view.volumes,
            "networks": view.networks,
            "leases": view.leases,
            "security-groups": view.groups,
            "address-sets": view.sets,
        }
        return shelves[kind]

    def _document(self, key: str) -> Document | None:
        kind, _, id = key.partition("/")
        return self._shelf(kind).get(id)

    async def _found(self, key: str, document: Document) -> bytes | None:
        """What the copy says that an earlier daemon left; None when there is none that can be
        read."""
        data = await self._copies.read(key)
        if data is None:
            return None
        try:
            return _digest(msgspec.json.decode(data, type=type(document)))
        except msgspec.DecodeError:
            return None

    async def _listen(self) -> None:
        async for event in self._subscription:
            self._note(event)

    def _note(self, event: Event) -> None:
        if event.kind == RESYNC:
            self._everything()
        else:
            self._dirty[_PREFIXES[event.kind] + event.id] = None
        self._wake.set()

    def _everything(self) -> None:
        keys = (f"{kind}/{id}" for kind in KINDS for id in self._shelf(kind))
        self._dirty.update(dict.fromkeys(keys))
        self._wake.set()

    async def _run(self) -> None:
        pause = RETRY
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(GATHER)
            try:
                await self._write()
                pause = RETRY
            except (GuesthouseError, OSError) as error:
                log.warning("copies of documents wait: %s", error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                self._wake.set()
                pause = min(pause * 2, SLOWEST)


def _rank(key: str) -> int:
    return KINDS.index(key.partition("/")[0])


def _digest(document: Document) -> bytes:
    """Of what recovery needs. How far a guest has come up is seen again when it is taken up."""
    if isinstance(document, Guest):
        status = msgspec.structs.replace(document.status, ready=())
        document = msgspec.structs.replace(document, status=status)
    return blake2b(encode(document), digest_size=16).digest()
