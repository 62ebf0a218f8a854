"""Opening a database: new, old, newer, damaged, read-only, remote, in use."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guesthouse.errors import CorruptStore, HostLacks, ReadOnlyStore, Unavailable
from guesthouse.model.document import SCHEMA
from guesthouse.store import filesystem, sqlite_schema
from guesthouse.store.contract import Check, Put
from guesthouse.store.sqlite import SqliteStore

CRASH = """
import asyncio, os, pathlib, sys
from guesthouse.store.contract import Put
from guesthouse.store.sqlite import SqliteStore

async def main():
    store = await SqliteStore.open(pathlib.Path(sys.argv[1]))
    await store.commit([Put("a", b"1")])
    os._exit(0)

asyncio.run(main())
"""
"""Leaves a database whose newest transaction is in its log alone."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "guesthouse.db"


def command(*words: str) -> None:
    subprocess.run(words, check=True)


async def fill(path: Path, **entries: bytes) -> int:
    store = await SqliteStore.open(path)
    revision = await store.commit([Put(key, value) for key, value in entries.items()])
    await store.close()
    return revision


async def test_files_are_for_their_owner_only(path: Path) -> None:
    before = os.umask(0)
    try:
        store = await SqliteStore.open(path)
        await store.commit([Put("a", b"")])
        modes = {p.name: p.stat().st_mode & 0o777 for p in path.parent.iterdir()}
    finally:
        os.umask(before)
    await store.close()
    assert modes == dict.fromkeys(
        ["guesthouse.db", "guesthouse.db-wal", "guesthouse.db-shm", "guesthouse.db.lock"], 0o600
    )
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_the_database_is_durable_and_ours(path: Path) -> None:
    store = await SqliteStore.open(path)
    writer = store._database.writer
    assert writer is not None
    found = {
        name: writer.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "user_version", "application_id")
    }
    await store.close()
    assert found == {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "user_version": SCHEMA,
        "application_id": sqlite_schema.APPLICATION_ID,
    }


async def test_one_daemon_per_database(path: Path) -> None:
    store = await SqliteStore.open(path)
    with pytest.raises(Unavailable, match=f"in use by process {os.getpid()}"):
        await SqliteStore.open(path)
    await store.close()
    await (await SqliteStore.open(path)).close()


async def test_a_file_that_was_never_filled_is_new(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    assert await fill(path, a=b"1") == 1


@pytest.mark.parametrize("damage", ["text", "page", "cut", "foreign", "gone"])
async def test_damage_is_reported_and_left_as_it_is(path: Path, damage: str) -> None:
    await fill(path, **{f"k{n}": os.urandom(4000) for n in range(40)})
    if damage == "text":
        path.write_bytes(b"this is not a database" * 400)
    elif damage == "page":
        data = bytearray(path.read_bytes())
        data[4096:] = b"\xff" * (len(data) - 4096)
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: 4096 * 3])
    elif damage == "foreign":
        path.unlink()
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE mine (x)")
        other.close()
    else:
        path.unlink()
        Path(f"{path}-wal").write_bytes(b"log")
    before = {p.name: p.read_bytes() for p in path.parent.glob("guesthouse.db*")}
    with pytest.raises(CorruptStore, match=r"guesthouse\.db") as caught:
        await SqliteStore.open(path)
    assert "guest recover" in caught.value.hint
    after = {p.name: p.read_bytes() for p in path.parent.glob("guesthouse.db*")}
    assert after.get("guesthouse.db") == before.get("guesthouse.db")
    assert path.exists() is (damage != "gone")


async def test_damage_that_shows_later_is_reported(path: Path) -> None:
    await fill(path, **{f"k{n}": os.urandom(4000) for n in range(40)})
    store = await SqliteStore.open(path)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with pytest.raises(CorruptStore):
        for n in range(40):
            await store.get(f"k{n}")
    await store.close()


async def test_a_newer_database_is_read_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(sqlite_schema, "SCHEMA", SCHEMA + 3)
        revision = await fill(path, a=b"1")
    before = path.read_bytes()
    store = await SqliteStore.open(path)
    assert str(SCHEMA + 3) in store.read_only
    assert "newer" in store.read_only
    assert store.revision == revision
    assert (await store.list("")).entries[0].value == b"1"
    for writing in (
        store.commit([Put("b", b"")]),
        store.commit([Check("a", 1)]),
        store.grant("me", 5),
        store.revoke("x"),
    ):
        with pytest.raises(ReadOnlyStore):
            await writing
    await store.close()
    assert path.read_bytes() == before


