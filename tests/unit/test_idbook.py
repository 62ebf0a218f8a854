"""One book of ids for all houses of a user: no number twice, none lost."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from guesthouse.errors import Busy, HostLacks, ReadOnlyStore, Unavailable
from guesthouse.host.namespace import idbook
from guesthouse.host.namespace.idbook import IdBook, book_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ids"


def file_of(folder: Path) -> Path:
    return next(folder.glob("*.json"))


async def test_two_houses_never_share_a_number(folder: Path) -> None:
    one, two = IdBook(folder, Path("/state/one")), IdBook(folder, Path("/state/two"))
    assert await one.take("vm", "A", limit=10) == 0
    assert await two.take("vm", "A", limit=10) == 1
    assert await one.take("vm", "B", limit=10) == 2
    assert await one.take("container", "C", limit=2) == 0
    assert await one.take("vm", "A", limit=10) == 0, "it keeps its number"
    held = {(a.kind, a.house, a.guest): a.slot for a in await two.all()}
    assert held == {
        ("vm", "/state/one", "A"): 0,
        ("vm", "/state/two", "A"): 1,
        ("vm", "/state/one", "B"): 2,
        ("container", "/state/one", "C"): 0,
    }


async def test_a_number_given_back_is_the_next(folder: Path) -> None:
    book = IdBook(folder, Path("/state/one"))
    for guest in "ABC":
        await book.take("vm", guest, limit=10)
    await book.give_back("vm", "B")
    await book.give_back("vm", "B")
    assert await book.take("vm", "D", limit=10) == 1
    assert await book.take("vm", "B", limit=10) == 3


async def test_when_all_are_taken_it_says_by_whom(folder: Path) -> None:
    await IdBook(folder, Path("/state/one")).take("container", "A", limit=1)
    two = IdBook(folder, Path("/state/two"))
    with pytest.raises(HostLacks, match=r"enough for 1 containers.*the houses /state/one"):
        await two.take("container", "B", limit=1)
    assert await two.take("vm", "B", limit=1) == 0, "the other kind has numbers of its own"
    with pytest.raises(HostLacks):
        await two.take("container", "B", limit=0)


async def test_what_a_removed_house_held_is_taken_when_all_else_is(
    folder: Path, tmp_path: Path
) -> None:
    state = tmp_path / "removed"
    state.mkdir()
    removed, one = IdBook(folder, state), IdBook(folder, tmp_path)
    await removed.take("vm", "A", limit=2)
    await removed.take("container", "C", limit=1)
    assert await one.take("vm", "A", limit=2) == 1
    with pytest.raises(HostLacks):
        await one.take("vm", "B", limit=2)
    state.rmdir()
    assert await one.take("vm", "B", limit=2) == 0
    with pytest.raises(HostLacks):
        await one.take("container", "B", limit=1)


async def test_after_a_crash_a_house_keeps_only_its_guests(folder: Path) -> None:
    one, two = IdBook(folder, Path("/state/one")), IdBook(folder, Path("/state/two"))
    for guest in "ABC":
        await one.take("vm", guest, limit=10)
    await two.take("vm", "A", limit=10)
    gone = await one.keep_only({"B"})
    assert sorted(a.guest for a in gone) == ["A", "C"]
    assert [(a.house, a.guest) for a in await one.all()] == [
        ("/state/one", "B"),
        ("/state/two", "A"),
    ]
    assert await one.keep_only({"B"}) == ()


async def test_a_damaged_book_gives_out_nothing(folder: Path) -> None:
    book = IdBook(folder, Path("/state/one"))
    await book.take("vm", "A", limit=10)
    file_of(folder).write_text('{"format": 1, "allocations": [{"slot"')
    with pytest.raises(Unavailable, match="cannot be read"):
        await book.take("vm", "B", limit=10)
    file_of(folder).write_text('{"format": 1, "allocations": [{"slot": "x"}]}')
    with pytest.raises(Unavailable):
        await book.all()
    file_of(folder).write_text('{"format": 2, "pages": []}')
    with pytest.raises(ReadOnlyStore, match="newer"):
        await book.take("vm", "B", limit=10)


async def test_it_is_private_and_whole(folder: Path) -> None:
    await IdBook(folder, Path("/state/one")).take("vm", "A", limit=10)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert file_of(folder).stat().st_mode & 0o777 == 0o600
    assert not list(folder.glob("*.tmp"))


async def test_a_lock_that_is_not_let_go_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = IdBook(folder, Path("/state/one"))
    await book.take("vm", "A", limit=10)
    monkeypatch.setattr(idbook, "_DEADLINE", 0.1)
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('held', flush=True); time.sleep(1000)"
    )
    lock = next(folder.glob("*.lock"))
    other = await asyncio.create_subprocess_exec(
        *[sys.executable, "-I", "-S", "-c", code, str(lock)], stdout=asyncio.subprocess.PIPE
    )
    try:
        assert other.stdout is not None
        assert await other.stdout.readline() == b"held\n"
        with pytest.raises(Busy):
            await book.take("vm", "B", limit=10)
    finally:
        other.kill()
        await other.wait()
    assert await book.take("vm", "B", limit=10) == 1, "the kernel lets go of a dead holder's lock"


async def test_many_processes_at_once(folder: Path) -> None:
    code = """
import asyncio, sys
from pathlib import Path
from guesthouse.host.namespace.idbook import IdBook
async def main():
    book = IdBook(Path(sys.argv[1]), Path(sys.argv[2]))
    for number in range(10):
        await book.take("vm", f"G{number}", limit=100)
asyncio.run(main())
"""
    houses = [
        await asyncio.create_subprocess_exec(
            *[sys.executable, "-c", code, str(folder), f"/state/{number}"]
        )
        for number in range(3)
    ]
    assert [await house.wait() for house in houses] == [0, 0, 0]
    held = await IdBook(folder, Path("/state/0")).all()
    assert sorted(a.slot for a in held) == list(range(30))


def test_all_houses_of_a_user_find_the_same_book(monkeypatch: pytest.MonkeyPatch) -> None:
    found = book_folder(os.getuid())
    monkeypatch.setenv("HOME", "/elsewhere")
    monkeypatch.setenv("GUESTHOUSE_STATE", "/elsewhere/state")
    assert book_folder(os.getuid()) == found
    assert book_folder(0) == Path("/var/lib/guesthouse/ids")
    with pytest.raises(HostLacks, match="not in the user database"):
        book_folder(3_999_999_999)


async def test_a_book_that_cannot_be_written(folder: Path) -> None:
    book = IdBook(folder, Path("/state/one"))
    await book.take("vm", "A", limit=2)
    book._file.with_suffix(".tmp").mkdir()
    with pytest.raises(Unavailable, match="cannot be written"):
        await book.take("vm", "B", limit=2)
    lock = book._file.with_suffix(".lock")
    lock.unlink()
    lock.mkdir()
    with pytest.raises(Unavailable, match="cannot be written"):
        await book.take("vm", "A", limit=2)
