"""The keeper's event loop: descriptors and timers, one thread, asleep when idle."""

from __future__ import annotations

import heapq
import selectors
import sys
import time
from collections.abc import Callable

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

Ready = Callable[[int], None]


def note(message: str) -> None:
    """One line to the keeper's own log (its stderr). A full disk is no reason to stop."""
    try:
        sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {message}\n")
        sys.stderr.flush()
    except OSError:
        pass


class Timer:
    """A callback due at `when` (monotonic seconds), until cancelled."""

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class Loop:
    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []
        self._running = False

    def watch(self, fd: int, events: int, ready: Ready) -> None:
        """Call `ready(events)` whenever `fd` is ready. No events: stop watching.

        Descriptors without wanted events are unregistered, since epoll reports a hang-up even to
        an empty mask and the loop would spin on it.
        """
        known = fd in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(fd)
        elif known:
            self._selector.modify(fd, events, ready)
        else:
            self._selector.register(fd, events, ready)

    def forget(self, fd: int) -> None:
        """Stop watching `fd`; to be called before it is closed."""
        self.watch(fd, 0, lambda _events: None)

    def later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + seconds, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        """Serve until `stop`. An exception in one callback is logged and costs only its owner."""
        self._running = True
        while self._running:
            for key, events in self._selector.select(self._timeout()):
                # A callback of this very round may have closed this fd and reused its number.
                if self._selector.get_map().get(key.fd) is not key:
                    continue
                try:
                    key.data(events)
                except Exception:
                    sys.__excepthook__(*sys.exc_info())
                    self.forget(key.fd)
            self._fire()

    def _timeout(self) -> float | None:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(0.0, self._timers[0].when - time.monotonic())

    def _fire(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0].when <= now:
            callback = heapq.heappop(self._timers).callback
            if callback is None:
                continue
            try:
                callback()
            except Exception:
                sys.__excepthook__(*sys.exc_info())
