"""Whole or absent files, the copy ladder, and what a full disk says."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest

from guesthouse.errors import Cancelled, InvalidInput, NoSpace
from guesthouse.storage import durable, transfer
from guesthouse.storage.transfer import bring, can_link, in_thread, on_loop, sha256_of


def quiet(fraction: float) -> None:
    assert 0 <= fraction <= 1


def fetch(source: Path | int, target: Path, *, share: bool = False) -> str:
    return bring(source, target, share=share, progress=quiet, stop=threading.Event())


def test_a_written_file_is_private_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    durable.write_file(target, b"one")
    durable.write_file(target, b"two")
    assert target.read_bytes() == b"two"
    assert target.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "a.json"
    durable.write_file(target, b"one")

    def full(path: Path) -> None:
        raise OSError(errno.EDQUOT, "quota")

    monkeypatch.setattr(durable, "fsync_file", full)
    with pytest.raises(NoSpace) as caught:
        durable.write_file(target, b"two")
    assert caught.value.detail["folder"] == str(tmp_path)
    assert "guest image rm" in caught.value.hint
    assert target.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a.json"]


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), durable.filling(tmp_path, 1, "test"):
        (tmp_path / "missing").read_bytes()


def test_space_is_asked_for_with_a_reserve(tmp_path: Path) -> None:
    free = durable.space_of(tmp_path).free
    durable.require_space(tmp_path, 0, "test")
    with pytest.raises(NoSpace, match="Not enough space to test") as caught:
        durable.require_space(tmp_path, free, "test")
    assert caught.value.detail["needed"] == free + durable.RESERVE


def test_temporary_names_are_known_again(tmp_path: Path) -> None:
    target = tmp_path / "01J.qcow2"
    stale, fresh = durable.temporary_beside(target), durable.temporary_beside(target)
    assert stale != fresh
    assert durable.is_temporary(stale.name)
    assert not durable.is_temporary(target.name)
    stale.touch()
    target.touch()
    assert durable.stale_files(tmp_path, 3600) == []
    assert durable.stale_files(tmp_path, -1) == [stale]


def test_removing_twice_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x" * 8192)
    (tmp_path / "also").hardlink_to(path)
    assert durable.remove_file(path) == 0
    assert durable.remove_file(tmp_path / "also") >= 8192
    assert durable.remove_file(tmp_path / "also") == 0


def test_a_copy_keeps_content_and_holes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with open(source, "wb") as file:
        file.seek(5 << 20)
        file.write(os.urandom(100_000))
        file.truncate(64 << 20)
    target = tmp_path / "target"
    assert fetch(source, target) in {"copied", "reflinked"}
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < 4 << 20
    assert target.stat().st_ino != source.stat().st_ino


def test_a_copy_by_hand_is_the_same(tmp_path: Path, monkeypatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(9 << 20))

    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "cross-device")

    monkeypatch.setattr(transfer.os, "copy_file_range", refuse)
    monkeypatch.setattr(transfer, "_reflink", lambda reader, writer: False)
    assert fetch(source, tmp_path / "target") == "copied"
    assert (tmp_path / "target").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("size", [0, 1, 4096])
def test_small_files_are_copied(tmp_path: Path, size: int) -> None:
    (tmp_path / "source").write_bytes(b"x" * size)
    fd = os.open(tmp_path / "source", os.O_RDONLY)
    try:
        fetch(fd, tmp_path / "target")
        os.fstat(fd)  # a descriptor that was lent stays open
    finally:
        os.close(fd)
    assert (tmp_path / "target").stat().st_size == size


def test_only_frozen_files_are_linked(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"layer")
    assert not can_link(source, tmp_path)
    fetch(source, tmp_path / "apart", share=True)
    assert (tmp_path / "apart").stat().st_nlink == 1
    source.chmod(0o444)
    assert can_link(source, tmp_path)
    assert fetch(source, tmp_path / "target", share=True) in {"linked", "reflinked"}
    assert (tmp_path / "target").read_bytes() == b"layer"
    source.unlink()
    assert (tmp_path / "target").read_bytes() == b"layer"
    assert sorted(os.listdir(tmp_path)) == ["apart", "target"]


def test_links_to_elsewhere_and_pipes_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"[Ss]ymbolic"):
        fetch(tmp_path / "link", tmp_path / "target")
    with pytest.raises(InvalidInput, match="not a regular file"):
        fetch(tmp_path / "pipe", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_stopped_copy_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "source").write_bytes(b"x" * 100)
    monkeypatch.setattr(transfer, "_reflink", lambda reader, writer: False)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        bring(tmp_path / "source", tmp_path / "t", share=False, progress=quiet, stop=stop)
    assert os.listdir(tmp_path) == ["source"]


def test_digest_of_a_file(tmp_path: Path) -> None:
    data = os.urandom(20 << 20)
    (tmp_path / "a").write_bytes(data)
    ticks: list[float] = []
    found = sha256_of(tmp_path / "a", progress=ticks.append, stop=threading.Event())
    assert found == hashlib.sha256(data).hexdigest()
    assert ticks == sorted(ticks) and ticks[-1] == 1.0


async def test_a_cancelled_thread_is_stopped_and_awaited() -> None:
    started, ended = threading.Event(), threading.Event()

    def work(stop: threading.Event) -> None:
        started.set()
        stop.wait(60)
        ended.set()

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(started.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_progress_from_a_thread_arrives_on_the_loop() -> None:
    main, seen = threading.get_ident(), asyncio.Queue[tuple[float, int]]()
    tell = on_loop(lambda f: seen.put_nowait((f, threading.get_ident())))
    await asyncio.to_thread(tell, 0.5)
    assert await asyncio.wait_for(seen.get(), 60) == (0.5, main)
