"""What is done to the tables: blocking functions that run in the store's own threads."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from guesthouse.errors import GuesthouseError, InvalidInput, NotFound, RevisionConflict
from guesthouse.store.contract import (
    ABSENT,
    MAX_OPS,
    MAX_VALUE,
    Change,
    Delete,
    Entry,
    Lease,
    Listing,
    Op,
    Put,
)
from guesthouse.store.sqlite_errors import explain, explained
from guesthouse.store.watching import compacted

HISTORY_PAGE = 500
"""Transactions of history that one read fetches."""


class Applied(NamedTuple):
    """What one transaction did. :ivar revision: the store's revision after it."""

    revision: int
    changes: list[Change]


Work = Callable[[sqlite3.Connection], Applied]
"""One transaction: it runs between a savepoint and its release."""


def check_ops(ops: Sequence[Op]) -> None:
    """:raise InvalidInput: more or larger than the contract allows, or a key twice."""
    if len(ops) > MAX_OPS:
        raise InvalidInput(f"{len(ops)} operations in one transaction; {MAX_OPS} are possible.")
    seen: set[str] = set()
    for op in ops:
        if op.key in seen:
            raise InvalidInput(f"The key {op.key!r} stands twice in one transaction.", key=op.key)
        seen.add(op.key)
        if not op.key.isprintable() or not op.key:  # surrogates are not printable either
            raise InvalidInput(f"{op.key!r} cannot be a key.", key=op.key)
        if isinstance(op, Put) and len(op.value) > MAX_VALUE:
            raise InvalidInput(
                f"The value of {op.key!r} has {len(op.value)} bytes; {MAX_VALUE} are possible.",
                key=op.key,
            )


def write_ops(ops: Sequence[Op]) -> Work:
    """:raise RevisionConflict: :raise NotFound: from the work, an unknown lease."""

    def work(connection: sqlite3.Connection) -> Applied:
        present: dict[str, tuple[int, int]] = {}
        for op in ops:
            row = connection.execute(
                "SELECT revision, created FROM entries WHERE key = ?", (op.key,)
            ).fetchone()
            present[op.key] = row or (ABSENT, ABSENT)
            _expect(op, present[op.key][0])
        writes = [op for op in ops if _writes(op, present[op.key][0])]
        if not writes:
            return Applied(revision(connection), [])
        number = _next_revision(connection)
        changes = []
        for op in writes:
            if isinstance(op, Put):
                _put(connection, op, number, present[op.key][1] or number)
                changes.append(Change(op.key, op.value, number))
            else:
                connection.execute("DELETE FROM entries WHERE key = ?", (op.key,))
                changes.append(Change(op.key, None, number))
        _remember(connection, changes)
        return Applied(number, changes)

    return work


def _expect(op: Op, present: int) -> None:
    if op.expect is not None and op.expect != present:
        raise RevisionConflict(
            f"{op.key} is at revision {present}, not {op.expect}: it was changed meanwhile."
            if present
            else f"{op.key} does not exist any more.",
            hint="Read it again and repeat the change.",
            key=op.key,
            revision=present,
        )


def _writes(op: Op, present: int) -> bool:
    return isinstance(op, Put) or (isinstance(op, Delete) and present != ABSENT)


def _put(connection: sqlite3.Connection, op: Put, number: int, created: int) -> None:
    if op.lease and not _has_lease(connection, op.lease):
        raise unknown_lease(op.lease)
    connection.execute(
        "INSERT INTO entries VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
        "value = excluded.value, revision = excluded.revision, lease = excluded.lease",
        (op.key, op.value, number, created, op.lease),
    )


def _remember(connection: sqlite3.Connection, changes: Sequence[Change]) -> None:
    connection.executemany(
        "INSERT INTO changes VALUES (?, ?, ?, ?)",
        [(c.revision, position, c.key, c.value) for position, c in enumerate(changes)],
    )


def revision(connection: sqlite3.Connection) -> int:
    return _meta(connection, "revision")


def _meta(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return int(row[0])


def _next_revision(connection: sqlite3.Connection) -> int:
    rows = connection.execute(
        "UPDATE meta SET value = value + 1 WHERE name = 'revision' RETURNING value"
    ).fetchall()
    return int(rows[0][0])


def unknown_lease(lease: str) -> NotFound:
    return NotFound(f"There is no lease {lease}: it has expired.", lease=lease)


def _has_lease(connection: sqlite3.Connection, lease: str) -> bool:
    found = connection.execute("SELECT 1 FROM leases WHERE id = ?", (lease,)).fetchone()
    return found is not None


def write_lease(lease: Lease, expires: float) -> Work:
    """Grant or prolong. :param expires: seconds since the epoch, for the next start."""

    def work(connection: sqlite3.Connection) -> Applied:
        connection.execute(
            "INSERT INTO leases VALUES (?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET expires = excluded.expires",
            (lease.id, lease.owner, lease.ttl, expires),
        )
        return Applied(revision(connection), [])

    return work


def end_leases(ids: Sequence[str]) -> Work:
    """Delete leases and their keys, as one ordinary change."""

    def work(connection: sqlite3.Connection) -> Applied:
        keys: list[str] = []
        for lease in ids:
            keys += (
                row[0]
                for row in connection.execute(
                    "SELECT key FROM entries WHERE lease = ? ORDER BY key", (lease,)
                )
            )
            connection.execute("DELETE FROM leases WHERE id = ?", (lease,))
        if not keys:
            return Applied(revision(connection), [])
        number = _next_revision(connection)
        connection.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in keys])
        changes = [Change(key, None, number) for key in keys]
        _remember(connection, changes)
        return Applied(number, changes)

    return work


