"""The jobs image.build and image.remove, run by the real runner."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from guesthouse.errors import BuildFailed
from guesthouse.images.building import BuildParams, RemoveParams
from guesthouse.model.ids import new_id
from guesthouse.model.job import Job, JobState
from tests.image_house import ImageHouse, QuickBuilder, image_house


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ImageHouse]:
    async with image_house(tmp_path / "house") as house:
        yield house


async def build(house: ImageHouse, name: str = "debian/12", *, rebuild: bool = False) -> Job:
    job = await house.jobs.submit(
        "image.build", BuildParams(name=name, rebuild=rebuild), dedupe=name
    )
    return await house.jobs.wait(job.id, 120)


async def remove(house: ImageHouse, image: str) -> Job:
    job = await house.jobs.submit("image.remove", RemoveParams(image=image))
    return await house.jobs.wait(job.id, 120)


def files(*folders: Path) -> list[str]:
    return sorted(name for folder in folders if folder.exists() for name in os.listdir(folder))


async def test_built_once_then_known(house: ImageHouse) -> None:
    first, second = await build(house), await build(house)
    assert first.state is second.state is JobState.DONE
    assert first.result == second.result
    assert house.builder.builds == 1
    image = house.catalogue.resolve("debian/12")
    assert first.result == {"image": image.id, "name": "debian/12"}
    key = image.build_key
    assert files(house.cache.root) == sorted([key, "locks"])
    assert "build.log" in files(house.cache.root / key)


async def test_two_requests_at_once_are_one_build(house: ImageHouse) -> None:
    jobs = await asyncio.gather(*(build(house) for _ in range(4)))
    assert len({job.id for job in jobs}) == 1
    assert house.builder.builds == 1


async def test_another_house_takes_it_from_the_cache(tmp_path: Path) -> None:
    builder, cache = QuickBuilder(), tmp_path / "cache"
    async with image_house(tmp_path / "a", builder=builder, cache=cache) as first:
        await build(first)
        path = first.pool.layers.folder / os.listdir(first.pool.layers.folder)[0]
        async with image_house(tmp_path / "b", builder=builder, cache=cache) as second:
            assert (await build(second)).state is JobState.DONE
            assert builder.builds == 1
            await second.cache.clear()
            image = second.catalogue.resolve("debian/12")
            assert (await second.pool.check(second.view.volumes[image.volume])).clean
            await remove(second, image.id)
        assert path.exists()
        image = first.catalogue.resolve("debian/12")
        assert (await first.pool.check(first.view.volumes[image.volume])).clean


async def test_two_houses_that_build_at_once_wait_for_each_other(tmp_path: Path) -> None:
    going, go_on = asyncio.Event(), asyncio.Event()

    async def pause(_: Path) -> None:
        going.set()
        await go_on.wait()

    builder, cache = QuickBuilder(before=pause), tmp_path / "cache"
    async with image_house(tmp_path / "a", builder=builder, cache=cache) as first:
        async with image_house(tmp_path / "b", builder=builder, cache=cache) as second:
            one = asyncio.create_task(build(first))
            await going.wait()
            two = await second.jobs.submit("image.build", BuildParams(name="debian/12"))
            async for item in second.jobs.subscribe(two.id):
                if "another house" in getattr(item, "message", ""):
                    break
            go_on.set()
            assert (await one).state is JobState.DONE
            assert (await second.jobs.wait(two.id, 120)).state is JobState.DONE
            assert builder.builds == 1


@pytest.mark.parametrize("damage", ["content", "half"])
async def test_a_damaged_cache_is_built_again(tmp_path: Path, damage: str) -> None:
    builder, cache = QuickBuilder(), tmp_path / "cache"
    async with image_house(tmp_path / "a", builder=builder, cache=cache) as first:
        await build(first)
        entry = (await first.cache.entries())[0]
        if damage == "half":
            entry.built.initrd.unlink()
        else:
            entry.built.kernel.chmod(0o644)
            size = entry.built.kernel.stat().st_size
            entry.built.kernel.write_bytes(b"x" * size)
        async with image_house(tmp_path / "b", builder=builder, cache=cache) as second:
            assert (await build(second)).state is JobState.DONE
            assert builder.builds == 2
            files = second.catalogue.boot_files(second.catalogue.resolve("debian/12").id)
            assert Path(files.kernel).read_bytes() == b"kernel one"


async def test_rebuilding_replaces_what_changed(house: ImageHouse) -> None:
    await build(house)
    old = house.catalogue.resolve("debian/12")
    same = await build(house, rebuild=True)
    assert house.builder.builds == 2 and same.result["image"] == old.id
    house.builder.recipe = "two"
    await build(house)
    new = house.catalogue.resolve("debian/12")
    assert new.id != old.id and house.builder.builds == 3
    assert house.catalogue.resolve(old.id) == old  # young: a launch may just have chosen it


async def test_an_image_without_a_disk(house: ImageHouse) -> None:
    await build(house, "micro")
    image = house.catalogue.resolve("micro")
    assert image.volume == "" and image.virtual_size == 0
    assert house.catalogue.boot_files(image.id).cmdline == "quiet"
    assert files(house.pool.layers.folder) == []


async def test_a_failed_build_leaves_nothing_but_its_log(house: ImageHouse) -> None:
    async def fail(into: Path) -> None:
        with open(into / "build.log", "a") as log:
            log.write("E: the mirror burned down\n")
        raise BuildFailed("The tree could not be unpacked.", log=["E: the mirror burned down"])

    house.builder.before = fail
    job = await build(house)
    assert job.state is JobState.FAILED and job.problem.code == "build-failed"
    assert "E: the mirror burned down" in "\n".join(await house.jobs.log_lines(job.id))
    assert files(house.cache.root) == ["locks"]
    assert not house.view.images and not house.view.volumes
    house.builder.before = lambda folder: asyncio.sleep(0)
    assert (await build(house)).state is JobState.DONE


async def test_a_tool_that_met_a_full_disk_is_a_full_disk(house: ImageHouse) -> None:
    async def fail(into: Path) -> None:
        raise BuildFailed("dpkg failed.", log=["dpkg: error: No space left on device"])

    house.builder.before = fail
    job = await build(house)
    assert job.problem.code == "no-space"
    assert job.problem.detail["folder"] == str(house.cache.root)


async def test_too_little_space_is_told_before_building(tmp_path: Path) -> None:
    async with image_house(tmp_path / "h") as house:
        house.jobs._registry.get("image.build").space = 1 << 60
        job = await build(house)
        assert job.problem.code == "no-space" and house.builder.builds == 0
        assert files(house.cache.root) == ["locks"]


async def test_a_cancelled_build_leaves_nothing(house: ImageHouse) -> None:
    going = asyncio.Event()

    async def hang(into: Path) -> None:
        with open(into / "build.log", "a") as log:
            log.write("I: unpacking libc6\n")
        going.set()
        await asyncio.Event().wait()

    house.builder.before = hang
    job = await house.jobs.submit("image.build", BuildParams(name="debian/12"))
    await going.wait()
    await house.jobs.cancel(job.id)
    assert (await house.jobs.wait(job.id, 120)).state is JobState.CANCELLED
    assert await house.jobs.log_lines(job.id) == [
        "building",
        "the builder began",
        "I: unpacking libc6",
        "cancelled: It was cancelled.",
    ]
    assert files(house.cache.root) == ["locks"]
    assert files(house.pool.layers.folder) == []
    assert not house.view.images


async def test_cancelled_between_its_files_and_its_documents(
    house: ImageHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = asyncio.Event()

    async def hang(*_: object, **__: object) -> None:
        imported.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(house.catalogue, "_commit", hang)
    job = await house.jobs.submit("image.build", BuildParams(name="debian/12"))
    await imported.wait()
    assert len(files(house.pool.layers.folder)) == len(files(house.catalogue.boot.folder)) == 1
    await house.jobs.cancel(job.id)
    assert (await house.jobs.wait(job.id, 120)).state is JobState.CANCELLED
    assert files(house.pool.layers.folder, house.catalogue.boot.folder) == []
    assert await house.cache.entries()  # the build itself was finished and is kept


async def test_removing(house: ImageHouse) -> None:
    await build(house)
    image = house.catalogue.resolve("debian/12")
    await house.cache.clear()
    job = await remove(house, image.id)
    assert job.state is JobState.DONE and job.result["freed"] > 0
    assert not house.view.images and not house.view.volumes
    assert files(house.pool.layers.folder, house.catalogue.boot.folder) == []
    again = await remove(house, image.id)
    assert again.problem.code == "unknown-image"
    assert (await remove(house, new_id())).problem.code == "unknown-image"
