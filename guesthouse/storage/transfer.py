"""Bringing a file into a folder of ours the cheapest safe way, and what its content is.

The ladder: a reflink (FICLONE: shares blocks, copies on write), a hard link (shares the file, so
only for files that nobody may write), copy_file_range within the kernel, read and write.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from guesthouse.errors import Cancelled, InvalidInput
from guesthouse.storage.durable import FROZEN_FILE, temporary_beside

FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_CHUNK = 8 << 20
_ELSEWHERE = frozenset(
    {errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM}
)
"""What the kernel answers when it cannot share between these two files."""
_UNLINKABLE = _ELSEWHERE | {errno.EMLINK, errno.EACCES}

T = TypeVar("T")
Progress = Callable[[float], None]
"""Told the fraction that is done, 0 to 1."""


class Way(StrEnum):
    """How a file may be brought in.

    `move`: the source is given away and vanishes. `link`: the source stays and may share its file
    with the target for ever; it must be frozen. `copy`: the source stays and shares nothing but,
    where the file system can, blocks.
    """

    MOVE = "move"
    LINK = "link"
    COPY = "copy"


async def in_thread(work: Callable[[threading.Event], T]) -> T:
    """Run blocking `work` in a thread. On cancellation its event is set and its end awaited, so
    that nothing goes on writing behind the canceller's back.
    """
    stop = threading.Event()
    task = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # marks it as seen; the cancellation is what counts
        raise


def on_loop(progress: Progress | None) -> Progress:
    """A progress callback that a thread may call, for one that belongs to the running loop."""
    if progress is None:
        return lambda fraction: None
    loop, tell = asyncio.get_running_loop(), progress

    def forward(fraction: float) -> None:
        loop.call_soon_threadsafe(tell, fraction)

    return forward


def can_link(source: Path, target_folder: Path) -> bool:
    """Whether a hard link is safe: a frozen regular file of ours on the same file system."""
    facts = source.lstat()
    return (
        stat.S_ISREG(facts.st_mode)
        and stat.S_IMODE(facts.st_mode) == FROZEN_FILE
        and facts.st_uid == os.geteuid()
        and facts.st_dev == target_folder.stat().st_dev
    )


def bring(
    source: Path | int,
    target: Path,
    *,
    share: bool,
    progress: Progress,
    stop: threading.Event,
) -> str:
    """Make `target`, which must not exist, with the content of `source`.

    :param share: a hard link will do.
    :return: `reflinked`, `linked` or `copied`.
    :raise OSError: ENOSPC and the like, with `target` removed. :raise Cancelled: `stop` was set.
    """
    with _opened(source) as reader:
        writer = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if _reflink(reader, writer):
                how = "reflinked"
            elif share and isinstance(source, Path) and _link(source, target):
                how = "linked"
            else:
                _copy(reader, writer, progress, stop)
                how = "copied"
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        finally:
            os.close(writer)
    progress(1.0)
    return how


def sha256_of(source: Path | int, *, progress: Progress, stop: threading.Event) -> str:
    """SHA-256 of the whole content, in hexadecimal. :raise Cancelled: `stop` was set."""
    digest = hashlib.sha256()
    with _opened(source) as reader:
        size, at = os.fstat(reader).st_size, 0
        while block := os.pread(reader, _CHUNK, at):
            _check(stop)
            digest.update(block)
            at += len(block)
            progress(min(1.0, at / max(size, 1)))
    return digest.hexdigest()


@contextmanager
def _opened(source: Path | int) -> Iterator[int]:
    """A descriptor for reading `source`; one that was given stays open.

    :raise InvalidInput: it is no regular file.
    """
    if isinstance(source, int):
        fd = source
    else:
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidInput(f"{source} is not a regular file.", hint="Give a disk image's file.")
        yield fd
    finally:
        if not isinstance(source, int):
            os.close(fd)


def _reflink(reader: int, writer: int) -> bool:
    try:
        fcntl.ioctl(writer, FICLONE, reader)
    except OSError as error:
        if error.errno in _ELSEWHERE:
            return False
        raise
    return True


def _link(source: Path, target: Path) -> bool:
    """Replace the new, empty `target` by a hard link, if that is safe and possible."""
    if not can_link(source, target.parent):
        return False
    beside = temporary_beside(target)
    try:
        beside.hardlink_to(source)
    except OSError as error:
        if error.errno in _UNLINKABLE:
            return False
        raise
    beside.rename(target)
    return True


def _copy(reader: int, writer: int, progress: Progress, stop: threading.Event) -> None:
    """Copy data and keep the holes."""
    size = os.fstat(reader).st_size
    os.ftruncate(writer, size)
    move = _in_kernel
    for start, end in _extents(reader, size):
        at = start
        while at < end:
            _check(stop)
            done = move(reader, writer, at, min(_CHUNK, end - at))
            if done < 0:
                move = _by_hand
                continue
            if done == 0:  # the source was cut meanwhile
                raise InvalidInput("The file became shorter while it was being copied.")
            at += done
            progress(at / size)


def _in_kernel(reader: int, writer: int, at: int, count: int) -> int:
    """Bytes copied, or -1 when the kernel cannot copy between these files."""
    try:
        return os.copy_file_range(reader, writer, count, at, at)
    except OSError as error:
        if error.errno in _ELSEWHERE:
            return -1
        raise


def _by_hand(reader: int, writer: int, at: int, count: int) -> int:
    return os.pwrite(writer, os.pread(reader, count, at), at)


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where data is, as (start, end); the whole file where the file system does not tell."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            if error.errno not in _ELSEWHERE:
                raise
            start, end = at, size
        yield start, end
        at = end


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise Cancelled("The copy was cancelled.")
