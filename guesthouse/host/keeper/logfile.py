"""Files that grow: the rotating serial log, and the capped stderr of a guest's process.

Writing to a regular file may wait for the disk; that is the one wait the keeper allows itself.
"""

from __future__ import annotations

import os
from pathlib import Path

_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
STDERR_CAP = 1 << 20
_STDERR_KEEP = 256 << 10


class RotatingLog:
    """`path` holds the newest bytes, `path.1` … `path.<keep>` the older ones, none > max_bytes.

    A full disk loses bytes (`lost` counts them), never an exception: a guest must not wait for it.
    """

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        self.lost = 0
        self._path, self._max_bytes, self._keep = path, max_bytes, keep
        self._fd: int | None = None
        self._size = 0

    def append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                self._open()
                if self._size >= self._max_bytes:
                    self._rotate()
                    continue
                assert self._fd is not None
                written = os.write(self._fd, view[: self._max_bytes - self._size])
            except OSError:
                self.lost += len(view)
                self.close()
                return
            self._size += written
            view = view[written:]

    def tail(self, count: int) -> bytes:
        """The last `count` bytes, from the newest file and, if that is short, the one before."""
        newest = read_tail(self._path, count)
        if len(newest) < count and self._keep:
            return read_tail(self._older(1), count - len(newest)) + newest
        return newest

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _older(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _open(self) -> None:
        if self._fd is None:
            self._fd = os.open(self._path, _APPEND, 0o600)
            self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        if not self._keep:
            self._path.unlink()
            return
        for number in range(self._keep - 1, 0, -1):
            if self._older(number).exists():
                self._older(number).replace(self._older(number + 1))
        self._path.replace(self._older(1))


def read_tail(path: Path, count: int) -> bytes:
    """Up to `count` last bytes of a file; nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - count))
            return file.read(count)
    except OSError:
        return b""


def open_stderr(path: Path) -> int:
    """Open a process's stderr for appending; of one that grew too long only the end is kept."""
    try:
        if path.lstat().st_size > STDERR_CAP:
            kept = read_tail(path, _STDERR_KEEP)
            shorter = path.with_name(path.name + ".tmp")
            shorter.unlink(missing_ok=True)
            fd = os.open(shorter, _APPEND | os.O_EXCL, 0o600)
            try:
                os.write(fd, kept)
            finally:
                os.close(fd)
            shorter.replace(path)
    except FileNotFoundError:
        pass
    return os.open(path, _APPEND, 0o600)
