"""What a job tells those who follow it: its document, progress, lines of its log."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Awaitable, Callable

from guesthouse.model.job import Job, JobProgress

INTERVAL = 0.1
"""Least seconds between two ticks of progress."""
CAPACITY = 1000
"""Ticks and lines that a follower may lag behind; then the oldest are dropped, documents never."""

Item = Job | JobProgress | str
"""A document, a tick, or a line of the log."""


class Follower:
    """An async iterator of what a job tells; it ends after the ended job, or when the daemon stops.

    The first item is the job as it is when the iterator is made.
    """

    def __init__(self, first: Callable[[], Awaitable[Job]] | None = None) -> None:
        self._first = first
        self._queue: deque[Item] = deque()
        self._wake = asyncio.Event()
        self._closed = False

    def offer(self, item: Item) -> None:
        if self._closed:
            return
        if len(self._queue) >= CAPACITY and not isinstance(item, Job):
            oldest = next((i for i in self._queue if not isinstance(i, Job)), None)
            if oldest is not None:
                self._queue.remove(oldest)
        self._queue.append(item)
        self._wake.set()

    def close(self) -> None:
        """No more items; those that are queued still come."""
        self._closed = True
        self._wake.set()

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> Item:
        if self._first is not None:
            first, self._first = self._first, None
            self._closed = True
            return await first()
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._queue.popleft()


class Feed:
    """The followers of one job. Those that nobody iterates any more are forgotten by themselves."""

    def __init__(self) -> None:
        self._followers: weakref.WeakSet[Follower] = weakref.WeakSet()
        self._progress: JobProgress | None = None
        self._sent = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def last(self) -> JobProgress | None:
        """The newest progress, sent or not yet."""
        return self._progress

    def follow(self, job: Job) -> Follower:
        follower = Follower()
        follower.offer(job)
        if self._progress is not None and not job.ended:
            follower.offer(self._progress)
        if self._closed:
            follower.close()
        self._followers.add(follower)
        return follower

    def progress(self, tick: JobProgress) -> None:
        """Send it now, or once the interval has passed; newer ones replace it until then."""
        self._progress = tick
        if self._timer is not None or self._closed:
            return
        loop = asyncio.get_running_loop()
        due = self._sent + INTERVAL
        if loop.time() >= due:
            self._send()
        else:
            self._timer = loop.call_at(due, self._send)

    def _send(self) -> None:
        self._timer = None
        self._sent = asyncio.get_running_loop().time()
        if self._progress is not None:
            self.tell(self._progress)

    def tell(self, item: Item) -> None:
        for follower in list(self._followers):
            follower.offer(item)

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for follower in list(self._followers):
            follower.close()
