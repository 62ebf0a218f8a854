"""Whether the program on disk is still the one that this process was started from."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import guesthouse

LOOK_EVERY = 2.0
"""Seconds between two looks; one costs about a millisecond of a thread."""

Fingerprint = frozenset[tuple[str, int, int, int]]


def fingerprint(top: Path) -> Fingerprint:
    """Of each file: path, inode, time of change, size.

    The inode tells an upgrade by a package whose files carry the time of a reproducible build.
    """
    found, left = [], [str(top)]
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    if entry.name == "__pycache__" or entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
                        continue
                    known = entry.stat(follow_symlinks=False)
                    found.append((entry.path, known.st_ino, known.st_mtime_ns, known.st_size))
        except OSError:
            continue  # an upgrade is at work; what is gone is missing in the answer
    return frozenset(found)


class Installed:
    """:ivar changed: as of the last look; it stays so."""

    def __init__(self, top: Path = Path(guesthouse.__file__).parent) -> None:
        self._top = top
        self._started = fingerprint(top)
        self._looked = time.monotonic()
        self.changed = False

    async def look(self, *, every: float = LOOK_EVERY) -> None:
        """See what is on disk now, unless somebody looked a moment ago."""
        if self.changed or time.monotonic() < self._looked + every:
            return
        self._looked = time.monotonic()
        self.changed = await asyncio.to_thread(fingerprint, self._top) != self._started
