"""How much memory this host could give now, and giving back what this process does not need."""

from __future__ import annotations

import ctypes
from pathlib import Path

from guesthouse.errors import Internal


def available(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that new work can have without swapping (MemAvailable, see proc(5))."""
    for line in meminfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    raise Internal(f"{meminfo} names no MemAvailable.")


_M_MMAP_THRESHOLD = -3  # malloc.h of glibc
_LARGE = 128 << 10


def return_large_blocks() -> bool:
    """Have every block of 128 KiB or more go back to the host when it is freed.

    That is what glibc begins with, but each large block that is freed raises the limit, up to
    32 MiB (mallopt(3)), and the heap keeps what was below it: 30 MiB after an image was built.

    Whether this C library knows how.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, _LARGE) == 1
