"""What /proc tells about a process: its start time and whether it still runs (proc(5))."""

from __future__ import annotations

from pathlib import Path

_PROC = Path("/proc")
# States of /proc/PID/stat in which a process has ended: zombie, dead (both spellings).
_ENDED = frozenset("ZXx")


def read_stat(pid: int) -> tuple[str, int]:
    """(state letter, start time in clock ticks since boot) of process `pid`.

    Raises ProcessLookupError if there is no such process.
    """
    try:
        text = (_PROC / str(pid) / "stat").read_bytes()
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {pid}") from None
    # Field 2, the name in brackets, may hold spaces and brackets itself: count from its end.
    fields = text[text.rindex(b")") + 2 :].split()
    return fields[0].decode(), int(fields[19])


def runs(pid: int, start_ticks: int | None = None) -> bool:
    """Whether `pid` exists, has not ended (a zombie is dead) and, if given, began at that tick."""
    try:
        state, began = read_stat(pid)
    except ProcessLookupError:
        return False
    return state not in _ENDED and start_ticks in (None, began)


def boot_id() -> str:
    """The kernel's identifier of this boot: pids and ticks mean nothing in another one."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
