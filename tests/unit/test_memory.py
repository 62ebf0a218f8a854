"""What this process takes and gives back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from guesthouse.errors import Internal
from guesthouse.host.memory import available

MEBIBYTE = 1 << 20

KEPT = """
import sys
from guesthouse.host.memory import return_large_blocks

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "return":
    assert return_large_blocks()
large = bytes(31 << 20)
del large  # whoever frees such a block has glibc keep smaller ones
before = resident()
blocks = [bytearray(b"x" * (1 << 20)) for _ in range(40)]
small = [bytes(1000) for _ in range(1000)]  # lies behind them
del blocks
print(resident() - before)
"""


def left(how: str) -> int:
    """Bytes that a process still has after it freed 40 MiB in blocks of one."""
    done = subprocess.run([sys.executable, "-c", KEPT, how], capture_output=True, check=True)
    return int(done.stdout)


def test_large_blocks_go_back_to_the_host() -> None:
    assert left("return") < 8 * MEBIBYTE < left("keep")


def test_available_memory(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       4096 kB\nMemAvailable:   2048 kB\n")
    assert available(meminfo) == 2 * MEBIBYTE
    meminfo.write_text("MemTotal:       4096 kB\n")
    with pytest.raises(Internal, match="MemAvailable"):
        available(meminfo)
