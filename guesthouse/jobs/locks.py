"""Locks on documents, held by jobs: fair, in one order, with the holder known by name.

They live in memory: a daemon that starts again takes up its jobs, which take their locks again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from guesthouse.errors import Internal

ORDER = ("pools/", "images/", "volumes/", "networks/", "guests/")
"""Locks are taken in this order, then by the rest of the key; keys of other kinds come last."""

OnWait = Callable[[str, str], None]
"""Called with (key, id of the job that holds it) when a wait begins."""


class LockTimeout(Exception):
    """A lock did not come free in time. :ivar holder: id of the job that holds it."""

    def __init__(self, key: str, holder: str) -> None:
        super().__init__(key, holder)
        self.key = key
        self.holder = holder


def rank(key: str) -> tuple[int, str]:
    """Sorts keys into the order in which they must be taken."""
    for index, prefix in enumerate(ORDER):
        if key.startswith(prefix):
            return index, key
    return len(ORDER), key


class _Lock:
    def __init__(self, holder: str) -> None:
        self.holder = holder
        self.queue: deque[tuple[str, asyncio.Future[None]]] = deque()


class Locks:
    def __init__(self) -> None:
        self._locks: dict[str, _Lock] = {}
        self._held: dict[str, set[str]] = {}

    def holder(self, key: str) -> str | None:
        """Id of the job that holds `key`."""
        lock = self._locks.get(key)
        return lock.holder if lock else None

    def held(self, job: str) -> frozenset[str]:
        return frozenset(self._held.get(job, ()))

    def try_acquire(self, job: str, keys: Iterable[str]) -> bool:
        """Take all of `keys` if every one is free now, else none."""
        wanted = set(keys)
        if any(key in self._locks for key in wanted):
            return False
        for key in wanted:
            self._give(key, job)
        return True

    async def acquire(
        self,
        job: str,
        keys: Iterable[str],
        *,
        timeout: float,
        first: bool = False,
        on_wait: OnWait | None = None,
    ) -> None:
        """Take `keys`, one after the other in the order, waiting for each.

        Those that were taken stay with the job also when a later one fails: release them.

        :param timeout: seconds for all of them. :param first: wait at the head of the queues.
        :raise LockTimeout: not in time. :raise Internal: the order is violated.
        """
        held = self._held.get(job, set())
        wanted = sorted(set(keys) - held, key=rank)
        if wanted and held and rank(wanted[0]) < max(map(rank, held)):
            raise Internal(f"Lock {wanted[0]} is asked for after {max(held, key=rank)}.")
        ends = asyncio.get_running_loop().time() + timeout
        for key in wanted:
            lock = self._locks.get(key)
            if lock is None:
                self._give(key, job)
                continue
            if on_wait:
                on_wait(key, lock.holder)
            await self._wait(key, lock, job, ends, first=first)

    async def _wait(self, key: str, lock: _Lock, job: str, ends: float, *, first: bool) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (job, turn)
        if first:
            lock.queue.appendleft(place)
        else:
            lock.queue.append(place)
        try:
            async with asyncio.timeout_at(ends):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.release(job, [key])  # it was ours already when we were told to give up
            elif place in lock.queue:
                lock.queue.remove(place)
            if isinstance(error, TimeoutError):
                raise LockTimeout(key, lock.holder) from None
            raise

    def _give(self, key: str, job: str) -> None:
        self._locks[key] = _Lock(job)
        self._held.setdefault(job, set()).add(key)

    def release(self, job: str, keys: Iterable[str] | None = None) -> None:
        """Give up `keys`, or all of the job's; the next in each queue has it at once."""
        held = self._held.get(job, set())
        for key in list(held) if keys is None else [key for key in keys if key in held]:
            held.discard(key)
            lock = self._locks[key]
            # A waiter that was cancelled, but did not run since, still stands in the queue.
            while lock.queue and lock.queue[0][1].done():
                lock.queue.popleft()
            if lock.queue:
                lock.holder, turn = lock.queue.popleft()
                self._held.setdefault(lock.holder, set()).add(key)
                turn.set_result(None)
            else:
                del self._locks[key]
        if not held:
            self._held.pop(job, None)