def stored_leases(connection: sqlite3.Connection) -> list[tuple[Lease, float]]:
    """Every lease with the wall-clock time at which it expires."""
    rows = connection.execute("SELECT id, owner, ttl, expires FROM leases").fetchall()
    return [(Lease(row[0], row[1], row[2]), row[3]) for row in rows]


def run_batch(
    connection: sqlite3.Connection, path: Path, batch: Sequence[Work], history: int
) -> list[Applied | GuesthouseError]:
    """Run several transactions under one fsync; each has its own outcome.

    When the disk refuses the whole batch, each is tried alone, since a smaller one may fit.
    """
    try:
        return _run_together(connection, batch, history)
    except sqlite3.Error as error:
        if len(batch) == 1:
            return [explain(error, path)]
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return [run_batch(connection, path, [work], history)[0] for work in batch]


def _run_together(
    connection: sqlite3.Connection, batch: Sequence[Work], history: int
) -> list[Applied | GuesthouseError]:
    outcomes: list[Applied | GuesthouseError] = []
    connection.execute("BEGIN IMMEDIATE")
    for work in batch:
        connection.execute("SAVEPOINT one")
        try:
            outcomes.append(work(connection))
        except GuesthouseError as error:
            connection.execute("ROLLBACK TO one")
            outcomes.append(error)
        connection.execute("RELEASE one")
    _compact(connection, history)
    connection.execute("COMMIT")
    return outcomes


def _compact(connection: sqlite3.Connection, history: int) -> None:
    # In portions of a tenth, so that most commits have nothing to delete.
    upto = revision(connection) - history
    if upto - _meta(connection, "compacted") > history // 10:
        connection.execute("DELETE FROM changes WHERE revision <= ?", (upto,))
        connection.execute("UPDATE meta SET value = ? WHERE name = 'compacted'", (upto,))


def read_entry(connection: sqlite3.Connection, path: Path, key: str) -> tuple[Entry | None, int]:
    """The entry and the revision of the store at which it was read."""
    with explained(path), _Snapshot(connection):
        row = connection.execute(
            "SELECT key, value, revision, created FROM entries WHERE key = ?", (key,)
        ).fetchone()
        return (Entry(*row) if row else None), revision(connection)


def read_listing(connection: sqlite3.Connection, path: Path, prefix: str) -> Listing:
    with explained(path), _Snapshot(connection):
        upper = after_prefix(prefix)
        rows = connection.execute(
            "SELECT key, value, revision, created FROM entries "
            "WHERE key >= ? AND (? IS NULL OR key < ?) ORDER BY key",
            (prefix, upper, upper),
        ).fetchall()
        return Listing([Entry(*row) for row in rows], revision(connection))


def read_history(
    connection: sqlite3.Connection, path: Path, after: int, upto: int
) -> list[list[Change]]:
    """The next transactions with after < revision <= upto.

    :raise Compacted: `after` is older than what is kept.
    """
    with explained(path), _Snapshot(connection):
        oldest = _meta(connection, "compacted")
        if after < oldest:
            raise compacted(after, oldest)
        rows = connection.execute(
            "SELECT key, value, revision FROM changes WHERE revision > ? AND revision <= ? "
            "ORDER BY revision, position",
            (after, min(upto, after + HISTORY_PAGE)),
        ).fetchall()
    transactions: list[list[Change]] = []
    for row in rows:
        change = Change(*row)
        if transactions and transactions[-1][0].revision == change.revision:
            transactions[-1].append(change)
        else:
            transactions.append([change])
    return transactions


def after_prefix(prefix: str) -> str | None:
    """The least key greater than all that start with `prefix`; None when there is none.

    SQLite compares text by its UTF-8 bytes, which order like code points.
    """
    for index in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[index]) + 1
        if code == 0xD800:  # surrogates are not text
            code = 0xE000
        if code <= 0x10FFFF:
            return prefix[:index] + chr(code)
    return None


class _Snapshot:
    """A read transaction: everything in it sees the same revision."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN")

    def __exit__(self, *failure: object) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
