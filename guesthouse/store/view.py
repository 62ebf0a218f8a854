"""A typed copy of all documents in memory, fed by the store's watch. Reads come from here."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Final, NamedTuple

from guesthouse.errors import (
    Compacted,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    ReadOnlyStore,
    Unavailable,
)
from guesthouse.model.document import Document
from guesthouse.model.firewall import AddressSet, SecurityGroup
from guesthouse.model.guest import Guest
from guesthouse.model.image import Image
from guesthouse.model.job import Job
from guesthouse.model.network import Lease, Network
from guesthouse.model.volume import Volume
from guesthouse.store.contract import Change, Entry, Store
from guesthouse.store.references import resolve
from guesthouse.store.shelf import Shelf
from guesthouse.store.trash import in_trash, in_trash_named, resolve_trashed

_LOG = logging.getLogger(__name__)

CAPACITY = 1024
"""Events that a subscriber may lag behind before it is told to read everything again."""
CHUNK = 500
"""Documents parsed in one go while the loop may run between."""

QUARANTINE: Final = "quarantine"
RESYNC: Final = "resync"


class Event(NamedTuple):
    """A change of the view.

    :ivar kind: `guest`, `image`, `volume`, `job`; `quarantine`, whose id is the key of a document
        that does not parse (see `View.quarantined`) or no longer stands there; `resync`: events
        were lost, read everything again.
    :ivar document: None when it is gone.
    """

    kind: str
    id: str
    document: Document | None
    revision: int


class Subscription:
    """An async iterator of events from its making on; `close` it, or use it as a context."""

    def __init__(self, forget: Callable[[Subscription], None], kinds: frozenset[str]) -> None:
        self._forget = forget
        self._kinds = kinds
        self._queue: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._closed = False

    def offer(self, event: Event) -> None:
        if self._kinds and event.kind not in self._kinds and event.kind != RESYNC:
            return
        if len(self._queue) >= CAPACITY or event.kind == RESYNC:
            self._queue.clear()
            event = Event(RESYNC, "", None, event.revision)
        self._queue.append(event)
        self._wake.set()

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        self._forget(self)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._queue.popleft()


class View:
    """Make it with `open`. Its mappings are live: do not keep iterators over an await."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._shelf = Shelf()
        self._revision = 0
        self._subscriptions: set[Subscription] = set()
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._feeder: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, store: Store) -> View:
        """List everything, then follow the store until `close`."""
        view = cls(store)
        await view._relist()
        view._feeder = asyncio.create_task(view._feed(), name="view")
        return view

    async def close(self) -> None:
        if self._feeder is not None:
            self._feeder.cancel()
            await asyncio.wait({self._feeder})
        for subscription in list(self._subscriptions):
            subscription.close()
        stopped = Unavailable("The daemon is stopping.")
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(stopped)
        self._waiters.clear()

    @property
    def revision(self) -> int:
        """The store's revision that this view has reached."""
        return self._revision

    @property
    def guests(self) -> Mapping[str, Guest]:
        """All that have a document, those in the trash too: they hold their disks."""
        return MappingProxyType(self._shelf.guests.documents)

    @property
    def images(self) -> Mapping[str, Image]:
        return MappingProxyType(self._shelf.images.documents)

    @property
    def volumes(self) -> Mapping[str, Volume]:
        return MappingProxyType(self._shelf.volumes.documents)

    @property
    def jobs(self) -> Mapping[str, Job]:
        return MappingProxyType(self._shelf.jobs.documents)

    @property
    def networks(self) -> Mapping[str, Network]:
        return MappingProxyType(self._shelf.networks.documents)

    @property
    def leases(self) -> Mapping[str, Lease]:
        return MappingProxyType(self._shelf.leases.documents)

    @property
    def groups(self) -> Mapping[str, SecurityGroup]:
        return MappingProxyType(self._shelf.groups.documents)

    @property
    def sets(self) -> Mapping[str, AddressSet]:
        return MappingProxyType(self._shelf.sets.documents)

    @property
    def revisions(self) -> Mapping[str, int]:
        """By key (`guests/01J…`), the revision that last wrote each document here."""
        return MappingProxyType(self._shelf.revisions)

    @property
    def quarantined(self) -> Mapping[str, str]:
        """By key, why a document does not parse. It stays in the store; its disks stay too."""
        return MappingProxyType(self._shelf.quarantined)

    @property
    def newer(self) -> str:
        """Why a newer Guesthouse is needed for one of the documents, or an empty text."""
        return next(iter(self._shelf.newer.values()), "")

    def guest(self, ref: str) -> Guest:
        """By name, id or unique prefix of an id (6 characters or more); not one in the trash.

        :raise NotFound: with similar names. :raise InvalidInput: the prefix is not unique.
        """
        try:
            found = resolve(self._shelf.guests, ref)
        except NotFound:
            if in_trash_named(self.guests.values(), ref) is not None:
                raise in_trash(ref) from None
            raise
        if found.in_trash:
            raise in_trash(ref)
        return found

    def trashed(self, ref: str) -> Guest:
        """A guest in the trash, see `trash.resolve_trashed`. Raises as `guest`."""
        return resolve_trashed(self.guests.values(), ref)

    def image(self, ref: str) -> Image:
        """Like `guest`; of several images with one name, the newest. :raise UnknownImage:"""
        return resolve(self._shelf.images, ref)

    def volume(self, ref: str) -> Volume:
        return resolve(self._shelf.volumes, ref)

    def network(self, ref: str) -> Network:
        return resolve(self._shelf.networks, ref)

    def group(self, ref: str) -> SecurityGroup:
        return resolve(self._shelf.groups, ref)

    def address_set(self, ref: str) -> AddressSet:
        return resolve(self._shelf.sets, ref)

    def job(self, ref: str) -> Job:
        return resolve(self._shelf.jobs, ref)

    async def wait_for(self, revision: int, *, timeout: float = 30.0) -> None:
        """Return when the view shows `revision` of the store.

        :raise DeadlineExceeded: not within `timeout` seconds. :raise Unavailable: closed meanwhile.
        """
        if self._revision >= revision:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((revision, waiter))
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            raise DeadlineExceeded(
                f"The view is at revision {self._revision} and did not reach {revision} in time."
            ) from None

    def subscribe(self, *, kinds: Iterable[str] = ()) -> Subscription:
        """Events from now on. :param kinds: only these; `resync` comes always."""
        subscription = Subscription(self._subscriptions.discard, frozenset(kinds))
        self._subscriptions.add(subscription)
        return subscription

    async def _feed(self) -> None:
        while True:
            try:
                await self._follow()
                return  # the store was closed
            except Compacted:
                _LOG.warning("the view fell behind the store and lists again")
            except Exception:
                # Whatever it was: a view that stands still would show what is no longer true.
                _LOG.exception("the view cannot follow the store and tries again")
                await asyncio.sleep(1.0)
            try:
                await self._relist()
            except Exception:
                _LOG.exception("the view cannot list the store")

    async def _follow(self) -> None:
        async with self._store.watch("", since=self._revision) as transactions:
            async for changes in transactions:
                for change in changes:
                    self._apply(change)
                self._reach(changes[-1].revision)

    async def _relist(self) -> None:
        listing = await self._store.list("")
        shelf = Shelf()
        entries = iter(listing.entries)
        while chunk := list(islice(entries, CHUNK)):
            # In a thread: parsing ten thousand documents would hold the loop for too long.
            await asyncio.to_thread(_fill, shelf, chunk)
        # In place, so that mappings handed out before stay live.
        self._shelf.replace(shelf)
        self._reach(listing.revision)
        self._tell(Event(RESYNC, "", None, listing.revision))

    def _apply(self, change: Change) -> None:
        for kind, id, document in _put(self._shelf, change):
            self._tell(Event(kind, id, document, change.revision))

    def _tell(self, event: Event) -> None:
        for subscription in self._subscriptions:
            subscription.offer(event)

    def _reach(self, revision: int) -> None:
        self._revision = max(self._revision, revision)
        waiting = []
        for wanted, waiter in self._waiters:
            if waiter.done():
                continue
            if wanted <= self._revision:
                waiter.set_result(None)
            else:
                waiting.append((wanted, waiter))
        self._waiters = waiting


