"""Locks between processes that share a folder but no daemon, by flock(2).

The kernel lets go of a lock when its holder dies, whatever way that happens.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from guesthouse.storage.durable import PRIVATE_FILE, make_folder

_PAUSE = 0.25
"""Seconds between two tries. A blocking flock could not be cancelled."""


@asynccontextmanager
async def file_lock(path: Path, waiting: Callable[[], None] | None = None) -> AsyncIterator[None]:
    """Hold the lock `path`, made when it is absent.

    :param waiting: called once when somebody else holds it.
    """
    fd = try_lock(path)
    if fd is None and waiting is not None:
        waiting()
    while fd is None:
        await asyncio.sleep(_PAUSE)
        fd = try_lock(path)
    try:
        yield
    finally:
        os.close(fd)


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock until it is closed, or None when somebody else holds it."""
    while True:
        make_folder(path.parent)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        if _is_at(fd, path):
            return fd
        # Somebody deleted the folder between our open and our lock: this lock keeps nobody out.
        os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False
