"""The tables of the database, their upgrades, and how a database file is opened safely."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from guesthouse.errors import HostLacks, ReadOnlyStore, Unavailable
from guesthouse.model.document import SCHEMA
from guesthouse.store.filesystem import refuse_remote, sync_folder
from guesthouse.store.sqlite_errors import corrupt, explained

APPLICATION_ID = 0x47484F53  # "GHOS", in the file's header (PRAGMA application_id)

TABLES = (
    """CREATE TABLE entries (
        key TEXT PRIMARY KEY NOT NULL,
        value BLOB NOT NULL,
        revision INTEGER NOT NULL,
        created INTEGER NOT NULL,
        lease TEXT NOT NULL
    ) STRICT""",
    "CREATE INDEX entries_by_lease ON entries (lease) WHERE lease <> ''",
    """CREATE TABLE changes (
        revision INTEGER NOT NULL,
        position INTEGER NOT NULL,
        key TEXT NOT NULL,
        value BLOB,
        PRIMARY KEY (revision, position)
    ) STRICT""",
    """CREATE TABLE leases (
        id TEXT PRIMARY KEY NOT NULL,
        owner TEXT NOT NULL,
        ttl REAL NOT NULL,
        expires REAL NOT NULL
    ) STRICT""",
    "CREATE TABLE meta (name TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL) STRICT",
    "INSERT INTO meta VALUES ('revision', 0), ('compacted', 0)",
)

MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {}
"""Changes of the tables from schema N to N + 1. `user_version` is the documents' schema, which
rises with every change of a document's shape or of the tables; most steps change no table."""


class Database(NamedTuple):
    """An opened database. :ivar writer: None when it is read-only, for the reason `read_only`.

    :ivar lock: descriptor that keeps other daemons out. :ivar scratch: folder to delete on closing.
    """

    path: Path
    writer: sqlite3.Connection | None
    reader: sqlite3.Connection
    read_only: str
    lock: int | None
    scratch: Path | None

    def close(self) -> None:
        self.reader.close()
        if self.writer is not None:
            self.writer.close()
        if self.lock is not None:
            os.close(self.lock)
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)


def open_database(path: Path) -> Database:
    """Open or make the database at `path`; blocking.

    :raise HostLacks: on a network file system, or a read-only one that holds no database.
    :raise CorruptStore: damaged, or not a database of ours. It is left as it is.
    :raise Unavailable: another process uses it. :raise NoSpace: the disk is full.
    """
    folder = path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise HostLacks(
            f"The state folder {folder} cannot be made: {error.strerror}.",
            hint="Set GUESTHOUSE_STATE to a folder that you may write.",
            capability="local-state",
        ) from error
    with explained(path):
        refuse_remote(folder)
        if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
            return _open_copy(path)
        lock = _lock(path)
        try:
            return _open_writable(path, lock)
        except BaseException:
            os.close(lock)
            raise


def _lock(path: Path) -> int:
    """One daemon per database: two would not see each other's changes.

    The lock is on a file beside the database, since closing any descriptor of the database itself
    would drop SQLite's own POSIX locks (fcntl(2)).
    """
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise Unavailable(
            f"The database {path} is in use by process {holder or '(unknown)'}.",
            hint="Another daemon runs on this state folder: guest daemon status",
            path=str(path),
        ) from None
    with contextlib.suppress(OSError):  # only a note for people; a full disk may refuse it
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    return lock


def _open_writable(path: Path, lock: int) -> Database:
    if not path.exists():
        if Path(f"{path}-wal").exists():
            raise corrupt(path, "the file is gone while its log is still there")
        # Made by us first, so that the mode is right from the beginning; SQLite gives its -wal and
        # -shm files the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        sync_folder(path.parent)
    writer = _connect(path)
    try:
        schema = _check_kind(writer, path)
        if schema > SCHEMA:
            writer.close()
            return _open_newer(path, schema, lock)
        _settle(writer)
        if schema == 0:
            _create(writer)
            sync_folder(path.parent)
        else:
            _check_pages(writer, path)
            if schema < SCHEMA:
                _upgrade(writer, path, schema)
        return Database(path, writer, _reader(path), "", lock, None)
    except BaseException:
        writer.close()
        raise


def _connect(path: Path, *, mode: str = "rw") -> sqlite3.Connection:
    # Each connection is used by one thread of ours at a time; opening happens in another.
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=10,
    )


def _reader(path: Path, *, mode: str = "rw") -> sqlite3.Connection:
    reader = _connect(path, mode=mode)
    reader.execute("PRAGMA query_only = ON")
    return reader


def _check_kind(connection: sqlite3.Connection, path: Path) -> int:
    """The schema of the database; 0 when it is new and empty."""
    number = _pragma(connection, "application_id")
    schema = _pragma(connection, "user_version")
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if schema == 0 and not tables:
        return 0
    if number != APPLICATION_ID or schema < 1:
        raise corrupt(path, "it is a database, but not one of Guesthouse")
    return schema


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _settle(connection: sqlite3.Connection) -> None:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise HostLacks(
            "The file system of the state folder cannot share memory between processes.",
            hint="Set GUESTHOUSE_STATE to a folder on a local disk.",
            capability="local-state",
        )
    connection.execute("PRAGMA synchronous = FULL")


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement in TABLES:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA}")
    connection.execute("COMMIT")


def _check_pages(connection: sqlite3.Connection, path: Path) -> None:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise corrupt(path, str(found))


def _upgrade(connection: sqlite3.Connection, path: Path, schema: int) -> None:
    """Copy the database aside, then bring the tables to our schema in one transaction."""
    aside = path.with_name(f"{path.name}.schema-{schema}.bak")
    if not aside.exists():
        part = path.with_name(f"{aside.name}.part")
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        connection.execute("VACUUM INTO ?", (str(part),))
        with part.open("rb") as copy:
            os.fsync(copy.fileno())
        part.rename(aside)
        sync_folder(path.parent)
    connection.execute("BEGIN IMMEDIATE")
    for number in range(schema, SCHEMA):
        if migrate := MIGRATIONS.get(number):
            migrate(connection)
    connection.execute(f"PRAGMA user_version = {SCHEMA}")
    connection.execute("COMMIT")


def _open_newer(path: Path, schema: int, lock: int) -> Database:
    why = (
        f"the database has schema {schema}; this Guesthouse knows up to {SCHEMA}. "
        "Start the newer Guesthouse that wrote it"
    )
    return Database(path, None, _reader(path, mode="ro"), why, lock, None)


def _open_copy(path: Path) -> Database:
    """On a read-only file system SQLite cannot make the files that reading a WAL database needs,
    so a copy elsewhere is read."""
    if not path.exists():
        raise HostLacks(
            f"The state folder {path.parent} cannot be written and holds no database.",
            hint="Set GUESTHOUSE_STATE to a folder that you may write.",
            capability="local-state",
        )
    scratch = Path(tempfile.mkdtemp(prefix="guesthouse-"))
    try:
        copy = scratch / path.name
        shutil.copyfile(path, copy)
        log = Path(f"{path}-wal")
        if log.exists():
            shutil.copyfile(log, f"{copy}-wal")
        reader = _reader(copy)
        if _check_kind(reader, path) == 0:
            raise corrupt(path, "it is empty")
        _check_pages(reader, path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    why = f"the state folder {path.parent} cannot be written"
    return Database(path, None, reader, why, None, scratch)


def refusal(why: str) -> ReadOnlyStore:
    return ReadOnlyStore(
        f"Nothing can be changed: {why}.", hint="Reading goes on working.", reason=why
    )