def _fill(shelf: Shelf, entries: Sequence[Entry]) -> None:
    for entry in entries:
        _put(shelf, Change(entry.key, entry.value, entry.revision))


def _put(shelf: Shelf, change: Change) -> list[tuple[str, str, Document | None]]:
    """Apply one change; answers what subscribers shall hear: (kind, id, document)."""
    rows = shelf.rows_of(change.key)
    if rows is None:  # an index, or something of another floor
        return []
    heard: list[tuple[str, str, Document | None]] = []
    id = change.key[len(rows.kind.prefix) :]
    was_broken = shelf.clear_quarantine(change.key)
    if change.value is None:
        if rows.remove(id):
            heard.append((rows.kind.noun, id, None))
        shelf.revisions.pop(change.key, None)
    else:
        shelf.revisions[change.key] = change.revision
        try:
            document = rows.put(change.key, change.value)
        except (InvalidInput, ReadOnlyStore) as error:
            _LOG.error("%s is quarantined: %s", change.key, error)
            if rows.remove(id):
                heard.append((rows.kind.noun, id, None))
            shelf.quarantine(change.key, error)
            return [*heard, (QUARANTINE, change.key, None)]
        heard.append((rows.kind.noun, id, document))
    if was_broken:
        heard.append((QUARANTINE, change.key, None))
    return heard
