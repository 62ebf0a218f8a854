"""Processes of this host, told apart safely: pid and start time, watched by pidfd.

A pid alone is reused; pid, start time in clock ticks and boot id together name one process for
ever. A zombie is dead: PID 1 of a container may reap late or never.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
from types import TracebackType

from guesthouse.errors import DeadlineExceeded, NotFound
from guesthouse.host.keeper.procfs import boot_id, read_stat, runs

__all__ = ["ProcessHandle", "boot_id", "is_alive", "start_ticks", "wait_pidfd"]


def start_ticks(pid: int) -> int:
    """When `pid` began, in clock ticks since boot.

    :raise NotFound: there is no such process (a zombie still has its start time).
    """
    try:
        return read_stat(pid)[1]
    except ProcessLookupError:
        raise NotFound(f"There is no process {pid}.", pid=pid) from None


def is_alive(pid: int, began: int | None = None) -> bool:
    """Whether process `pid` runs, and, if `began` is given, is the one that began at that tick."""
    return runs(pid, began)


async def wait_pidfd(fd: int, timeout: float | None = None) -> None:
    """Wait, at most `timeout` seconds, for the end of the process that pidfd `fd` refers to.

    Any number of waiters may use the same descriptor. It need not be our child.

    :raise DeadlineExceeded: it still runs.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    # A loop has one reader per descriptor number: each waiter brings its own duplicate.
    own = os.dup(fd)
    loop.add_reader(own, ended.set)
    try:
        async with asyncio.timeout(timeout):
            await ended.wait()
    except TimeoutError:
        raise DeadlineExceeded(f"The process still runs after {timeout:g} seconds.") from None
    finally:
        loop.remove_reader(own)
        os.close(own)


class ProcessHandle:
    """A hold on one process that no reuse of its pid can confuse. Close it, or use `with`."""

    def __init__(self, pid: int, began: int, fd: int) -> None:
        self.pid, self.start_ticks, self.fd = pid, began, fd

    @classmethod
    def open(cls, pid: int, began: int | None = None) -> ProcessHandle:
        """Hold the running process `pid`; if `began` is given it must have begun at that tick.

        :raise NotFound: it has ended, or another process has the number now.
        """
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            raise NotFound(f"There is no process {pid}.", pid=pid) from None
        # The pidfd came first: if the number changed hands since, this pidfd already reports it.
        try:
            ticks = read_stat(pid)[1]
        except ProcessLookupError:
            ticks = None
        if ticks is None or not runs(pid, ticks) or began not in (None, ticks):
            os.close(fd)
            raise NotFound(f"Process {pid} has ended, or its number is another's now.", pid=pid)
        return cls(pid, ticks, fd)

    @property
    def alive(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return not poll.poll(0)

    def send_signal(self, number: int) -> bool:
        """Send a signal; False if the process has ended."""
        try:
            signal.pidfd_send_signal(self.fd, number)
        except ProcessLookupError:
            return False
        return True

    async def wait(self, timeout: float | None = None) -> None:
        """Wait for the end, at most `timeout` seconds.

        :raise DeadlineExceeded: it still runs.
        """
        await wait_pidfd(self.fd, timeout)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> ProcessHandle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
