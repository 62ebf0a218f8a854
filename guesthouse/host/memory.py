"""How much memory this host could give now."""

from __future__ import annotations

from pathlib import Path

from guesthouse.errors import Internal


def available(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that new work can have without swapping (MemAvailable, see proc(5))."""
    for line in meminfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    raise Internal(f"{meminfo} names no MemAvailable.")
