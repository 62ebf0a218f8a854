"""Hands a running guest's events to everybody who listens, each with a bounded queue."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque

from guesthouse.drivers.base import DriverEvent

CAPACITY = 256


class Fanout:
    """The sender's side. After an `exit` event every listener ends, later ones at once."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
        self._last: DriverEvent | None = None

    @property
    def ended(self) -> bool:
        return self._last is not None

    def send(self, event: DriverEvent) -> None:
        """Never waits; nothing is sent any more after `exit`."""
        if self.ended:
            return
        if event.kind == "exit":
            self._last = event
        for listener in tuple(self._listeners):
            listener.put(event)
        if self.ended:
            self._listeners.clear()

    def listen(self) -> Listener:
        """From now on. A guest that has ended tells just that."""
        listener = Listener(self, self._capacity)
        if self._last is not None:
            listener.put(self._last)
        else:
            self._listeners.add(listener)
        return listener

    def detach(self) -> None:
        """Let every listener end though the guest runs on: nobody will send any more."""
        for listener in tuple(self._listeners):
            listener.end()
        self._listeners.clear()

    def forget(self, listener: Listener) -> None:
        self._listeners.discard(listener)


class Listener:
    """An async iterator of events. Whoever drops it, or closes it, listens no more."""

    def __init__(self, source: Fanout, capacity: int) -> None:
        self._source = source
        self._capacity = capacity
        self._queue: deque[DriverEvent] = deque()
        self._dropped = 0
        self._wake = asyncio.Event()
        self._over = False

    def put(self, event: DriverEvent) -> None:
        if len(self._queue) >= self._capacity:
            self._queue.popleft()
            self._dropped += 1
        self._queue.append(event)
        self._over = self._over or event.kind == "exit"
        self._wake.set()

    def end(self) -> None:
        self._over = True
        self._wake.set()

    def close(self) -> None:
        self._source.forget(self)
        self._queue.clear()
        self.end()

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> DriverEvent:
        while not self._queue:
            if self._over:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        event = self._queue.popleft()
        if self._dropped:
            event = event._replace(detail={**event.detail, "dropped": self._dropped})
            self._dropped = 0
        return event
