"""Processes told apart: pid and start time, zombies, pidfds."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from guesthouse.errors import DeadlineExceeded, NotFound
from guesthouse.host.process import ProcessHandle, boot_id, is_alive, start_ticks, wait_pidfd
from guesthouse.host.spawn import run

from .keeper_house import DEADLINE

pytestmark = pytest.mark.rootless


class Child:
    """A child that only we reap, when we say so."""

    def __init__(self, program: str = "/bin/sleep", *arguments: str) -> None:
        self.pid = os.posix_spawn(program, [program, *(arguments or ("1000",))], {})
        self._reaped = False

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> None:
        if not self._reaped:
            self._reaped = True
            os.waitpid(self.pid, 0)


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child()
    yield made
    if not made._reaped:
        made.kill()
        made.reap()


def test_start_time_names_a_process(child: Child) -> None:
    began = start_ticks(child.pid)
    assert began >= start_ticks(os.getpid()) > 0
    assert is_alive(child.pid)
    assert is_alive(child.pid, began)
    assert not is_alive(child.pid, began + 1)
    child.kill()
    child.reap()
    assert not is_alive(child.pid, began)
    with pytest.raises(NotFound):
        start_ticks(child.pid)


async def test_a_zombie_is_dead(child: Child) -> None:
    began = start_ticks(child.pid)
    with ProcessHandle.open(child.pid, began) as handle:
        assert handle.alive
        child.kill()
        await handle.wait(DEADLINE)
        assert not handle.alive
        assert not is_alive(child.pid, began)
        assert start_ticks(child.pid) == began, "it is there, and dead"
        with pytest.raises(NotFound):
            ProcessHandle.open(child.pid)
        child.reap()
        assert handle.send_signal(signal.SIGTERM) is False


def test_a_name_with_brackets_and_spaces(tmp_path: Path) -> None:
    program = f"{tmp_path}/a ) R 1 (b"
    os.symlink("/bin/sleep", program)
    odd = Child(program, "1000")
    try:
        assert is_alive(odd.pid)
        assert start_ticks(odd.pid) >= start_ticks(os.getpid())
    finally:
        odd.kill()
        odd.reap()


def test_a_handle_is_of_the_very_process(child: Child) -> None:
    with pytest.raises(NotFound, match="another"):
        ProcessHandle.open(child.pid, start_ticks(child.pid) - 1)
    with pytest.raises(NotFound):
        ProcessHandle.open(1 << 22)


async def test_many_wait_for_one(child: Child) -> None:
    with ProcessHandle.open(child.pid) as handle:
        waiters = [asyncio.create_task(wait_pidfd(handle.fd, DEADLINE)) for _ in range(10)]
        impatient = asyncio.create_task(handle.wait(DEADLINE))
        await asyncio.sleep(0.05)
        impatient.cancel()
        assert not any(waiter.done() for waiter in waiters)
        assert handle.send_signal(signal.SIGTERM) is True
        await asyncio.gather(*waiters)


async def test_waiting_has_an_end(child: Child) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with ProcessHandle.open(child.pid) as handle:
        with pytest.raises(DeadlineExceeded, match="still runs"):
            await handle.wait(0.05)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_strangers_can_be_waited_for(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    await run(["sh", "-c", f"sleep 1000 >/dev/null 2>&1 & echo $! > {note}"])
    with ProcessHandle.open(int(note.read_text())) as handle:
        handle.send_signal(signal.SIGKILL)
        await handle.wait(DEADLINE)


def test_a_boot_has_an_id() -> None:
    assert boot_id() == boot_id()
    assert len(boot_id()) == 36
