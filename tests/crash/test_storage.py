"""kill -9 around every change that storage makes to the disk, then the same again."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from guesthouse.storage import durable
from guesthouse.storage.pool import DirectoryPool
from guesthouse.storage.transfer import Way
from tests.crash import storage_child as child

SCRIPT = Path(child.__file__)
SAMPLE = 4
KILLED = -9


def tool(*argv: object) -> None:
    subprocess.run([str(word) for word in argv], check=True, stdout=subprocess.DEVNULL)


def run(folder: Path, case: str, point: int) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(SCRIPT), str(folder), case, str(point)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in {0, KILLED}, done.stderr
    return done


async def prepare(folder: Path) -> DirectoryPool:
    """A pool with a base and an overlay's place, and a file that waits to be brought in."""
    folder.mkdir()
    pool = await DirectoryPool.open(folder / "pool")
    source = folder / "source.qcow2"
    tool("qemu-img", "create", "-f", "qcow2", source, child.SIZE)
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", source)
    source.chmod(0o444)
    await pool.import_file(child.base(), source)
    return pool


async def verify(pool: DirectoryPool, folder: Path, case: str) -> None:
    """What the operation promises when it has ended well."""
    volumes = {v.id: v for v in (child.base(), child.top(), child.new())}
    source = folder / "source.qcow2"
    if case in {"overlay", "grow"}:
        assert len(await pool.verify_chain(volumes, child.TOP)) == 2
        assert (await pool.check(child.top())).clean
        wanted = (4 if case == "grow" else 2) * child.SIZE
        assert (await pool.info(child.top())).virtual_size == wanted
    elif case == "delete":
        assert not pool.path(child.top()).exists()
    elif case == "document":
        assert (pool.documents / "volumes" / f"{child.TOP}.json").stat().st_size > 0
    else:
        path = pool.path(child.new())
        assert (await pool.check(child.new())).clean
        assert path.stat().st_mode & 0o777 == (0o444 if case == "link" else 0o600)
        assert source.exists() == (case != "move")
        if case != "empty":
            tool("qemu-io", "-f", "qcow2", "-r", "-c", "read -P 7 0 1M", path)


async def start(folder: Path, case: str) -> int:
    """Make the folder that every run begins with; answers how many points the case has."""
    pool = await prepare(folder / "start")
    if case in {"grow", "delete"}:
        await pool.create_overlay(child.top(), pool.path(child.base()))
    count = int(run(fresh(folder, "count"), case, 0).stdout)
    assert count >= 2
    return count


def fresh(folder: Path, name: str) -> Path:
    return Path(shutil.copytree(folder / "start", folder / name))


async def kill_and_repeat(parent: Path, case: str, point: int) -> None:
    folder = fresh(parent, f"point-{point}")
    assert run(folder, case, point).returncode == KILLED
    pool = await DirectoryPool.open(folder / "pool")
    complete = [p for p in pool.layers.folder.iterdir() if not durable.is_temporary(p.name)]
    for path in complete:  # what has a layer's name is a whole layer
        tool("qemu-img", "check", "-f", "qcow2", path)
    assert run(folder, case, 0).returncode == 0
    await verify(pool, folder, case)
    for path in durable.stale_files(pool.layers.folder, -1):
        path.unlink()
    await verify(pool, folder, case)
    shutil.rmtree(folder)


@pytest.mark.parametrize("case", sorted(child.CASES))
async def test_killed_somewhere_and_done_again(tmp_path: Path, case: str) -> None:
    count = await start(tmp_path, case)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    for point in random.Random(seed).sample(range(1, count + 1), min(SAMPLE, count)):
        await kill_and_repeat(tmp_path, case, point)


@pytest.mark.full
@pytest.mark.parametrize("case", sorted(child.CASES))
async def test_killed_anywhere_and_done_again(tmp_path: Path, case: str) -> None:
    for point in range(1, await start(tmp_path, case) + 1):
        await kill_and_repeat(tmp_path, case, point)


async def test_a_move_never_loses_the_only_copy(tmp_path: Path) -> None:
    """At every point the file is at its old place, at its new one, or at both."""
    for point in range(1, await start(tmp_path, "move") + 1):
        folder = fresh(tmp_path, f"point-{point}")
        run(folder, "move", point)
        pool = await DirectoryPool.open(folder / "pool")
        places = [folder / "source.qcow2", pool.path(child.new())]
        assert any(place.exists() for place in places), point
        assert await pool.import_file(child.new(), places[0], Way.MOVE) in {"moved", "present"}
        assert not places[0].exists()
