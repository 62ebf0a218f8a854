"""The memory of watches: who waits for changes, and the bounded queues between."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from guesthouse.errors import Compacted
from guesthouse.store.contract import Change

CAPACITY = 4096
"""Transactions that a watcher may lag behind before it must list again."""

Transactions = list[list[Change]]

History = Callable[[int, int], Awaitable[Transactions]]
"""(after, upto) -> the next transactions with after < revision <= upto; empty when none is left.

It raises `Compacted` when `after` is no longer kept.
"""


def compacted(since: int, oldest: int) -> Compacted:
    return Compacted(
        f"Changes after revision {since} are no longer kept; the oldest kept is {oldest}.",
        hint="List again and watch from the revision of that listing.",
        since=since,
        oldest=oldest,
    )


class Watcher:
    """One watch: first the part that was history when it began, then what is published.

    An async iterator of transactions; ends when the store closes.

    :raise Compacted: while iterating, when the queue overflowed or history went away.
    """

    def __init__(self, prefix: str, since: int, start: int, history: History) -> None:
        self.prefix = prefix
        self._after = since
        self._start = start
        self._history = history
        self._pages: deque[list[Change]] = deque()
        self._queue: deque[list[Change]] = deque()
        self._wake = asyncio.Event()
        self._overflow = False
        self._closed = False

    async def prepare(self) -> None:
        """Read the first part of history, so that `Compacted` shows on entering."""
        if self._after < self._start:
            await self._read_history()

    async def _read_history(self) -> None:
        page = await self._history(self._after, self._start)
        for changes in page:
            self._after = changes[0].revision
            mine = [c for c in changes if c.key.startswith(self.prefix)]
            if mine:
                self._pages.append(mine)
        if not page:
            self._after = self._start

    def offer(self, changes: Sequence[Change]) -> None:
        """Take a committed transaction; overflow marks the watcher as too far behind."""
        if self._overflow or changes[0].revision <= self._after:
            return
        mine = [c for c in changes if c.key.startswith(self.prefix)]
        if not mine:
            return
        if len(self._queue) >= CAPACITY:
            self._overflow = True
            self._queue.clear()
        else:
            self._queue.append(mine)
        self._wake.set()

    def close(self) -> None:
        self._closed = True
        self._wake.set()

    def __aiter__(self) -> Watcher:
        return self

    async def __anext__(self) -> list[Change]:
        while True:
            if self._pages:
                return self._pages.popleft()
            if self._after < self._start:
                await self._read_history()
                continue
            if self._overflow:
                raise Compacted(
                    f"The watch fell more than {CAPACITY} transactions behind.",
                    hint="List again and watch from the revision of that listing.",
                    since=self._after,
                )
            if self._queue:
                changes = self._queue.popleft()
                self._after = changes[0].revision
                return changes
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()


class Watchers:
    """All watches of one store."""

    def __init__(self) -> None:
        self._all: set[Watcher] = set()

    def add(self, watcher: Watcher) -> None:
        self._all.add(watcher)

    def remove(self, watcher: Watcher) -> None:
        watcher.close()
        self._all.discard(watcher)

    def publish(self, changes: Sequence[Change]) -> None:
        """Hand one committed transaction to everyone; called in order of revisions."""
        if changes:
            for watcher in self._all:
                watcher.offer(changes)

    def close(self) -> None:
        for watcher in self._all:
            watcher.close()
        self._all.clear()
