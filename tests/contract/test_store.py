"""The contract that every store keeps. A new store joins by adding its factory to STORES."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from guesthouse.errors import Compacted, InvalidInput, NotFound, RevisionConflict
from guesthouse.store.contract import (
    ABSENT,
    MAX_OPS,
    MAX_VALUE,
    Change,
    Changes,
    Check,
    Delete,
    Put,
    Store,
)
from guesthouse.store.sqlite import SqliteStore

DEADLINE = 30
HISTORY = 20

StoreFactory = Callable[[Path], Awaitable[Store]]


async def open_sqlite(folder: Path) -> Store:
    return await SqliteStore.open(folder / "guesthouse.db", history=HISTORY)


STORES: dict[str, StoreFactory] = {"sqlite": open_sqlite}
"""Each opens the store of a folder; opening the same folder again finds what was written."""


@pytest.fixture(params=sorted(STORES))
def factory(request: pytest.FixtureRequest) -> StoreFactory:
    return STORES[request.param]


@pytest.fixture
async def store(factory: StoreFactory, tmp_path: Path) -> AsyncIterator[Store]:
    opened = await factory(tmp_path)
    yield opened
    await opened.close()


async def take(changes: Changes, count: int) -> list[list[Change]]:
    async with asyncio.timeout(DEADLINE):
        return [await anext(changes) for _ in range(count)]


async def test_absent_key_is_none(store: Store) -> None:
    assert await store.get("guests/a") is None
    assert (await store.list("")).entries == []


async def test_put_then_get_carries_revisions(store: Store) -> None:
    first = await store.commit([Put("a", b"1")])
    second = await store.commit([Put("a", b"2")])
    assert second == first + 1 == store.revision
    entry = await store.get("a", at_least=second)
    assert entry is not None
    assert (entry.key, entry.value, entry.revision, entry.created) == ("a", b"2", second, first)


async def test_deleted_key_is_created_anew(store: Store) -> None:
    await store.commit([Put("a", b"1")])
    await store.commit([Delete("a")])
    assert await store.get("a") is None
    again = await store.commit([Put("a", b"2", expect=ABSENT)])
    entry = await store.get("a")
    assert entry is not None
    assert entry.created == entry.revision == again


@pytest.mark.parametrize("value", [b"", b"\0\xff" * 100, b"x" * MAX_VALUE])
async def test_any_bytes_come_back(store: Store, value: bytes) -> None:
    await store.commit([Put("a", value)])
    entry = await store.get("a")
    assert entry is not None
    assert entry.value == value


async def test_list_by_prefix_is_sorted_and_exact(store: Store) -> None:
    keys = ["b/2", "a", "b/10", "b", "c/1", "b/é", "b/𐀀", "b0"]
    for key in keys:
        await store.commit([Put(key, key.encode())])
    listing = await store.list("b/")
    assert [e.key for e in listing.entries] == sorted(k for k in keys if k.startswith("b/"))
    assert [e.value for e in listing.entries] == [e.key.encode() for e in listing.entries]
    assert listing.revision == store.revision
    assert [e.key for e in (await store.list("")).entries] == sorted(keys)


@pytest.mark.parametrize("prefix", ["%", "_", "b%", "B/"])
async def test_prefix_is_no_pattern(store: Store, prefix: str) -> None:
    await store.commit([Put("b/1", b"")])
    assert (await store.list(prefix)).entries == []


async def test_expect_absent_loses_to_an_existing_key(store: Store) -> None:
    revision = await store.commit([Put("a", b"1", expect=ABSENT)])
    with pytest.raises(RevisionConflict) as caught:
        await store.commit([Put("a", b"2", expect=ABSENT)])
    assert caught.value.detail == {"key": "a", "revision": revision}


async def test_expect_revision(store: Store) -> None:
    first = await store.commit([Put("a", b"1")])
    second = await store.commit([Put("a", b"2", expect=first)])
    for op in (Put("a", b"3", expect=first), Delete("a", expect=first), Check("a", first)):
        with pytest.raises(RevisionConflict) as caught:
            await store.commit([op])
        assert caught.value.detail == {"key": "a", "revision": second}
    await store.commit([Delete("a", expect=second)])
    with pytest.raises(RevisionConflict) as caught:
        await store.commit([Delete("a", expect=second)])
    assert caught.value.detail == {"key": "a", "revision": 0}


async def test_transaction_is_all_or_nothing(store: Store) -> None:
    await store.commit([Put("a", b"1"), Put("b", b"1")])
    before = store.revision
    with pytest.raises(RevisionConflict):
        await store.commit([Put("a", b"2"), Delete("b"), Put("c", b""), Check("d", 7)])
    listing = await store.list("")
    assert [(e.key, e.value) for e in listing.entries] == [("a", b"1"), ("b", b"1")]
    assert listing.revision == before == store.revision


async def test_transaction_has_one_revision(store: Store) -> None:
    await store.commit([Put("b", b"")])
    revision = await store.commit([Put("a", b""), Delete("b"), Put("c", b"")])
    listing = await store.list("")
    assert [(e.key, e.revision) for e in listing.entries] == [("a", revision), ("c", revision)]


async def test_writing_nothing_raises_no_revision(store: Store) -> None:
    revision = await store.commit([Put("a", b"")])
    assert await store.commit([Check("a", revision), Check("b", ABSENT)]) == revision
    assert await store.commit([Delete("b")]) == revision
    assert await store.commit([]) == revision
    assert (await store.list("")).revision == revision


async def test_limits_are_refused(store: Store) -> None:
    await store.commit([Put(f"k{n}", b"") for n in range(MAX_OPS)])
    with pytest.raises(InvalidInput):
        await store.commit([Put(f"k{n}", b"") for n in range(MAX_OPS + 1)])
    with pytest.raises(InvalidInput):
        await store.commit([Put("a", b"x" * (MAX_VALUE + 1))])
    with pytest.raises(InvalidInput):
        await store.commit([Put("a", b""), Delete("a")])
    for key in ("", "a\0b", "a\ud800"):
        with pytest.raises(InvalidInput):
            await store.commit([Put(key, b"")])
    assert await store.get("a") is None


async def test_concurrent_commits_each_have_their_outcome(store: Store) -> None:
    outcomes = await asyncio.gather(
        *(store.commit([Put("same", b"%d" % n, expect=ABSENT)]) for n in range(50)),
        *(store.commit([Put(f"other/{n}", b"")]) for n in range(50)),
        return_exceptions=True,
    )
    won = [o for o in outcomes[:50] if isinstance(o, int)]
    lost = [o for o in outcomes[:50] if isinstance(o, RevisionConflict)]
    assert (len(won), len(lost)) == (1, 49)
    assert len({*won, *outcomes[50:]}) == 51
    assert store.revision == 51


async def test_compare_and_set_counts_every_increment(store: Store) -> None:
    await store.commit([Put("n", b"0")])

    async def increment() -> None:
        while True:
            entry = await store.get("n")
            assert entry is not None
            try:
                await store.commit([Put("n", b"%d" % (int(entry.value) + 1), entry.revision)])
                return
            except RevisionConflict:
                continue

    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*(increment() for _ in range(20)))
    entry = await store.get("n")
    assert entry is not None
    assert entry.value == b"20"


async def test_everything_survives_closing(factory: StoreFactory, tmp_path: Path) -> None:
    store = await factory(tmp_path)
    await store.commit([Put("a", b"1")])
    revision = await store.commit([Put("b", b"2")])
    await store.close()
    again = await factory(tmp_path)
    try:
        assert again.revision == revision
        assert [e.value for e in (await again.list("")).entries] == [b"1", b"2"]
        assert await again.commit([Put("c", b"")]) == revision + 1
    finally:
        await again.close()


async def test_watch_delivers_each_transaction_as_one_list(store: Store) -> None:
    await store.commit([Put("g/0", b"")])
    async with store.watch("g/", since=store.revision) as changes:
        one = await store.commit([Put("g/1", b"1"), Put("x", b""), Delete("g/0")])
        await store.commit([Put("x", b"2")])
        two = await store.commit([Delete("g/1")])
        assert await take(changes, 2) == [
            [Change("g/1", b"1", one), Change("g/0", None, one)],
            [Change("g/1", None, two)],
        ]


async def test_watch_from_the_past_goes_on_into_the_present(store: Store) -> None:
    start = await store.commit([Put("a", b"0")])
    for n in range(1, 6):
        await store.commit([Put("a", b"%d" % n)])
    async with store.watch("a", since=start) as changes:
        for n in range(6, 9):
            await store.commit([Put("a", b"%d" % n)])
        got = await take(changes, 8)
    assert [t[0].value for t in got] == [b"%d" % n for n in range(1, 9)]
    assert [t[0].revision for t in got] == list(range(start + 1, start + 9))


async def test_watch_history_survives_closing(factory: StoreFactory, tmp_path: Path) -> None:
    store = await factory(tmp_path)
    start = await store.commit([Put("a", b"0")])
    await store.commit([Put("a", b"1")])
    await store.close()
    again = await factory(tmp_path)
    try:
        async with again.watch("", since=start) as changes:
            assert await take(changes, 1) == [[Change("a", b"1", start + 1)]]
    finally:
        await again.close()


async def test_watch_while_writers_write_misses_nothing(store: Store) -> None:
    async def write() -> None:
        for n in range(HISTORY * 3):
            await store.commit([Put(f"w/{n}", b"")])

    writer = asyncio.create_task(write())
    listing = await store.list("w/")
    async with store.watch("w/", since=listing.revision) as changes:
        rest = await take(changes, HISTORY * 3 - len(listing.entries))
    await writer
    seen = [e.key for e in listing.entries] + [t[0].key for t in rest]
    assert sorted(seen) == sorted(f"w/{n}" for n in range(HISTORY * 3))


async def test_watch_from_a_revision_to_come_waits_for_it(store: Store) -> None:
    now = await store.commit([Put("a", b"0")])
    async with store.watch("a", since=now + 1) as changes:
        await store.commit([Put("a", b"1")])
        await store.commit([Put("a", b"2")])
        assert (await take(changes, 1))[0][0].value == b"2"


async def test_old_watch_is_told_to_list_again(store: Store) -> None:
    start = await store.commit([Put("a", b"0")])
    for n in range(HISTORY * 3):
        await store.commit([Put("a", b"%d" % n)])
    with pytest.raises(Compacted):
        async with store.watch("a", since=start) as changes:
            await take(changes, HISTORY * 3)
    listing = await store.list("a")
    async with store.watch("a", since=listing.revision) as changes:
        await store.commit([Put("a", b"new")])
        assert (await take(changes, 1))[0][0].value == b"new"


async def test_recent_history_is_kept(store: Store) -> None:
    for n in range(HISTORY * 5):
        await store.commit([Put("a", b"%d" % n)])
    async with store.watch("a", since=store.revision - HISTORY) as changes:
        assert len(await take(changes, HISTORY)) == HISTORY


async def test_a_watcher_that_does_not_read_is_let_go(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guesthouse.store.watching.CAPACITY", 8)
    async with store.watch("a", since=store.revision) as changes:
        for n in range(10):
            await store.commit([Put("a", b"%d" % n)])
        with pytest.raises(Compacted):
            await take(changes, 10)


async def test_closing_ends_watches(factory: StoreFactory, tmp_path: Path) -> None:
    store = await factory(tmp_path)
    async with store.watch("", since=0) as changes:
        waiting = asyncio.create_task(take(changes, 1))
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(StopAsyncIteration):
            try:
                await waiting
            except RuntimeError as error:  # a coroutine may not raise StopAsyncIteration itself
                raise StopAsyncIteration from error


async def test_leased_keys_vanish_with_their_lease(store: Store) -> None:
    lease = await store.grant("host-a", 0.2)
    assert (lease.owner, lease.ttl) == ("host-a", 0.2)
    start = await store.commit([Put("l/1", b"", lease=lease.id), Put("l/2", b"", lease=lease.id)])
    async with store.watch("l/", since=start) as changes:
        gone = (await take(changes, 1))[0]
    assert [(c.key, c.value) for c in gone] == [("l/1", None), ("l/2", None)]
    assert (await store.list("l/")).entries == []
    with pytest.raises(NotFound):
        await store.keep_alive(lease.id)
    with pytest.raises(NotFound):
        await store.commit([Put("l/1", b"", lease=lease.id)])


async def test_keeping_a_lease_alive_keeps_its_keys(store: Store) -> None:
    lease = await store.grant("me", 5)
    await store.commit([Put("l", b"", lease=lease.id)])
    for _ in range(3):
        await store.keep_alive(lease.id)
    assert await store.get("l") is not None
    await store.revoke(lease.id)
    assert await store.get("l") is None
    await store.revoke(lease.id)
    with pytest.raises(NotFound):
        await store.keep_alive(lease.id)


async def test_writing_without_a_lease_frees_the_key(store: Store) -> None:
    lease = await store.grant("me", 60)
    await store.commit([Put("l", b"1", lease=lease.id)])
    await store.commit([Put("l", b"2")])
    await store.revoke(lease.id)
    entry = await store.get("l")
    assert entry is not None
    assert entry.value == b"2"


async def test_a_lease_goes_on_after_a_restart(factory: StoreFactory, tmp_path: Path) -> None:
    store = await factory(tmp_path)
    short, long = await store.grant("me", 0.2), await store.grant("me", 600)
    revision = await store.commit(
        [Put("short", b"", lease=short.id), Put("long", b"", lease=long.id)]
    )
    await store.close()
    await asyncio.sleep(0.3)
    again = await factory(tmp_path)
    try:
        await again.keep_alive(long.id)
        async with again.watch("", since=revision) as changes:
            assert (await take(changes, 1))[0][0].key == "short"
        assert await again.get("short") is None
        assert await again.get("long") is not None
    finally:
        await again.close()


async def test_a_cancelled_commit_is_settled_when_its_caller_learns(store: Store) -> None:
    """Else an undo would be overtaken by the very write that it undoes."""
    for turn in range(60):
        key = f"turn/{turn}"
        commit = asyncio.create_task(store.commit([Put(key, b"x" * 1000)]))
        for _ in range(turn % 6):
            await asyncio.sleep(0)
        commit.cancel()
        await asyncio.gather(commit, return_exceptions=True)
        first = await store.get(key)
        await asyncio.sleep(0.002)
        assert await store.get(key) == first
