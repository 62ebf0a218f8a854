"""Copies of documents beside the layers: they follow the store, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from guesthouse.errors import NoSpace
from guesthouse.model.document import Document
from guesthouse.model.guest import Guest
from guesthouse.model.ids import new_id
from guesthouse.model.volume import Volume
from guesthouse.storage.copies import Copies
from guesthouse.store.documents import GUESTS, VOLUMES
from guesthouse.supervisor.copies import CopyKeeper
from tests.image_house import ImageHouse, image_house
from tests.unit.fake_house import make_guest


def disk(**more: Any) -> Volume:
    return Volume(**{"id": new_id(), "size": 1 << 20, "created_at": time.time(), **more})


async def put(house: ImageHouse, *documents: Guest | Volume) -> None:
    kinds = [GUESTS if isinstance(one, Guest) else VOLUMES for one in documents]
    ops = [kind.put_op(one) for kind, one in zip(kinds, documents, strict=True)]  # type: ignore[arg-type]  # kinds and documents go in pairs
    await house.view.wait_for(await house.documents.store.commit(ops))


async def drop(house: ImageHouse, kind: Any, one: Document) -> None:
    await house.view.wait_for(await house.documents.store.commit([kind.delete_op(one.id)]))


@asynccontextmanager
async def kept(folder: Path, *, close: bool = True) -> AsyncIterator[tuple[ImageHouse, CopyKeeper]]:
    """:param close: in good order; else the keeper of copies dies with the daemon."""
    async with image_house(folder) as house:
        rooms = cast("Any", SimpleNamespace(view=house.view, pool=house.pool))
        keeper = CopyKeeper(rooms)
        keeper.start()
        try:
            yield house, keeper
        finally:
            if close:
                await keeper.close()
            else:
                for task in keeper._tasks:
                    task.cancel()


def copy(folder: Path, one: Document) -> dict[str, Any] | None:
    kind = "guests" if isinstance(one, Guest) else "volumes"
    path = folder / "pool" / "documents" / kind / f"{one.id}.json"
    found: dict[str, Any] | None = json.loads(path.read_bytes()) if path.exists() else None
    return found


async def until(what: Any) -> None:
    async with asyncio.timeout(30):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_copies_follow_by_themselves(tmp_path: Path) -> None:
    async with kept(tmp_path) as (house, _):
        guest, volume = make_guest("web"), disk()
        await put(house, volume, guest)
        await until(lambda: copy(tmp_path, guest) and copy(tmp_path, volume))
        await put(house, msgspec.structs.replace(guest, name="other"))
        await until(lambda: (copy(tmp_path, guest) or {})["name"] == "other")


async def test_how_far_a_guest_has_come_needs_no_copy(tmp_path: Path) -> None:
    async with kept(tmp_path) as (house, keeper):
        guest = make_guest("web")
        await put(house, guest)
        await keeper.flush()
        path = tmp_path / "pool" / "documents" / "guests" / f"{guest.id}.json"
        before = path.stat().st_ino
        status = msgspec.structs.replace(guest.status, ready=("process",))
        await put(house, msgspec.structs.replace(guest, status=status))
        await keeper.flush()
        assert path.stat().st_ino == before
        await put(house, msgspec.structs.replace(guest, booted=True))
        await keeper.flush()
        assert path.stat().st_ino != before


async def test_an_orderly_end_leaves_nothing_unwritten(tmp_path: Path) -> None:
    guest = make_guest("web")
    async with kept(tmp_path) as (house, _):
        await put(house, guest)
    assert copy(tmp_path, guest)


async def test_what_a_dead_daemon_left_is_compared_and_mended(tmp_path: Path) -> None:
    absent, stale, damaged, good = (make_guest(name) for name in ("a", "b", "c", "d"))
    folder = tmp_path / "pool" / "documents" / "guests"
    async with kept(tmp_path, close=False) as (house, keeper):
        await put(house, absent, stale, damaged, good)
        await keeper.flush()
        (folder / f"{absent.id}.json").unlink()
        (folder / f"{stale.id}.json").write_bytes(
            msgspec.json.encode(msgspec.structs.replace(stale, name="old"))
        )
        (folder / f"{damaged.id}.json").write_bytes(b"\0\0")
        untouched = (folder / f"{good.id}.json").stat().st_ino
    async with kept(tmp_path) as (_, keeper):
        await until(lambda: copy(tmp_path, absent))
        await keeper.flush()
        assert [copy(tmp_path, one)["name"] for one in (absent, stale, damaged)] == ["a", "b", "c"]  # type: ignore[index]  # a copy that is there
        assert (folder / f"{good.id}.json").stat().st_ino == untouched


async def test_copies_of_documents_that_the_database_lacks_stay(tmp_path: Path) -> None:
    guest = make_guest("web")
    async with kept(tmp_path) as (house, _):
        await put(house, guest)
    for name in os.listdir(tmp_path):
        if name.startswith("guesthouse.db"):
            (tmp_path / name).unlink()
    async with kept(tmp_path) as (house, keeper):
        await keeper.flush()
        assert house.pool.copies.unknown(house.view.revisions) == [f"guests/{guest.id}"]
    assert copy(tmp_path, guest)


async def test_a_removed_copy_is_not_written_again(tmp_path: Path) -> None:
    """Documents that come and go while their copies are being written."""
    async with kept(tmp_path) as (house, keeper):
        for _ in range(20):
            guest = make_guest("web")
            await put(house, guest)
            writing = asyncio.create_task(keeper.flush())
            await asyncio.sleep(0)
            await drop(house, GUESTS, guest)
            await house.pool.remove_copy("guests", guest.id)
            await writing
            await keeper.flush()
            assert copy(tmp_path, guest) is None
        assert house.pool.copies.keys == []


async def test_a_full_disk_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guesthouse.supervisor.copies.RETRY", 0.05)
    real, refused = Copies.write, 0

    async def full(self: Copies, *args: Any, **rest: Any) -> None:
        nonlocal refused
        refused += 1
        if refused <= 3:
            raise NoSpace("The disk is full.")
        await real(self, *args, **rest)

    monkeypatch.setattr(Copies, "write", full)
    async with kept(tmp_path) as (house, _):
        guest = make_guest("web")
        await put(house, guest)
        await until(lambda: copy(tmp_path, guest))
    assert refused == 4


async def test_those_referred_to_are_copied_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = Copies.write

    async def noted(self: Copies, kind: str, *args: Any, **rest: Any) -> None:
        order.append(kind)
        await real(self, kind, *args, **rest)

    monkeypatch.setattr(Copies, "write", noted)
    async with kept(tmp_path) as (house, keeper):
        await put(house, make_guest("a"), disk(), make_guest("b"), disk())
        await keeper.flush()
    assert order == ["volumes", "volumes", "guests", "guests"]
