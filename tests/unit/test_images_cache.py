"""The cache of built images: whole entries, damage found, locks between processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from guesthouse.errors import Internal
from guesthouse.images.cache import BuildCache
from guesthouse.images.spec import BuiltImage
from guesthouse.storage.filelock import file_lock, try_lock

KEY, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def cache(tmp_path: Path) -> BuildCache:
    return BuildCache(tmp_path / "images")


async def fill(cache: BuildCache, key: str = KEY, name: str = "micro") -> BuiltImage:
    folder = await cache.begin(key)
    for part in ("kernel", "initrd"):
        (folder / part).write_bytes(part.encode() * 1000)
    (folder / "build.log").write_text("all went well\n")
    return BuiltImage(
        name=name, build_key=key, disk=None, kernel=folder / "kernel", initrd=folder / "initrd",
        cmdline="quiet", virtual_size=0, os={"id": "x"}, facts={"kernel": "6.1"},
    )  # fmt: skip


async def test_what_is_stored_is_found(cache: BuildCache) -> None:
    assert await cache.lookup(KEY) is None
    async with cache.lock(KEY):
        stored = await cache.store(await fill(cache))
    found = await cache.lookup(KEY)
    assert found == stored
    assert found.built.kernel == cache.root / KEY / "kernel"
    assert found.built.cmdline == "quiet" and found.built.disk is None
    assert found.built.kernel.stat().st_mode & 0o777 == 0o444
    assert found.digests.keys() == {"kernel", "initrd"}
    assert sorted(os.listdir(cache.root)) == [KEY, "locks"]
    assert [entry.built.name for entry in await cache.entries()] == ["micro"]
    assert await cache.size() > 0


@pytest.mark.parametrize("damage", ["cut", "missing", "no manifest", "rubbish", "link", "newer"])
async def test_a_damaged_entry_is_removed(cache: BuildCache, damage: str) -> None:
    await cache.store(await fill(cache))
    folder = cache.root / KEY
    if damage == "cut":
        (folder / "kernel").chmod(0o644)  # frozen files resist, unless one insists
        os.truncate(folder / "kernel", 10)
    elif damage == "missing":
        (folder / "initrd").unlink()
    elif damage == "no manifest":
        (folder / "image.json").unlink()
    elif damage == "rubbish":
        (folder / "image.json").write_bytes(b"\0")
    elif damage == "newer":
        text = (folder / "image.json").read_text()
        (folder / "image.json").write_text(text.replace("{", '{"unknown":1,', 1))
    else:
        (folder / "kernel").unlink()
        (folder / "kernel").symlink_to("/etc/hostname")
    assert await cache.entries() == []
    assert await cache.lookup(KEY) is None
    assert os.listdir(cache.root) == []


async def test_storing_again_replaces(cache: BuildCache) -> None:
    first = await cache.store(await fill(cache))
    second = await cache.store(await fill(cache))
    assert second.created_at > first.created_at
    assert await cache.lookup(KEY) == second


async def test_leavings_of_dead_builds_go(cache: BuildCache) -> None:
    dead = (await fill(cache)).kernel.parent
    other = (await fill(cache, OTHER)).kernel.parent
    folder = await cache.begin(KEY)
    assert not dead.exists() and folder.is_dir() and other.is_dir()
    assert os.listdir(folder) == []


async def test_foreign_folders_are_not_taken(cache: BuildCache, tmp_path: Path) -> None:
    built = await fill(cache)
    moved = built.kernel.parent.rename(tmp_path / "elsewhere")
    with pytest.raises(Internal):
        await cache.store(
            BuiltImage(
                name="micro", build_key=KEY, disk=None, kernel=moved / "kernel", cmdline="",
                initrd=moved / "initrd", virtual_size=0, os={}, facts={},
            )
        )  # fmt: skip
    with pytest.raises(Internal):
        await cache.lookup("../../etc")


async def test_clearing_spares_what_somebody_holds(cache: BuildCache) -> None:
    await cache.store(await fill(cache))
    await cache.store(await fill(cache, OTHER))
    unfinished = (await fill(cache, "c" * 64)).kernel.parent
    async with cache.lock(KEY):
        assert await cache.clear() > 0
        assert await cache.lookup(KEY) is not None
    assert await cache.lookup(OTHER) is None
    assert not unfinished.exists()
    await cache.clear()
    assert os.listdir(cache.root) == ["locks"]


async def test_old_recipes_of_a_name_go(cache: BuildCache) -> None:
    keys = [letter * 64 for letter in "abcd"]
    for key in keys:
        await cache.store(await fill(cache, key))
    await cache.store(await fill(cache, "e" * 64, "other"))
    async with cache.lock(keys[-1]):
        assert await cache.prune("micro") > 0
    kept = [entry.built.build_key for entry in await cache.entries()]
    assert kept == ["e" * 64, keys[3], keys[2]]


async def test_locks_exclude_within_a_process(tmp_path: Path) -> None:
    inside, most, waits = 0, 0, []

    async def enter() -> None:
        nonlocal inside, most
        async with file_lock(tmp_path / "deep" / "lock", lambda: waits.append(1)):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(enter() for _ in range(4)))
    assert most == 1 and waits


async def test_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    holder = hold_elsewhere(tmp_path / "lock")
    assert try_lock(tmp_path / "lock") is None
    holder.send_signal(signal.SIGKILL)
    await asyncio.to_thread(holder.wait)
    async with asyncio.timeout(60), file_lock(tmp_path / "lock"):
        pass


async def test_a_deleted_lock_file_is_made_afresh(tmp_path: Path) -> None:
    async with file_lock(tmp_path / "lock"):
        (tmp_path / "lock").unlink()
        fd = try_lock(tmp_path / "lock")
        assert fd is not None
        os.close(fd)


async def test_waiting_for_a_lock_can_be_cancelled(tmp_path: Path) -> None:
    waiting = asyncio.Event()

    async def wait() -> None:
        async with file_lock(tmp_path / "lock", waiting.set):
            raise AssertionError

    async with file_lock(tmp_path / "lock"):
        task = asyncio.create_task(wait())
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def hold_elsewhere(path: Path) -> subprocess.Popen[bytes]:
    """Another process that holds the lock."""
    code = (
        "import sys, signal; from pathlib import Path\n"
        "from guesthouse.storage.filelock import try_lock\n"
        "fd = try_lock(Path(sys.argv[1])); print('held' if fd else 'busy', flush=True)\n"
        "signal.pause()\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline() == b"held\n"
    return holder
