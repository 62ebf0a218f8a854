"""How much CPU time and memory a process takes, from /proc (proc(5)). Blocks."""

from __future__ import annotations

import os
import time
from pathlib import Path

from guesthouse.errors import NotFound
from guesthouse.model.usage import ProcessUsage

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def measure(pid: int, began: int, *, proc: Path = _PROC) -> ProcessUsage:
    """Measure the process `pid` that began at that tick.

    :raise NotFound: it has ended, or another process has the number now.
    """
    folder = proc / str(pid)
    try:
        ticks = _cpu_ticks(folder, began)
        now = time.monotonic()
        resident, proportional = _memory(folder)
        _cpu_ticks(folder, began)  # still the same process: what was read in between is its own
    except (FileNotFoundError, ProcessLookupError):
        raise NotFound(f"There is no process {pid}.", pid=pid) from None
    return ProcessUsage(
        pid=pid,
        cpu_seconds=ticks / _TICKS,
        resident=resident,
        proportional=proportional,
        measured_at=now,
    )


def _cpu_ticks(folder: Path, began: int) -> int:
    text = (folder / "stat").read_bytes()
    # Field 2, the name in brackets, may hold spaces and brackets itself: count from its end.
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] in b"ZXx" or int(fields[19]) != began:
        raise ProcessLookupError
    return int(fields[11]) + int(fields[12])


def _memory(folder: Path) -> tuple[int, int | None]:
    """(RSS, PSS) in bytes. Reading smaps_rollup needs the rights of a debugger (ptrace(2))."""
    try:
        text = (folder / "smaps_rollup").read_text()
    except PermissionError:
        return int((folder / "statm").read_text().split()[1]) * _PAGE, None
    found = {}
    for line in text.splitlines():
        words = line.split()
        if words[0] in {"Rss:", "Pss:"}:
            found[words[0]] = int(words[1]) << 10  # "kB" are KiB
    if "Rss:" not in found:
        raise ProcessLookupError  # it ended while we looked: its memory is gone
    return found["Rss:"], found.get("Pss:")
