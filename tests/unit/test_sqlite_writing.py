"""Writing: a full disk, shared fsyncs, cancelled callers, compaction, text as keys."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guesthouse.errors import Compacted, NoSpace, RevisionConflict, Unavailable
from guesthouse.store import sqlite_transactions
from guesthouse.store.contract import ABSENT, Delete, Put
from guesthouse.store.sqlite import SqliteStore
from guesthouse.store.sqlite_transactions import after_prefix

BIG = 100_000


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "guesthouse.db", history=100)
    yield opened
    await opened.close()


async def keys(store: SqliteStore) -> list[str]:
    return [entry.key for entry in (await store.list("")).entries]


async def fill_up(store: SqliteStore) -> int:
    """Write until nothing fits any more; answers how many entries did."""
    for n in range(1000):
        try:
            await store.commit([Put(f"fill/{n:03}", os.urandom(BIG))])
        except NoSpace as error:
            assert error.hint
            return n
    raise AssertionError("the disk does not fill up")


async def test_a_full_database_refuses_and_goes_on(store: SqliteStore) -> None:
    writer = store._database.writer
    assert writer is not None
    pages = writer.execute("PRAGMA page_count").fetchone()[0]
    writer.execute(f"PRAGMA max_page_count = {pages + 200}")
    fitted = await fill_up(store)
    assert fitted > 0
    before = await store.list("")
    assert len(before.entries) == fitted
    with pytest.raises(NoSpace):
        await store.commit([Put("a", b"small"), Put("b", os.urandom(BIG * 8))])
    assert await store.list("") == before
    writer.execute("PRAGMA max_page_count = 100000")
    assert await store.commit([Put("a", b"")]) == before.revision + 1


async def test_small_transactions_fit_when_their_batch_does_not(store: SqliteStore) -> None:
    writer = store._database.writer
    assert writer is not None
    pages = writer.execute("PRAGMA page_count").fetchone()[0]
    writer.execute(f"PRAGMA max_page_count = {pages + 60}")
    outcomes = await asyncio.gather(
        store.commit([Put("small/1", b"")]),
        store.commit([Put("big", os.urandom(BIG * 10))]),
        store.commit([Put("small/2", b"")]),
        store.commit([Put("small/1", b"", expect=ABSENT)]),
        return_exceptions=True,
    )
    assert [type(o) for o in outcomes] == [int, NoSpace, int, RevisionConflict]
    assert await keys(store) == ["small/1", "small/2"]
    assert store.revision == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "guesthouse-test", str(folder)]
    subprocess.run(mount, check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.root
async def test_a_really_full_disk(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    store = await SqliteStore.open(small_disk / "guesthouse.db")
    await store.commit([Put("first", b"1")])
    with ballast.open("wb") as file, pytest.raises(OSError, match="No space"):
        while True:
            os.write(file.fileno(), b"x" * 4096)
    await fill_up(store)
    before = await store.list("")
    with pytest.raises(NoSpace):
        await store.commit([Put("big", os.urandom(BIG))])
    assert await store.list("") == before
    ballast.unlink()
    assert await store.commit([Put("big", os.urandom(BIG))]) == before.revision + 1
    await store.close()
    again = await SqliteStore.open(small_disk / "guesthouse.db")
    assert "big" in await keys(again)
    await again.close()


@pytest.mark.root
async def test_a_full_disk_at_the_first_start(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"x" * (4 << 20))
    with pytest.raises(NoSpace):
        await SqliteStore.open(small_disk / "guesthouse.db")
    (small_disk / "ballast").unlink()
    store = await SqliteStore.open(small_disk / "guesthouse.db")
    assert await store.commit([Put("a", b"")]) == 1
    await store.close()


async def test_waiting_transactions_share_an_fsync(store: SqliteStore) -> None:
    writer = store._database.writer
    assert writer is not None
    commits = []
    writer.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
    await asyncio.gather(*(store.commit([Put(f"k{n}", b"")]) for n in range(64)))
    writer.set_trace_callback(None)
    assert len(commits) < 10
    assert store.revision == 64


async def test_a_cancelled_caller_does_not_disturb_others(store: SqliteStore) -> None:
    first = asyncio.create_task(store.commit([Put("a", b"1")]))
    second = asyncio.create_task(store.commit([Put("a", b"2")]))
    third = asyncio.create_task(store.commit([Put("b", b"3")]))
    await asyncio.sleep(0)
    second.cancel()
    await first
    await third
    with pytest.raises(asyncio.CancelledError):
        await second
    entry = await store.get("a")
    assert entry is not None
    assert entry.value in {b"1", b"2"}
    assert await keys(store) == ["a", "b"]


async def test_a_defect_in_one_transaction_fails_it_and_no_more(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(connection: sqlite3.Connection) -> sqlite_transactions.Applied:
        connection.execute("DELETE FROM entries")
        raise ZeroDivisionError

    await store.commit([Put("a", b"")])
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_transactions, "write_ops", lambda ops: broken)
        with pytest.raises(Exception, match="ZeroDivisionError"):
            await store.commit([Put("b", b"")])
    assert await keys(store) == ["a"]
    assert await store.commit([Put("c", b"")]) == 2


async def test_history_is_compacted_on_disk(store: SqliteStore) -> None:
    for n in range(1000):
        await store.commit([Put("k", b"%d" % n)])
    writer = store._database.writer
    assert writer is not None
    kept = writer.execute("SELECT count(*), min(revision) FROM changes").fetchone()
    assert 100 <= kept[0] <= 111
    assert kept[1] == 1000 - kept[0] + 1
    with pytest.raises(Compacted):
        async with store.watch("", since=kept[1] - 2):
            pass
    async with store.watch("", since=kept[1] - 1) as changes:
        assert (await anext(changes))[0].revision == kept[1]


async def test_long_history_comes_in_pages(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_transactions, "HISTORY_PAGE", 7)
    for n in range(50):
        await store.commit([Put("mine" if n % 9 == 0 else "other", b"%d" % n)])
    async with store.watch("mine", since=0) as changes:
        await store.commit([Put("mine", b"last")])
        got = [(await anext(changes))[0].value for _ in range(7)]
    assert got == [b"0", b"9", b"18", b"27", b"36", b"45", b"last"]


async def test_reading_what_was_never_written(store: SqliteStore) -> None:
    await store.commit([Put("a", b"")])
    with pytest.raises(Unavailable, match="revision 1, before 5"):
        await store.get("a", at_least=5)
    with pytest.raises(Unavailable):
        await store.list("", at_least=5)


@given(prefix=st.text(max_size=4), key=st.text(max_size=6))
def test_the_end_of_a_prefix(prefix: str, key: str) -> None:
    upper = after_prefix(prefix)
    inside = prefix <= key and (upper is None or key < upper)
    assert inside == key.startswith(prefix)


KEYS = st.sampled_from(["a", "a/1", "a/2", "b", "b/é"])


@settings(max_examples=25, deadline=None)
@given(
    transactions=st.lists(
        st.dictionaries(KEYS, st.none() | st.binary(max_size=4), min_size=1), max_size=12
    ),
    reopen=st.integers(0, 12),
)
def test_like_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory,
    transactions: list[dict[str, bytes | None]],
    reopen: int,
) -> None:
    """Against a model: entries, revisions, and a watcher that sees everything from the start."""
    path = tmp_path_factory.mktemp("model") / "guesthouse.db"

    async def scenario() -> None:
        model: dict[str, tuple[bytes, int, int]] = {}
        revision, told = 0, []
        store = await SqliteStore.open(path)
        for n, transaction in enumerate(transactions):
            if n == reopen:
                await store.close()
                store = await SqliteStore.open(path)
            ops = [
                Delete(key, model.get(key, (b"", 0, 0))[1])
                if value is None
                else Put(key, value, model.get(key, (b"", 0, 0))[1])
                for key, value in transaction.items()
            ]
            effective = {k: v for k, v in transaction.items() if v is not None or k in model}
            revision += bool(effective)
            for key, value in effective.items():
                told.append((key, value, revision))
                if value is None:
                    del model[key]
                else:
                    model[key] = (value, revision, model.get(key, (b"", 0, revision))[2])
            assert await store.commit(ops) == revision
        listing = await store.list("")
        assert {e.key: e[1:] for e in listing.entries} == model
        async with store.watch("", since=0) as changes:
            seen = []
            while len(seen) < len(told):
                seen += [tuple(change) for change in await anext(changes)]
        assert seen == told
        await store.close()

    asyncio.run(scenario())
