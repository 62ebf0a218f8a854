"""What SQLite's errors mean to the house."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guesthouse.errors import CorruptStore, GuesthouseError, NoSpace, Unavailable
from guesthouse.store.filesystem import free_bytes

_PRIMARY = 0xFF  # extended result codes keep the primary one in their low byte
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_SMALL = 1 << 20


def corrupt(path: Path, why: str) -> CorruptStore:
    return CorruptStore(
        f"The database {path} is damaged: {why}.",
        hint="Nothing was changed. 'guest recover' moves it aside and builds a new one from the "
        "copies beside the disks; or put a backup in its place.",
        path=str(path),
    )


def explain(error: sqlite3.Error, path: Path) -> GuesthouseError:
    """The error of ours that `error` means."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & _PRIMARY if isinstance(code, int) else None
    if primary in _DAMAGE:
        return corrupt(path, str(error))
    # Where a write fails for want of room SQLite says FULL, but growing its shared memory file or
    # hitting a quota surfaces as a plain I/O error.
    if primary == sqlite3.SQLITE_FULL or (
        primary == sqlite3.SQLITE_IOERR and free_bytes(path.parent) < _SMALL
    ):
        return _no_space(path)
    return Unavailable(
        f"The database {path} cannot be used: {error} ({getattr(error, 'sqlite_errorname', '?')}).",
        hint="Look at the disk and at the permissions of the state folder.",
        path=str(path),
    )


def _no_space(path: Path) -> NoSpace:
    return NoSpace(
        f"The disk that holds {path} is full; nothing was written.",
        hint="Free some space (guest image rm, guest rm), then try again.",
        path=str(path.parent),
        free=free_bytes(path.parent),
    )


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the files around it into ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, path) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(path) from error
        raise Unavailable(
            f"The database {path} cannot be used: {error.strerror or error}.",
            hint="Look at the disk and at the permissions of the state folder.",
            path=str(path),
        ) from error
