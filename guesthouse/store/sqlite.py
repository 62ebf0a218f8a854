"""The store of one host: SQLite inside the daemon.

One connection writes, in one thread of its own; transactions that wait for it share an fsync. One
connection reads, in another. Watches are fed from the process's own commits, without polling.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

from guesthouse.errors import GuesthouseError, Internal, InvalidInput, Unavailable
from guesthouse.model.ids import new_id
from guesthouse.store import sqlite_transactions as transactions
from guesthouse.store.contract import Changes, Entry, Lease, Listing, Op
from guesthouse.store.sqlite_errors import explained
from guesthouse.store.sqlite_schema import Database, open_database, refusal
from guesthouse.store.sqlite_transactions import Applied, Work
from guesthouse.store.watching import Transactions, Watcher, Watchers

BATCH = 64
"""Most transactions that share one fsync."""

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


class SqliteStore:
    """See `contract.Store`. Make it with `open`."""

    def __init__(self, database: Database, *, history: int) -> None:
        self._database = database
        self._history = history
        self._loop = asyncio.get_running_loop()
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._read_thread = ThreadPoolExecutor(1, thread_name_prefix="store-read")
        self._waiting: list[tuple[Work, asyncio.Future[Applied]]] = []
        self._batch: asyncio.Task[None] | None = None
        self._read_only = database.read_only
        self._revision = 0
        self._watchers = Watchers()
        self._leases: dict[str, tuple[Lease, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._expiry: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(cls, path: Path, *, history: int = 10_000) -> SqliteStore:
        """Open the database at `path`, making it when it is not there.

        :param history: how many revisions a watch may go back.
        :raise HostLacks: the folder is on a network file system, or cannot be written and is empty.
        :raise CorruptStore: damaged; it is left as it is. :raise NoSpace: the disk is full.
        :raise Unavailable: another process uses it.
        """
        database = await asyncio.to_thread(open_database, path)
        store = cls(database, history=history)
        try:
            await store._take_up()
        except BaseException:
            await store.close()
            raise
        return store

    async def _take_up(self) -> None:
        def read(connection: sqlite3.Connection) -> tuple[int, list[tuple[Lease, float]]]:
            with explained(self._database.path):
                return transactions.revision(connection), transactions.stored_leases(connection)

        self._revision, leases = await self._read(read)
        if self._read_only:
            return
        now, wall = self._loop.time(), time.time()
        for lease, expires in leases:
            # A clock that jumped must not prolong a lease beyond its ttl.
            remaining = min(max(expires - wall, 0.0), lease.ttl)
            self._leases[lease.id] = (lease, now + remaining)
        self._set_timer()

    @property
    def read_only(self) -> str:
        return self._read_only

    def refuse_writes(self, why: str) -> None:
        """From now on commits raise `ReadOnlyStore`: a document needs a newer Guesthouse."""
        self._read_only = self._read_only or why

    @property
    def revision(self) -> int:
        return self._revision

    async def get(self, key: str, *, at_least: int = 0) -> Entry | None:
        path = self._database.path
        entry, revision = await self._read(lambda c: transactions.read_entry(c, path, key))
        _check_reached(revision, at_least)
        return entry

    async def list(self, prefix: str, *, at_least: int = 0) -> Listing:
        path = self._database.path
        listing = await self._read(lambda c: transactions.read_listing(c, path, prefix))
        _check_reached(listing.revision, at_least)
        return listing

    async def commit(self, ops: Sequence[Op]) -> int:
        transactions.check_ops(ops)
        return (await self._write(transactions.write_ops(tuple(ops)))).revision

    def watch(self, prefix: str, *, since: int) -> AbstractAsyncContextManager[Changes]:
        return self._watch(prefix, since)

    @asynccontextmanager
    async def _watch(self, prefix: str, since: int) -> AsyncIterator[Changes]:
        self._check_open()
        watcher = Watcher(prefix, since, self._revision, self._read_history)
        self._watchers.add(watcher)
        try:
            await watcher.prepare()
            yield watcher
        finally:
            self._watchers.remove(watcher)

    async def _read_history(self, after: int, upto: int) -> Transactions:
        path = self._database.path
        return await self._read(lambda c: transactions.read_history(c, path, after, upto))

    async def grant(self, owner: str, ttl: float) -> Lease:
        if not 0 < ttl < 1e9:
            raise InvalidInput(f"A lease cannot live {ttl} seconds.", field="ttl")
        lease = Lease(new_id(), owner, float(ttl))
        await self._prolong(lease)
        return lease

    async def keep_alive(self, lease: str) -> None:
        known = self._leases.get(lease)
        if known is None or known[1] <= self._loop.time():
            raise transactions.unknown_lease(lease)
        await self._prolong(known[0])

    async def _prolong(self, lease: Lease) -> None:
        # Known before it is durable: an expiry that is due meanwhile must see the new deadline.
        self._leases[lease.id] = (lease, self._loop.time() + lease.ttl)
        await self._write(transactions.write_lease(lease, time.time() + lease.ttl))
        self._set_timer()

    async def revoke(self, lease: str) -> None:
        self._leases.pop(lease, None)
        await self._write(transactions.end_leases([lease]))

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._leases and not self._closed:
            first = min(deadline for _, deadline in self._leases.values())
            self._timer = self._loop.call_at(first, self._start_expiry)

    def _start_expiry(self) -> None:
        self._timer = None
        if self._expiry is None or self._expiry.done():
            self._expiry = self._loop.create_task(self._expire())

    async def _expire(self) -> None:
        now = self._loop.time()
        due = {id: known for id, known in self._leases.items() if known[1] <= now}
        for lease in due:
            del self._leases[lease]
        try:
            if due:
                await self._write(transactions.end_leases(list(due)))
        except GuesthouseError:
            # The disk is full, say: they stay expired, and their keys go at the next attempt.
            retry = self._loop.time() + 1.0
            self._leases |= {id: (known[0], retry) for id, known in due.items()}
        self._set_timer()

    async def close(self) -> None:
        """Finish what is queued, end the watches and close the database. May be repeated."""
        if self._closed:
            return
        self._closed = True
        self._set_timer()
        self._watchers.close()
        while self._batch is not None:
            await asyncio.wait({self._batch})
        self._write_thread.shutdown(wait=False)
        self._read_thread.submit(self._database.close)
        await asyncio.to_thread(self._read_thread.shutdown)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("The store is closed: the daemon is stopping.")

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._check_open()
        return await self._loop.run_in_executor(self._read_thread, work, self._database.reader)

    async def _write(self, work: Work) -> Applied:
        """Queue a transaction.

        A caller that is cancelled learns of it once it is settled whether the transaction happens:
        what it does next (an undo) must not be overtaken by its own write.
        """
        self._check_open()
        if self._read_only:
            raise refusal(self._read_only)
        future: asyncio.Future[Applied] = self._loop.create_future()
        self._waiting.append((work, future))
        if self._batch is None:
            self._batch = self._loop.create_task(self._write_waiting())
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if (work, future) in self._waiting:
                self._waiting.remove((work, future))
                future.cancel()
            while not future.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({future})
            if not future.cancelled():
                future.exception()  # nobody else will look at it
            raise

    async def _write_waiting(self) -> None:
        writer = self._database.writer
        assert writer is not None  # a store without one is read-only and was refused above
        try:
            while self._waiting:
                taken, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                wanted = [(work, future) for work, future in taken if not future.cancelled()]
                try:
                    outcomes = await self._loop.run_in_executor(
                        self._write_thread,
                        transactions.run_batch,
                        writer,
                        self._database.path,
                        [work for work, _ in wanted],
                        self._history,
                    )
                except Exception as error:
                    _LOG.exception("a transaction failed in an unforeseen way")
                    defect = Internal(f"The store failed in an unforeseen way: {error!r}.")
                    outcomes = [defect] * len(wanted)
                for (_, future), outcome in zip(wanted, outcomes, strict=True):
                    self._deliver(future, outcome)
        finally:
            self._batch = None

    def _deliver(self, future: asyncio.Future[Applied], outcome: Applied | GuesthouseError) -> None:
        if isinstance(outcome, Applied):
            # Watchers first: whoever awaits the commit finds its changes in their queues.
            self._revision = max(self._revision, outcome.revision)
            self._watchers.publish(outcome.changes)
        if future.cancelled():
            return
        if isinstance(outcome, Applied):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)


def _check_reached(revision: int, at_least: int) -> None:
    if revision < at_least:
        raise Unavailable(
            f"The store is at revision {revision}, before {at_least} that was asked for.",
            hint="Its database may have been replaced by an older copy.",
            revision=revision,
        )
