"""What a process takes of the host."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guesthouse.errors import NotFound
from guesthouse.host.measuring import measure
from guesthouse.host.process import start_ticks

BUSY = """
import os, sys
held = b"x" * (40 << 20)
while os.times().user < 0.3:
    pass
print("done", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A process that took 0.3 s of CPU time and holds 40 MiB."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_cpu_time_and_memory(busy: subprocess.Popen[bytes]) -> None:
    found = measure(busy.pid, start_ticks(busy.pid))
    assert found.pid == busy.pid
    assert 0.25 < found.cpu_seconds < 60
    assert found.proportional is not None
    assert 40 << 20 < found.proportional <= found.resident < 1 << 30
    assert measure(busy.pid, start_ticks(busy.pid)).measured_at >= found.measured_at


def test_a_number_that_changed_hands_is_no_guest(busy: subprocess.Popen[bytes]) -> None:
    with pytest.raises(NotFound):
        measure(busy.pid, start_ticks(busy.pid) + 1)


def test_a_zombie_takes_nothing(busy: subprocess.Popen[bytes]) -> None:
    began = start_ticks(busy.pid)
    busy.kill()
    os.waitid(os.P_PID, busy.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(NotFound):
        measure(busy.pid, began)


def test_no_process_at_all() -> None:
    with pytest.raises(NotFound):
        measure(1 << 30, 1)


def test_where_the_kernel_does_not_tell_the_shares(
    busy: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_text

    def refused(path: Path) -> str:
        if path.name == "smaps_rollup":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_text", refused)
    found = measure(busy.pid, start_ticks(busy.pid))
    assert found.proportional is None
    assert 40 << 20 < found.resident < 1 << 30
