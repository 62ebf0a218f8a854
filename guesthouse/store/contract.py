"""The store's contract: etcd's model and etcd's limits, so that SQLite and etcd both keep it.

Keys are text such as `guests/01J…`. Values are bytes. Every committed transaction raises the one
revision of the store by one, and each entry remembers the revision that last wrote it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

MAX_VALUE = 1 << 20
"""Largest value in bytes (etcd's request limit is 1.5 MiB)."""
MAX_OPS = 128
"""Most operations in one transaction (etcd's default)."""

ABSENT = 0
"""As `expect`: the key must not exist."""


class Entry(NamedTuple):
    """:ivar revision: of the transaction that wrote it last. :ivar created: that made the key."""

    key: str
    value: bytes
    revision: int
    created: int


class Listing(NamedTuple):
    """:ivar revision: the store's revision at which this listing is exact; watch from there."""

    entries: list[Entry]
    revision: int


class Put(NamedTuple):
    """:ivar expect: revision that the key must have; `ABSENT`, or None for any.

    :ivar lease: id of a lease; the key vanishes with it.
    """

    key: str
    value: bytes
    expect: int | None = None
    lease: str = ""


class Delete(NamedTuple):
    key: str
    expect: int | None = None


class Check(NamedTuple):
    """Writes nothing; the transaction fails unless the key has this revision."""

    key: str
    expect: int


Op = Put | Delete | Check


class Change(NamedTuple):
    """:ivar value: None when the key was deleted."""

    key: str
    value: bytes | None
    revision: int


class Lease(NamedTuple):
    """:ivar ttl: seconds that it lives after the last keep-alive."""

    id: str
    owner: str
    ttl: float


Changes = AsyncIterator[list[Change]]


class Store(Protocol):
    """Safe for concurrent use from one event loop. Nothing here blocks the loop."""

    @property
    def read_only(self) -> str:
        """Why the store refuses writes, or an empty text."""
        ...

    @property
    def revision(self) -> int:
        """The newest revision that this process has seen."""
        ...

    async def get(self, key: str, *, at_least: int = 0) -> Entry | None:
        """The entry, or None.

        :param at_least: do not answer from a state older than this revision.
        :raise Unavailable: the store has not got that far. :raise CorruptStore: it is damaged.
        """
        ...

    async def list(self, prefix: str, *, at_least: int = 0) -> Listing:
        """All entries whose key starts with `prefix`, sorted by key."""
        ...

    async def commit(self, ops: Sequence[Op]) -> int:
        """All or nothing, durable when it returns. Answers the new revision.

        Cancelling the call never leaves it open: `CancelledError` comes once the transaction has
        happened or never will, so that what the caller does next reads the truth.

        A transaction of `Check`s alone answers the present revision and writes nothing.

        :raise RevisionConflict: an expectation failed; `detail["key"]` and `detail["revision"]`
            (the present one, 0 for absent) say which.
        :raise InvalidInput: over `MAX_OPS` or `MAX_VALUE`, or a key twice.
        :raise ReadOnlyStore: written by a newer program. :raise NoSpace: the disk is full.
        """
        ...

    def watch(self, prefix: str, *, since: int) -> AbstractAsyncContextManager[Changes]:
        """Every change after revision `since`, in order, each transaction as one list.

        The context manager registers the watch before it yields, so nothing falls between.

        :raise Compacted: on entering or iterating, when `since` is no longer kept or the watcher
            fell too far behind. List again and watch from there.
        """
        ...

    async def grant(self, owner: str, ttl: float) -> Lease: ...

    async def keep_alive(self, lease: str) -> None:
        """:raise NotFound: it has expired."""
        ...

    async def revoke(self, lease: str) -> None:
        """Ends the lease and deletes its keys. Unknown leases are fine."""
        ...

    async def close(self) -> None: ...
