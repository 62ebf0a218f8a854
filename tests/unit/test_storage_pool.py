"""The pool, with a real qemu-img."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from guesthouse.errors import (
    Conflict,
    EngineError,
    Internal,
    InUse,
    InvalidInput,
    NotFound,
    ReadOnlyStore,
)
from guesthouse.model.ids import new_id
from guesthouse.model.volume import Volume, VolumeFormat
from guesthouse.storage.pool import DirectoryPool
from guesthouse.storage.transfer import Way

MIB = 1 << 20


@pytest.fixture
async def pool(tmp_path: Path) -> DirectoryPool:
    return await DirectoryPool.open(tmp_path / "pool")


def layer(parent: str = "", size: int = 64 * MIB, **more: object) -> Volume:
    return Volume(id=new_id(), parent=parent, size=size, created_at=time.time(), **more)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def tool(*argv: object) -> None:
    subprocess.run([str(word) for word in argv], check=True, stdout=subprocess.DEVNULL)


def open_in_qemu(path: Path) -> subprocess.Popen[bytes]:
    """A process that has the image open for writing and holds its lock, as a guest would."""
    holder = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert holder.stdin and holder.stdout
    holder.stdin.write(b"write 0 64k\n")
    holder.stdin.flush()
    while b"wrote" not in holder.stdout.readline():
        assert holder.poll() is None
    return holder


def source_file(folder: Path, size: int = 64 * MIB) -> Path:
    """A qcow2 file with some data in it, as an image builder would hand it over."""
    raw, path = folder / "source.raw", folder / "source.qcow2"
    with open(raw, "wb") as file:
        file.write(os.urandom(MIB))
        file.truncate(size)
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
    raw.unlink()
    path.chmod(0o444)
    return path


async def frozen_base(pool: DirectoryPool, folder: Path) -> Volume:
    base = layer(immutable=True)
    await pool.import_file(base, source_file(folder))
    return base


async def test_a_pool_is_private_and_knows_itself_again(tmp_path: Path) -> None:
    first = await DirectoryPool.open(tmp_path / "deep" / "pool")
    again = await DirectoryPool.open(tmp_path / "deep" / "pool")
    assert first.identity == again.identity
    assert {mode(first.root), mode(first.layers.folder), mode(first.documents)} == {0o700}
    assert mode(first.root / "pool.json") == 0o600
    assert await first.free_space() > 0


async def test_a_newer_pool_is_refused_and_left_alone(tmp_path: Path) -> None:
    newer = json.dumps({"version": 99, "id": new_id(), "something": "new"})
    (tmp_path / "pool.json").write_text(newer)
    with pytest.raises(ReadOnlyStore, match="version 99"):
        await DirectoryPool.open(tmp_path)
    assert os.listdir(tmp_path) == ["pool.json"]
    assert (tmp_path / "pool.json").read_text() == newer


async def test_a_damaged_description_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "pool.json").write_bytes(b"\0\0\0")
    with pytest.raises(EngineError, match="damaged"):
        await DirectoryPool.open(tmp_path)
    assert (tmp_path / "pool.json").read_bytes() == b"\0\0\0"


async def test_an_overlay_names_its_parent_relatively(pool: DirectoryPool, tmp_path: Path) -> None:
    base = await frozen_base(pool, tmp_path)
    top = layer(base.id, 128 * MIB)
    path = await pool.create_overlay(top, pool.path(base), top.size)
    assert mode(path) == 0o600 and mode(pool.path(base)) == 0o444
    info = await pool.info(top)
    assert (info.backing, info.virtual_size) == (f"{base.id}.qcow2", 128 * MIB)
    assert (await pool.check(top)).clean
    volumes = {base.id: base, top.id: top}
    assert await pool.verify_chain(volumes, top.id) == [path, pool.path(base)]
    moved = pool.root.rename(tmp_path / "moved")
    elsewhere = await DirectoryPool.open(moved)
    assert (await elsewhere.check(top)).clean


async def test_creating_again_changes_nothing(pool: DirectoryPool, tmp_path: Path) -> None:
    base = await frozen_base(pool, tmp_path)
    top = layer(base.id)
    path = await pool.create_overlay(top, pool.path(base))
    before = (path.stat().st_ino, path.read_bytes())
    await pool.create_overlay(top, pool.path(base))
    assert (path.stat().st_ino, path.read_bytes()) == before


async def test_another_file_under_this_name_is_never_overwritten(pool: DirectoryPool) -> None:
    disk = layer()
    pool.path(disk).write_bytes(b"somebody's data")
    with pytest.raises(Conflict, match="another disk"):
        await pool.create_empty(disk)
    small, large = layer(size=MIB), layer(size=2 * MIB)
    path = await pool.create_empty(small)
    path.rename(pool.path(large))
    with pytest.raises(Conflict, match="virtual size of 1M, not 2M"):
        await pool.create_empty(large)
    assert pool.path(disk).read_bytes() == b"somebody's data"


async def test_wrong_parents_are_refused(pool: DirectoryPool, tmp_path: Path) -> None:
    base = await frozen_base(pool, tmp_path)
    with pytest.raises(InvalidInput, match="smaller than what it is made from"):
        await pool.create_overlay(layer(base.id, MIB), pool.path(base))
    with pytest.raises(InvalidInput, match="is not the parent"):
        await pool.create_overlay(layer(new_id()), pool.path(base))
    with pytest.raises(InvalidInput, match="is not the parent"):
        await pool.create_overlay(layer(base.id), tmp_path / f"{base.id}.qcow2")
    with pytest.raises(NotFound, match="is missing"):
        missing = layer()
        await pool.create_overlay(layer(missing.id), pool.path(missing))
    assert os.listdir(pool.layers.folder) == [f"{base.id}.qcow2"]


async def test_a_cancelled_creation_leaves_nothing(pool: DirectoryPool) -> None:
    task = asyncio.create_task(pool.create_empty(layer()))
    await asyncio.sleep(0.002)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert os.listdir(pool.layers.folder) == []


async def test_parallel_clones_of_one_base(pool: DirectoryPool, tmp_path: Path) -> None:
    base = await frozen_base(pool, tmp_path)
    tops = [layer(base.id) for _ in range(8)]
    await asyncio.gather(*(pool.create_overlay(top, pool.path(base)) for top in tops))
    assert len(os.listdir(pool.layers.folder)) == 9


async def test_raw_disks(pool: DirectoryPool) -> None:
    raw = layer(size=3 * MIB, format=VolumeFormat.RAW)
    path = await pool.create_empty(raw)
    assert path.suffix == ".raw" and path.stat().st_size == 3 * MIB
    assert await pool.usage(raw) < MIB
    await pool.grow(raw, 5 * MIB)
    assert path.stat().st_size == 5 * MIB
    assert (await pool.check(raw)).clean


async def test_growing_never_shrinks(pool: DirectoryPool, tmp_path: Path) -> None:
    disk = layer()
    await pool.create_empty(disk)
    await pool.grow(disk, 128 * MIB)
    await pool.grow(disk, 128 * MIB)
    assert (await pool.info(disk)).virtual_size == 128 * MIB
    with pytest.raises(InvalidInput, match="cannot shrink") as caught:
        await pool.grow(disk, 64 * MIB)
    assert caught.value.detail["field"] == "size"
    with pytest.raises(InvalidInput, match="immutable"):
        await pool.grow(await frozen_base(pool, tmp_path), 128 * MIB)


async def test_a_disk_in_use_says_so(pool: DirectoryPool) -> None:
    disk = layer()
    path = await pool.create_empty(disk)
    holder = open_in_qemu(path)
    try:
        with pytest.raises(InUse, match="has it open"):
            await pool.grow(disk, 128 * MIB)
        with pytest.raises(InUse):
            await pool.check(disk)
        assert (await pool.info(disk)).virtual_size == 64 * MIB
    finally:
        holder.communicate(b"quit\n")


async def test_damage_is_found(pool: DirectoryPool) -> None:
    disk = layer()
    path = await pool.create_empty(disk)
    tool("qemu-io", "-f", "qcow2", "-c", "write 0 1M", path)
    with open(path, "r+b") as file:
        file.seek(2 << 16)  # the first refcount block of a file with 64 KiB clusters
        file.write(b"\0" * 64)
    report = await pool.check(disk)
    assert not report.clean and report.corruptions > 0
    with open(path, "r+b") as file:
        file.write(b"\0" * 512)
    with pytest.raises(EngineError):
        await pool.check(disk)


@pytest.mark.parametrize("way", [Way.COPY, Way.LINK, Way.MOVE])
async def test_bringing_a_file_in(pool: DirectoryPool, tmp_path: Path, way: Way) -> None:
    source = source_file(tmp_path)
    content = source.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    base, ticks = layer(immutable=True), []
    how = await pool.import_file(base, source, way, digest=digest, progress=ticks.append)
    expected = {
        Way.COPY: {"copied", "reflinked"},
        Way.LINK: {"linked", "reflinked"},
        Way.MOVE: {"moved"},
    }
    assert how in expected[way]
    assert pool.path(base).read_bytes() == content
    assert mode(pool.path(base)) == 0o444
    assert source.exists() == (way is not Way.MOVE)
    await asyncio.sleep(0)
    assert ticks == sorted(ticks)
    assert await pool.import_file(base, source, way, digest=digest) == "present"
    fd = pool.open_file(base)
    try:
        with pytest.raises(OSError):
            os.write(fd, b"x")
    finally:
        os.close(fd)


async def test_a_move_between_file_systems_copies_and_gives_up_the_source(
    pool: DirectoryPool, tmp_path: Path
) -> None:
    memory = Path("/dev/shm") / f"guesthouse-test-{new_id()}"
    memory.mkdir()
    try:
        assert memory.stat().st_dev != pool.root.stat().st_dev
        base = layer(immutable=True)
        source = source_file(tmp_path).rename(tmp_path / "s")
        tool("cp", source, memory / "s")
        assert await pool.import_file(base, memory / "s", Way.MOVE) == "copied"
        assert not (memory / "s").exists()
        assert pool.path(base).read_bytes() == source.read_bytes()
    finally:
        for left in memory.iterdir():
            left.unlink()
        memory.rmdir()


async def test_what_must_not_come_in(pool: DirectoryPool, tmp_path: Path) -> None:
    source = source_file(tmp_path)
    base = layer(immutable=True)
    with pytest.raises(InvalidInput, match="not what was promised"):
        await pool.import_file(base, source, digest="0" * 64)
    with pytest.raises(EngineError, match="virtual size"):
        await pool.import_file(layer(size=MIB), source)
    with pytest.raises(InvalidInput, match="immutable"):
        await pool.import_file(layer(), source, Way.LINK)
    evil = tmp_path / "evil.qcow2"
    tool(
        *("qemu-img", "create", "-q", "-u", "-f", "qcow2"),
        *("-b", "/etc/shadow", "-F", "raw", evil, "64M"),
    )
    with pytest.raises(EngineError, match="/etc/shadow"):
        await pool.import_file(base, evil)
    with pytest.raises(FileNotFoundError):
        await pool.import_file(base, tmp_path / "missing")
    assert os.listdir(pool.layers.folder) == []
    assert source.exists()


async def test_a_descriptor_is_copied(pool: DirectoryPool, tmp_path: Path) -> None:
    source = source_file(tmp_path)
    disk = layer()
    fd = os.open(source, os.O_RDONLY)
    try:
        with pytest.raises(InvalidInput, match="cannot be moved"):
            await pool.import_file(disk, fd, Way.MOVE)
        assert await pool.import_file(disk, fd) in {"copied", "reflinked"}
    finally:
        os.close(fd)
    assert mode(pool.path(disk)) == 0o600


async def test_a_snapshot_freezes_its_layer(pool: DirectoryPool) -> None:
    disk = layer()
    path = await pool.create_empty(disk)
    await pool.freeze(disk)
    await pool.freeze(disk)
    assert mode(path) == 0o444


async def test_a_chain_whose_file_names_another_parent_is_refused(
    pool: DirectoryPool, tmp_path: Path
) -> None:
    base = await frozen_base(pool, tmp_path)
    top, other = layer(base.id), layer(immutable=True)
    await pool.create_overlay(top, pool.path(base))
    lying = {base.id: base, other.id: other, top.id: layer(other.id)}
    lying[top.id] = Volume(id=top.id, parent=other.id, size=top.size, created_at=0.0)
    with pytest.raises(EngineError, match="should be"):
        await pool.verify_chain(lying, top.id)
    pool.path(base).unlink()
    with pytest.raises(NotFound, match="is missing"):
        await pool.verify_chain({base.id: base, top.id: top}, top.id)


async def test_deleting_is_idempotent_and_knows_ids_only(pool: DirectoryPool) -> None:
    disk = layer()
    await pool.create_empty(disk)
    assert await pool.delete(disk.id)
    assert not await pool.delete(disk.id)
    with pytest.raises(Internal):
        await pool.delete("../pool")
    with pytest.raises(Internal):
        pool.path(Volume(id=new_id(), pool="other", size=1, created_at=0.0))


async def test_copies_of_documents(pool: DirectoryPool) -> None:
    disk = layer()
    await pool.write_copy("volumes", disk)
    path = pool.documents / "volumes" / f"{disk.id}.json"
    assert json.loads(path.read_bytes())["id"] == disk.id
    assert mode(path) == 0o600
    await pool.remove_copy("volumes", disk.id)
    await pool.remove_copy("volumes", disk.id)
    assert not path.exists()
    with pytest.raises(Internal):
        await pool.remove_copy("../layers", disk.id)
