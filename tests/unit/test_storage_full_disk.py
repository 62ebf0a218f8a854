"""A disk that is really full: a small tmpfs, filled to its last page."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guesthouse.errors import NoSpace
from guesthouse.images.boot import BootFolder
from guesthouse.images.spec import BuiltImage
from guesthouse.model.ids import new_id
from guesthouse.model.volume import Volume
from guesthouse.storage import durable
from guesthouse.storage.pool import DirectoryPool
from guesthouse.storage.transfer import Way

pytestmark = pytest.mark.root
MIB = 1 << 20
SIZE = 64 * MIB


def tool(*argv: object) -> None:
    subprocess.run([str(word) for word in argv], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    tool("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "guesthouse-test", folder)
    yield folder
    tool("umount", folder)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up between the check before and the work: make every check pass."""
    monkeypatch.setattr(durable, "space_of", lambda folder: durable.Space(1 << 50, 1 << 50))


def disk(**more: object) -> Volume:
    return Volume(**{"id": new_id(), "size": 16 * MIB, "created_at": time.time(), **more})


def fill(folder: Path, leave: int = 0) -> Path:
    """Take all of the space but `leave` bytes."""
    filler = folder / "filler"
    facts = os.statvfs(folder)
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, facts.f_bavail * facts.f_frsize - leave)
    return filler


def source_file(folder: Path, data: int) -> Path:
    path = folder / "source.qcow2"
    tool("qemu-img", "create", "-f", "qcow2", path, "128M")
    tool("qemu-io", "-f", "qcow2", "-c", f"write -P 7 0 {data}", path)
    path.chmod(0o444)
    return path


async def test_what_does_not_fit_is_refused_before_it_starts(small: Path, tmp_path: Path) -> None:
    pool = await DirectoryPool.open(small / "pool")
    source = source_file(tmp_path, 40 * MIB)
    with pytest.raises(NoSpace) as caught:
        await pool.import_file(disk(size=128 * MIB), source)
    error = caught.value
    assert error.detail["needed"] >= 40 * MIB + durable.RESERVE
    assert 0 < error.detail["free"] <= SIZE
    assert error.detail["folder"] == str(pool.layers.folder)
    assert "needed" in error.message and "free in" in error.message
    assert "guest image rm" in error.hint
    assert os.listdir(pool.layers.folder) == []


async def test_a_nearly_full_disk_takes_no_new_layers(small: Path) -> None:
    pool = await DirectoryPool.open(small / "pool")
    filler = fill(small, leave=MIB)
    with pytest.raises(NoSpace):
        await pool.create_empty(disk())
    filler.unlink()
    await pool.create_empty(disk())


async def test_a_disk_that_fills_up_during_a_copy(
    small: Path, tmp_path: Path, unchecked: None
) -> None:
    pool = await DirectoryPool.open(small / "pool")
    source, volume = source_file(tmp_path, 100 * MIB), disk(size=128 * MIB)
    for way in (Way.COPY, Way.MOVE):
        with pytest.raises(NoSpace, match="bring in disk"):
            await pool.import_file(volume, source, way)
    assert os.listdir(pool.layers.folder) == []
    assert source.exists()


async def test_a_disk_that_is_full_when_qemu_img_writes(small: Path, unchecked: None) -> None:
    pool = await DirectoryPool.open(small / "pool")
    volume, other = disk(), disk()
    await pool.create_empty(volume)
    filler = fill(small)
    with pytest.raises(NoSpace, match="create the disk"):
        await pool.create_empty(other)
    with pytest.raises(NoSpace, match="grow the disk"):
        await pool.grow(volume, 1 << 43)  # so large that its table of tables must move
    assert os.listdir(pool.layers.folder) == [volume.filename]
    filler.unlink()
    await pool.create_empty(other)
    await pool.grow(volume, 1 << 43)
    assert (await pool.check(volume)).clean


async def test_a_full_disk_keeps_the_old_copy_of_a_document(small: Path) -> None:
    pool = await DirectoryPool.open(small / "pool")
    volume = disk()
    await pool.write_copy("volumes", volume)
    path = pool.documents / "volumes" / f"{volume.id}.json"
    before = path.read_bytes()
    filler = fill(small)
    with pytest.raises(NoSpace, match="write"):
        await pool.write_copy("volumes", disk(id=volume.id, note="changed"))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    filler.unlink()


def test_a_full_disk_takes_no_boot_files(small: Path, tmp_path: Path, unchecked: None) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(os.urandom(MIB))
    initrd.write_bytes(os.urandom(MIB))
    built = BuiltImage(
        name="micro", build_key="", disk=None, kernel=kernel, initrd=initrd, cmdline="",
        virtual_size=0, os={}, facts={},
    )  # fmt: skip
    (small / "boot").mkdir()
    (small / "boot" / "01J").mkdir()
    fill(small)
    digests = {"kernel": "0" * 64, "initrd": "0" * 64}
    with pytest.raises(NoSpace, match="boot files"):
        BootFolder(small / "boot").add("01J", built, digests, threading.Event())
    assert os.listdir(small / "boot" / "01J") == []
