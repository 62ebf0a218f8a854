"""When the host's clock jumps: because the host slept, or because somebody set it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from contextlib import suppress

# sys/timerfd.h; Python has these from 3.13 on.
_TFD_NONBLOCK, _TFD_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_TFD_TIMER_ABSTIME, _TFD_TIMER_CANCEL_ON_SET = 1, 2
_FAR = 1 << 40
"""Seconds since the epoch: the timer itself never comes."""


class _Spec(ctypes.Structure):
    """struct itimerspec."""

    _fields_ = (
        ("interval", ctypes.c_long * 2),
        ("value", ctypes.c_long * 2),
    )


def slept() -> float:
    """Seconds that this host has slept since its boot (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class ClockWatch:
    """Tells of jumps until it is closed. It costs no wake-up: the kernel cancels a timer that is
    far away when the clock jumps (TFD_TIMER_CANCEL_ON_SET of timerfd_settime(2)), and so it does
    when the host wakes (`timerfd_resume` in fs/timerfd.c).

    :param jumped: called with the seconds that the host slept since the last jump; 0 when it did
        not, and only its clock was set.
    :raise OSError: the kernel has no such timer.
    """

    def __init__(
        self, jumped: Callable[[float], None], *, slept: Callable[[], float] = slept
    ) -> None:
        self._jumped, self._asleep = jumped, slept
        self._before = slept()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._checked(
            self._libc.timerfd_create(time.CLOCK_REALTIME, _TFD_NONBLOCK | _TFD_CLOEXEC)
        )
        self._loop = asyncio.get_running_loop()
        try:
            self._arm()
        except OSError:
            os.close(self.fd)
            raise
        self._loop.add_reader(self.fd, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self.fd)
        os.close(self.fd)

    def _arm(self) -> None:
        spec = _Spec(value=(_FAR, 0))
        flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
        self._checked(self._libc.timerfd_settime(self.fd, flags, ctypes.byref(spec), None))

    def _read(self) -> None:
        with suppress(OSError):  # ECANCELED is what we wait for
            os.read(self.fd, 8)
        self._arm()
        now = self._asleep()
        # The two clocks are read one after the other.
        since = now - self._before if now - self._before > 0.1 else 0.0
        self._before = now
        self._jumped(since)

    def _checked(self, answer: int) -> int:
        if answer < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return answer
