"""Files of this host as a tar stream for a guest."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

Skipped = Callable[[str, str], None]
"""Told (path, why) of what cannot be packed."""


class Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


def total_size(source: Path) -> int:
    """Bytes of the contents of all regular files at and below `source`."""
    return sum(
        info.st_size for _, info in _walk(source, lambda *_: None) if stat.S_ISREG(info.st_mode)
    )


def pack(source: Path, name: str, sink: Sink, *, skipped: Skipped) -> None:
    """Write `source` as a tar stream in which it is called `name`.

    Modes and times travel, owners do not: ids of this host mean nothing in the guest. A link at
    `source` itself is followed, links below it stay links. Called `.`, a folder's contents travel
    without the folder itself.

    :raise OSError: `source` cannot be read, or the sink is closed.
    """
    # The GNU format and not pax: busybox passes over pax headers, and with them over long names.
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.GNU_FORMAT, bufsize=60 << 10) as tar:  # type: ignore[call-overload]  # only `write` is called, the stubs ask for more
        linked: dict[tuple[int, int], str] = {}
        for path, info in _walk(source, skipped):
            below = path.relative_to(source).as_posix()
            if name == below == ".":
                continue
            member = _member(path, info, name if below == "." else f"{name}/{below}")
            if member is None:
                skipped(str(path), "it is a device, pipe or socket")
                continue
            if not member.isreg():
                tar.addfile(member)
                continue
            key = (info.st_dev, info.st_ino)
            if info.st_nlink > 1 and key in linked:
                member.type, member.linkname, member.size = tarfile.LNKTYPE, linked[key], 0
                tar.addfile(member)
                continue
            linked[key] = member.name
            _add_file(tar, path, member, skipped, alone=below == ".")


def _add_file(
    tar: tarfile.TarFile, path: Path, member: tarfile.TarInfo, skipped: Skipped, *, alone: bool
) -> None:
    try:
        file = path.open("rb")
    except OSError as error:
        if alone:
            raise
        skipped(str(path), error.strerror or str(error))
        return
    with file:
        # The header carries the size: a file that grows or shrinks meanwhile is cut or padded.
        member.size = os.fstat(file.fileno()).st_size
        tar.addfile(member, _Exactly(file.fileno(), member.size))


class _Exactly:
    """`size` bytes of a file, filled up with zeros where it turns out shorter."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._left = size

    def read(self, limit: int = -1) -> bytes:
        wanted = self._left if limit < 0 else min(limit, self._left)
        parts = []
        while wanted:
            piece = os.read(self._fd, wanted) or bytes(wanted)
            parts.append(piece)
            wanted -= len(piece)
            self._left -= len(piece)
        return b"".join(parts)


def _walk(source: Path, skipped: Skipped) -> Iterator[tuple[Path, os.stat_result]]:
    """`source` and all below it. What a folder holds follows it at once: tar sets a folder's time
    when the next entry lies elsewhere, and what came after that would change it again."""
    info = source.stat()
    yield source, info
    if not stat.S_ISDIR(info.st_mode):
        return
    waiting = [iter(sorted(source.iterdir()))]
    while waiting:
        path = next(waiting[-1], None)
        if path is None:
            waiting.pop()
            continue
        try:
            info = path.lstat()
            below = sorted(path.iterdir()) if stat.S_ISDIR(info.st_mode) else []
        except OSError as error:
            skipped(str(path), error.strerror or str(error))
            continue
        yield path, info
        waiting.append(iter(below))


def _member(path: Path, info: os.stat_result, name: str) -> tarfile.TarInfo | None:
    member = tarfile.TarInfo(name)
    member.mode = stat.S_IMODE(info.st_mode) & 0o777
    member.mtime = info.st_mtime
    member.uname = member.gname = "root"
    if stat.S_ISDIR(info.st_mode):
        member.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(info.st_mode):
        member.type, member.linkname = tarfile.SYMTYPE, str(path.readlink())
    elif not stat.S_ISREG(info.st_mode):
        return None
    return member
