"""Moving a damaged database aside, so that the daemon can begin a new one. Nothing is deleted."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from guesthouse.errors import Conflict, Forbidden
from guesthouse.model.folders import Folders

_PARTS = ("", "-wal", "-shm")
"""What SQLite keeps a database in."""


def set_aside(folders: Folders) -> Path:
    """Give the database of a house, and its log, names that the daemon does not look for.

    :return: where it is now. The log lies beside it.
    :raise Conflict: a daemon uses it. :raise Forbidden: the folder cannot be written.
    """
    database = folders.database
    aside = _unused(database.with_name(f"{database.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"))
    try:
        # The lock that every daemon holds on its database while it runs (store.sqlite_schema).
        lock = os.open(f"{database}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _refused(database, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"The database {database} is in use by a daemon.",
                hint="Stop it first (guests run on): guest daemon stop",
            ) from None
        # The database goes first: a log alone is noticed, should this be interrupted.
        for part in _PARTS:
            path = Path(f"{database}{part}")
            if path.exists():
                path.rename(f"{aside}{part}")
        folder = os.open(database.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _refused(database, error) from error
    finally:
        os.close(lock)
    return aside


def _unused(path: Path) -> Path:
    count, free = 1, path
    while any(Path(f"{free}{part}").exists() for part in _PARTS):
        count += 1
        free = path.with_name(f"{path.name}-{count}")
    return free


def _refused(database: Path, error: OSError) -> Forbidden:
    return Forbidden(
        f"The database {database} cannot be moved aside: {error.strerror}.",
        hint="Check the owner of its folder.",
        path=str(database),
    )
