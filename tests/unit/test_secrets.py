"""The secret store: private, atomic, and blind to links."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from guesthouse.errors import Forbidden, InvalidInput, NoSpace, NotFound
from guesthouse.host.secrets import LIMIT, Secrets


@pytest.fixture
def store(tmp_path: Path) -> Secrets:
    return Secrets(tmp_path / "secrets")


def test_put_get_list_delete(store: Secrets) -> None:
    assert store.list() == []
    store.put("b", b"two\0bytes")
    store.put("a", b"")
    store.put("b", b"newer")
    assert (store.get("a"), store.get("b")) == (b"", b"newer")
    assert store.list() == ["a", "b"]
    store.delete("a")
    store.delete("a")
    assert store.list() == ["b"]
    with pytest.raises(NotFound):
        store.get("a")


def test_modes_whatever_the_umask(store: Secrets) -> None:
    old = os.umask(0)
    try:
        store.put("k", b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((store.folder / "k").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "a\n", "ü", "x" * 200])
def test_names_cannot_leave_the_folder(store: Secrets, name: str) -> None:
    for call in (store.get, store.delete, lambda n: store.put(n, b"")):
        with pytest.raises(InvalidInput):
            call(name)


def test_size_is_limited(store: Secrets) -> None:
    store.put("full", b"x" * LIMIT)
    assert len(store.get("full")) == LIMIT
    with pytest.raises(InvalidInput):
        store.put("more", b"x" * (LIMIT + 1))


def test_links_are_not_followed(store: Secrets, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"not ours to read")
    store.put("k", b"x")
    (store.folder / "link").symlink_to(target)
    with pytest.raises(Forbidden):
        store.get("link")
    store.put("link", b"replaced")  # replaces the link, leaves its target alone
    assert target.read_bytes() == b"not ours to read"
    assert store.get("link") == b"replaced"
    store.folder.rename(tmp_path / "moved")
    store.folder.symlink_to(tmp_path / "moved")
    with pytest.raises(Forbidden):
        store.get("k")
    with pytest.raises(Forbidden):
        store.put("k", b"y")


def test_what_is_no_plain_private_file_is_refused(store: Secrets) -> None:
    store.put("k", b"x")
    (store.folder / "k").chmod(0o644)
    with pytest.raises(Forbidden, match="0644"):
        store.get("k")
    os.mkfifo(store.folder / "pipe", 0o600)
    with pytest.raises(Forbidden, match="plain file"):
        store.get("pipe")
    (store.folder / "folder").mkdir()
    with pytest.raises(Forbidden):
        store.get("folder")
    with pytest.raises(Forbidden):
        store.delete("folder")


@pytest.mark.root
def test_a_file_of_somebody_else_is_refused(store: Secrets) -> None:
    store.put("k", b"x")
    os.chown(store.folder / "k", 4242, 4242)
    with pytest.raises(Forbidden, match="4242"):
        store.get("k")


def test_a_failed_write_keeps_the_old_secret(
    store: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("k", b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace):
        store.put("k", b"new")
    monkeypatch.undo()
    assert store.get("k") == b"old"
    assert os.listdir(store.folder) == ["k"]


def test_sweep_removes_what_a_crash_left(store: Secrets) -> None:
    store.sweep()
    store.put("k", b"x")
    (store.folder / ".k.0123").write_bytes(b"half")
    assert store.list() == ["k"]
    store.sweep()
    assert os.listdir(store.folder) == ["k"]
