"""The watch on the host's clock: armed so that the kernel tells of jumps, and silent otherwise.

The clock of this machine is not ours to set, and it cannot be put to sleep, so the kernel's side
is tried by what it says about the timer.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from pathlib import Path

from guesthouse.host.clock import ClockWatch, slept


class Sleep:
    def __init__(self) -> None:
        self.seconds = 5.0

    def __call__(self) -> float:
        return self.seconds


def come(watch: ClockWatch) -> None:
    """Let the timer come: the reading end cannot tell that from a jump."""
    spec = (ctypes.c_long * 4)(0, 0, 0, 1)
    assert ctypes.CDLL(None).timerfd_settime(watch.fd, 0, spec, None) == 0


def armed(watch: ClockWatch) -> bool:
    """proc(5): absolute (1) and cancelled when the clock is set (2), and far away."""
    text = Path(f"/proc/self/fdinfo/{watch.fd}").read_text()
    facts = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    left = int(facts["it_value"].strip("()").split(",")[0])
    return facts["settime flags"] == "03" and facts["clockid"] == "0" and left > 10**9


async def test_it_is_armed_and_says_nothing() -> None:
    told: list[float] = []
    watch = ClockWatch(told.append)
    assert armed(watch)
    await asyncio.sleep(0.05)
    assert not told
    watch.close()


async def test_jumps_are_told_with_the_sleep_that_they_came_of() -> None:
    told: asyncio.Queue[float] = asyncio.Queue()
    sleep = Sleep()
    watch = ClockWatch(told.put_nowait, slept=sleep)
    sleep.seconds += 3600
    for expected in (3600.0, 0.0):
        come(watch)
        assert await asyncio.wait_for(told.get(), 30) == expected
        assert armed(watch), "it is armed again"
    assert told.empty()
    watch.close()


async def test_nothing_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    ClockWatch(print).close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_the_host_slept() -> None:
    assert 0 <= slept() + 0.01 < time.clock_gettime(time.CLOCK_BOOTTIME) + 1
