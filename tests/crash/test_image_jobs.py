"""kill -9 of a daemon within jobs of the images; the next daemon finishes or undoes them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from guesthouse.errors import UnknownImage
from guesthouse.model.ids import new_id
from guesthouse.model.job import JobState
from guesthouse.model.volume import Volume
from guesthouse.storage.durable import is_temporary
from guesthouse.storage.usage import doom
from guesthouse.store.contract import ABSENT
from tests.crash import image_child as child
from tests.image_house import ImageHouse, image_house

SCRIPT = Path(child.__file__)
CASES = ["build", "collect", "remove"]
SAMPLE = 5
KILLED = -9


def run(folder: Path, case: str, point: int = 0) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(SCRIPT), str(folder), case, str(point)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in {0, KILLED}, done.stderr
    return done


def fresh(folder: Path, name: str) -> Path:
    return Path(shutil.copytree(folder / "start", folder / name, symlinks=True))


async def start(folder: Path, case: str) -> int:
    """Make the folder that every run begins with; answers how many points the case has."""
    (folder / "start").mkdir()
    if case != "build":
        assert run(folder / "start", "build").returncode == 0
    if case == "collect":
        async with image_house(folder / "start" / "house") as house:
            await litter(house)
    count = int(run(fresh(folder, "count"), case).stdout)
    assert count > 5
    return count


async def litter(house: ImageHouse) -> None:
    """A doomed volume, and a file without a document."""
    doomed, stray = (Volume(id=new_id(), size=1 << 20, created_at=0.0) for _ in range(2))
    for one in (doomed, stray):
        await house.pool.create_empty(one)
    await house.documents.store.commit([house.documents.volumes.put_op(doom(doomed), ABSENT)])
    await house.pool.write_copy("volumes", doomed)


async def kill_and_recover(parent: Path, case: str, point: int) -> None:
    folder = fresh(parent, f"point-{point}")
    killed = run(folder, case, point).returncode
    assert run(folder, "recover").returncode == 0, point
    async with image_house(folder / "house") as house:
        jobs = list(house.view.jobs.values())
        assert all(job.state is JobState.DONE for job in jobs), [job.problem for job in jobs]
        await sound(house)
        if case == "collect":
            if any(job.kind == "storage.collect" for job in jobs):
                assert len(house.view.volumes) == 1
        else:
            accepted = any(job.kind == f"image.{case}" for job in jobs)
            assert present(house) == (accepted == (case == "build"))
            assert accepted or killed == KILLED
    shutil.rmtree(folder)


def present(house: ImageHouse) -> bool:
    try:
        house.catalogue.resolve(child.NAME)
    except UnknownImage:
        return False
    return True


async def sound(house: ImageHouse) -> None:
    """Every document has its files; nothing has a layer's name that is not whole."""
    for volume in house.view.volumes.values():
        await house.pool.verify_chain(house.view.volumes, volume.id)
        assert (await house.pool.check(volume)).clean
    for image in house.view.images.values():
        assert image.volume in house.view.volumes
        assert house.catalogue.boot_files(image.id) is not None
        assert (await house.documents.images.named(image.name)).id == image.id
    boot = house.catalogue.boot.folder
    assert set(os.listdir(boot) if boot.exists() else []) == set(house.view.images)
    if any(job.kind == "image.build" for job in house.view.jobs.values()):
        assert not [name for name in os.listdir(house.cache.root) if is_temporary(name)]
    ended = {job.kind for job in house.view.jobs.values()}
    if "storage.collect" in ended or ended == {"image.build", "image.remove"}:
        whole = [n for n in os.listdir(house.pool.layers.folder) if not is_temporary(n)]
        assert set(whole) == {volume.filename for volume in house.view.volumes.values()}


@pytest.mark.parametrize("case", CASES)
async def test_killed_somewhere(tmp_path: Path, case: str) -> None:
    count = await start(tmp_path, case)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    for point in random.Random(seed).sample(range(1, count + 1), min(SAMPLE, count)):
        await kill_and_recover(tmp_path, case, point)


@pytest.mark.full
@pytest.mark.parametrize("case", CASES)
async def test_killed_anywhere(tmp_path: Path, case: str) -> None:
    for point in range(1, await start(tmp_path, case) + 1):
        await kill_and_recover(tmp_path, case, point)
