"""The log files of jobs: `<folder>/<id>.log`, capped, written off the event loop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from pathlib import Path

LIMIT = 1 << 20
"""Bytes that one job's log may have."""
LONGEST = 8 << 10
"""Bytes that one line may have."""

_FULL = "… the log is full; what follows is not kept …"
_LOG = logging.getLogger(__name__)


class JobLog:
    """The log of one job. Failing to write it never fails the job."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: list[bytes] = []
        self._flusher: asyncio.Task[None] | None = None
        self._full = False

    def append(self, line: str) -> None:
        if self._full:
            return
        data = line.encode(errors="replace")
        self._pending.append(data[:LONGEST].decode(errors="ignore").encode() + b"\n")
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())

    async def flush(self) -> None:
        """Return when everything so far is in the file."""
        while self._flusher is not None:
            await asyncio.wait({self._flusher})

    async def _flush(self) -> None:
        try:
            while self._pending:
                data = b"".join(self._pending)
                self._pending.clear()
                self._full = await asyncio.to_thread(_append, self._path, data)
        except OSError as error:
            self._pending.clear()
            _LOG.warning("cannot write the job's log %s: %s", self._path, error)
        finally:
            self._flusher = None


def _append(path: Path, data: bytes) -> bool:
    """Append to the file; answers whether it is full now."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        room = LIMIT - os.fstat(file).st_size
        if len(data) < room:
            _write(file, data)
            return False
        end = f"{_FULL}\n".encode()
        if room >= len(end):
            kept = data[: room - len(end)]
            _write(file, kept[: kept.rfind(b"\n") + 1] + end)
        return True
    finally:
        os.close(file)


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


class LogFolder:
    """All logs of a house's jobs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """Make the folder, for its owner only; blocking."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def open(self, job: str) -> JobLog:
        return JobLog(self._path(job))

    async def read(self, job: str) -> list[str]:
        """Its lines; none when it has no log."""

        def read() -> list[str]:
            try:
                text = self._path(job).read_text(errors="replace")
            except FileNotFoundError:
                return []
            # Not splitlines: it would also break at form feeds and the like within a line.
            return text.removesuffix("\n").split("\n") if text else []

        return await asyncio.to_thread(read)

    def delete(self, jobs: Iterable[str]) -> None:
        """Blocking."""
        for job in jobs:
            self._path(job).unlink(missing_ok=True)

    def jobs(self) -> set[str]:
        """Ids of the jobs that have a log here; blocking."""
        return {path.stem for path in self._folder.glob("*.log")}

    def _path(self, job: str) -> Path:
        return self._folder / f"{job}.log"