async def test_an_older_database_is_copied_aside_and_upgraded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = await fill(path, a=b"1")
    monkeypatch.setattr(sqlite_schema, "SCHEMA", SCHEMA + 2)
    monkeypatch.setattr(
        sqlite_schema,
        "MIGRATIONS",
        {SCHEMA + 1: lambda c: c.execute("ALTER TABLE meta ADD COLUMN note TEXT")},
    )
    for _ in range(2):
        store = await SqliteStore.open(path)
        assert (await store.get("a", at_least=revision)) is not None
        writer = store._database.writer
        assert writer is not None
        assert writer.execute("SELECT note FROM meta").fetchone() == (None,)
        await store.close()
    aside = path.with_name(f"guesthouse.db.schema-{SCHEMA}.bak")
    assert aside.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(sqlite_schema, "SCHEMA", SCHEMA)
    aside.rename(path)
    assert await fill(path, b=b"") == revision + 1


async def test_a_failing_upgrade_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(path, a=b"1")

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("DROP TABLE entries")
        raise sqlite3.OperationalError("no")

    with monkeypatch.context() as newer:
        newer.setattr(sqlite_schema, "SCHEMA", SCHEMA + 1)
        newer.setattr(sqlite_schema, "MIGRATIONS", {SCHEMA: fail})
        with pytest.raises(Unavailable):
            await SqliteStore.open(path)
    store = await SqliteStore.open(path)
    assert store.read_only == ""
    assert (await store.get("a")) is not None
    await store.close()


@pytest.mark.parametrize(("magic", "name"), [(0x6969, "NFS"), (0xFF534D42, "CIFS")])
async def test_remote_file_systems_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, magic: int, name: str
) -> None:
    monkeypatch.setattr(filesystem, "file_system_type", lambda folder: magic)
    with pytest.raises(HostLacks, match=name) as caught:
        await SqliteStore.open(path)
    assert "GUESTHOUSE_STATE" in caught.value.hint
    assert not path.exists()


def test_the_kernel_tells_file_systems_apart() -> None:
    assert filesystem.file_system_type(Path("/proc")) == 0x9FA0  # PROC_SUPER_MAGIC
    with pytest.raises(OSError, match="No such file"):
        filesystem.file_system_type(Path("/proc/nothing-here"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two mebibytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    command("mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "guesthouse-test", str(folder))
    yield folder
    command("umount", "-l", str(folder))


@pytest.mark.root
@pytest.mark.parametrize("clean", [True, False])
async def test_a_read_only_file_system_is_read(small_disk: Path, clean: bool) -> None:
    path = small_disk / "guesthouse.db"
    if clean:
        revision = await fill(path, a=b"1")
    else:
        command(sys.executable, "-c", CRASH, str(path))
        revision = 1
    command("mount", "-o", "remount,ro", str(small_disk))
    store = await SqliteStore.open(path)
    assert "cannot be written" in store.read_only
    assert store.revision == revision
    entry = await store.get("a")
    assert entry is not None
    assert entry.value == b"1"
    with pytest.raises(ReadOnlyStore):
        await store.commit([Put("b", b"")])
    scratch = store._database.scratch
    assert scratch is not None
    await store.close()
    assert not scratch.exists()


@pytest.mark.root
async def test_a_read_only_file_system_without_a_database(small_disk: Path) -> None:
    command("mount", "-o", "remount,ro", str(small_disk))
    with pytest.raises(HostLacks, match="holds no database"):
        await SqliteStore.open(small_disk / "guesthouse.db")
    with pytest.raises(HostLacks, match="cannot be made"):
        await SqliteStore.open(small_disk / "deeper" / "guesthouse.db")


async def test_a_folder_of_somebody_else_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(path, a=b"1")
    # Root may write everywhere, so what access(2) says of others is told here.
    monkeypatch.setattr(sqlite_schema.os, "access", lambda name, mode: mode != os.W_OK)
    store = await SqliteStore.open(path)
    assert "cannot be written" in store.read_only
    assert (await store.get("a")) is not None
    await store.close()


async def test_closing_finishes_what_is_queued(path: Path) -> None:
    store = await SqliteStore.open(path)
    writing = [asyncio.create_task(store.commit([Put(f"k{n}", b"")])) for n in range(200)]
    await asyncio.sleep(0)
    await store.close()
    assert sorted(await asyncio.gather(*writing)) == list(range(1, 201))
    for refused in (store.commit([Put("x", b"")]), store.get("k1"), store.list("")):
        with pytest.raises(Unavailable):
            await refused
    with pytest.raises(Unavailable):
        async with store.watch("", since=0):
            pass
    await store.close()
    again = await SqliteStore.open(path)
    assert len((await again.list("")).entries) == 200
    await again.close()
