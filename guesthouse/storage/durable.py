"""Files that are whole or absent: temporary name, fsync, rename, fsync of the folder.

Everything here blocks; asyncio code calls it through threads. A full disk or an exhausted quota
(ENOSPC, EDQUOT) becomes `NoSpace`, which says how much was needed, how much is free, and where.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from guesthouse.errors import NoSpace
from guesthouse.model.units import format_size

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
FROZEN_FILE = 0o444
"""Of files that nobody may write any more, so that hard links to them stay safe."""
RESERVE = 32 << 20
"""Bytes that stay free after anything large, so that the database and logs can go on."""

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Space(NamedTuple):
    """Bytes of a file system; `free` is what this user may still fill."""

    total: int
    free: int


def space_of(folder: Path) -> Space:
    """Space of the file system that holds `folder`."""
    facts = os.statvfs(folder)
    return Space(facts.f_blocks * facts.f_frsize, facts.f_bavail * facts.f_frsize)


def no_space(folder: Path, needed: int, purpose: str) -> NoSpace:
    """The error for a file system too full for `purpose`; `needed` in bytes, 0 if unknown."""
    free = space_of(folder).free
    wanted = f"{format_size(needed)} needed" if needed else "no room left"
    return NoSpace(
        f"Not enough space to {purpose}: {wanted}, {format_size(free)} free in {folder}.",
        hint="Remove what you no longer need (`guest rm GUEST`, `guest image rm IMAGE`; "
        "the cache of built images may be emptied at any time) or use a larger file system.",
        needed=needed,
        free=free,
        folder=str(folder),
    )


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Check before starting that `needed` bytes fit and `RESERVE` remains.

    :raise NoSpace: they do not.
    """
    if space_of(folder).free < needed + RESERVE:
        raise no_space(folder, needed + RESERVE, purpose)


@contextmanager
def filling(folder: Path, needed: int, purpose: str) -> Iterator[None]:
    """Turn a full disk inside the block into `NoSpace`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise no_space(folder, needed, purpose) from error
        raise


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    """Make the content of `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """Make `path` and its parents, private to this user. Existing folders stay as they are."""
    if not path.is_dir():
        if not path.parent.is_dir():
            make_folder(path.parent)
        with suppress(FileExistsError):
            path.mkdir(mode=PRIVATE_FOLDER)
        fsync_folder(path.parent)


def temporary_beside(target: Path) -> Path:
    """A fresh name in the folder of `target` that `is_temporary` knows."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file of this name is an unfinished one of ours."""
    return _TEMPORARY.fullmatch(name) is not None


def publish(temporary: Path, target: Path, mode: int) -> None:
    """Give a finished file its mode and its name, durably."""
    temporary.chmod(mode)
    fsync_file(temporary)
    temporary.rename(target)
    fsync_folder(target.parent)


def write_file(target: Path, data: bytes, mode: int = PRIVATE_FILE) -> None:
    """Replace `target` by `data`; whoever reads sees the old content or the new one.

    :raise NoSpace: the old content is still there.
    """
    temporary = temporary_beside(target)
    with filling(target.parent, len(data), f"write {target.name}"):
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with open(fd, "wb") as file:
                file.write(data)
            publish(temporary, target, mode)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def remove_file(path: Path) -> int:
    """Remove `path` durably; answers the bytes freed: none if it was not there or is shared."""
    try:
        facts = path.lstat()
        path.unlink()
    except FileNotFoundError:
        return 0
    fsync_folder(path.parent)
    return facts.st_blocks * 512 if facts.st_nlink == 1 else 0


def stale_files(folder: Path, grace: float) -> list[Path]:
    """Unfinished files of ours in `folder` that nobody touched for `grace` seconds."""
    newest = time.time() - grace
    found = []
    for entry in os.scandir(folder):
        if is_temporary(entry.name) and entry.is_file(follow_symlinks=False):
            with suppress(FileNotFoundError):
                if last_touched(entry.stat(follow_symlinks=False)) <= newest:
                    found.append(Path(entry.path))
    return found


def last_touched(facts: os.stat_result) -> float:
    """Seconds since the epoch of the last change, also of a link or a rename.

    A file that was linked in from elsewhere keeps an old mtime, but its ctime is that of the link.
    """
    return max(facts.st_mtime, facts.st_ctime)
