"""The job `image.import`: an image of the catalogue or nothing, however often it is begun."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from guesthouse.errors import NameTaken
from guesthouse.images import importing
from guesthouse.images.importing import refuse_taken
from guesthouse.model.ids import new_id
from guesthouse.model.image import ImageKind, Seed, SourceFormat
from guesthouse.model.imports import ImportImageRequest
from guesthouse.model.job import Job, JobState
from guesthouse.model.volume import VolumeFormat
from tests.foreign_files import MIB, iso, qcow2, vdi, vhd
from tests.image_house import ImageHouse, image_house


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ImageHouse]:
    async with image_house(tmp_path / "house") as opened:
        yield opened


async def sent(house: ImageHouse, data: bytes) -> str:
    async def pieces() -> AsyncIterator[bytes]:
        yield data

    upload = await house.uploads.create(len(data))
    await house.uploads.write(upload.id, 0, pieces())
    return upload.id


async def imported(house: ImageHouse, data: bytes | str, name: str = "mine", **more: Any) -> Job:
    upload = data if isinstance(data, str) else await sent(house, data)
    params = ImportImageRequest(upload=upload, name=name, **more)
    job = await house.jobs.submit("image.import", params)
    ended = await house.jobs.wait(job.id, 120)
    await house.view.wait_for(house.documents.store.revision)
    return ended


def leavings(house: ImageHouse) -> list[str]:
    folders = (house.uploads.root, house.pool.layers.folder)
    return [path.name for folder in folders if folder.is_dir() for path in folder.iterdir()]


def with_snapshot(path: Path) -> bytes:
    path.write_bytes(qcow2(data=b"hello"))
    subprocess.run(["qemu-img", "snapshot", "-c", "before", path], check=True)
    return path.read_bytes()


async def test_a_disk(house: ImageHouse, tmp_path: Path) -> None:
    job = await imported(
        house,
        with_snapshot(tmp_path / "image"),
        description="an old server",
        os="Debian 12",
        agent=True,
        seed=Seed.NONE,
    )
    assert job.state is JobState.DONE, job.problem
    image = house.catalogue.resolve("mine")
    assert job.result == {"image": image.id, "name": "mine"}
    assert (image.source, image.kind, image.format) == (
        "imported",
        ImageKind.DISK,
        SourceFormat.QCOW2,
    )
    assert (image.description, image.os, image.agent, image.ssh_port, image.seed) == (
        "an old server",
        {"pretty": "Debian 12"},
        True,
        False,
        Seed.NONE,
    )
    assert image.virtual_size == 4 * MIB
    assert "snapshot" in image.facts["left out"]
    volume = house.view.volumes[image.volume]
    path = await asyncio.to_thread(house.pool.layers.existing, volume)
    assert (volume.immutable, volume.format, volume.size) == (True, VolumeFormat.QCOW2, 4 * MIB)
    assert volume.digest == image.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    facts = path.stat()
    assert (facts.st_mode & 0o777, facts.st_uid, facts.st_size) == (0o444, os.geteuid(), image.size)
    assert (await house.pool.check(volume)).clean
    assert leavings(house) == [volume.filename]


async def test_a_disc_stays_as_it_is(house: ImageHouse) -> None:
    data = iso() + b"an odd end"
    job = await imported(house, data, agent=True, seed=Seed.NOCLOUD)
    assert job.state is JobState.DONE, job.problem
    image = house.catalogue.resolve("mine")
    volume = house.view.volumes[image.volume]
    path = house.pool.path(volume)
    assert path.read_bytes() == data.ljust(33 * 2048, b"\0")
    assert (image.kind, image.seed, image.agent) == (ImageKind.ISO, Seed.NONE, False)
    assert (volume.format, volume.immutable, volume.size) == (VolumeFormat.RAW, True, 33 * 2048)
    assert leavings(house) == [volume.filename]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (qcow2(backing=b"/etc/shadow"), "backing-file"),
        (qcow2(data=b"x", clusters=2), "damaged"),
        (vdi(kind=4), "backing-file"),
        (b"\x1f\x8b" + bytes(100), "packed"),
        (qcow2(2 << 40), "too-large"),
    ],
)
async def test_what_is_refused_leaves_nothing(house: ImageHouse, data: bytes, reason: str) -> None:
    job = await imported(house, data)
    assert job.state is JobState.FAILED
    assert job.problem is not None
    assert (job.problem.code, job.problem.detail["reason"]) == ("invalid-input", reason)
    assert leavings(house) == []
    assert not house.view.images
    assert not house.view.volumes


async def test_names_are_not_taken_from_others(house: ImageHouse) -> None:
    assert (await imported(house, qcow2())).state is JobState.DONE
    for name in ("mine", "micro"):
        with pytest.raises(NameTaken):
            await refuse_taken(house.catalogue, name)
        job = await imported(house, qcow2(), name)
        assert job.problem is not None
        assert job.problem.code == "name-taken"
    assert len(leavings(house)) == 1


async def test_two_at_once_for_one_name(house: ImageHouse) -> None:
    both = await asyncio.gather(imported(house, qcow2()), imported(house, iso()))
    assert sorted(job.state.value for job in both) == ["done", "failed"]
    assert len(house.view.images) == len(leavings(house)) == 1


async def test_no_such_upload(house: ImageHouse) -> None:
    job = await imported(house, new_id())
    assert job.problem is not None
    assert job.problem.code == "not-found"


async def test_it_can_be_removed_and_its_name_used_again(house: ImageHouse) -> None:
    await imported(house, iso())
    assert await house.catalogue.remove(house.catalogue.resolve("mine")) > 0
    assert leavings(house) == []
    assert (await imported(house, qcow2())).state is JobState.DONE


@pytest.mark.parametrize("data", [qcow2(data=b"hello"), iso()], ids=["disk", "disc"])
@pytest.mark.parametrize("where", ["look", "convert", "import", "digest", "commit", "remove"])
async def test_begun_again_after_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, where: str
) -> None:
    """The daemon dies right after the named step; the next one ends the work."""
    folder = tmp_path / "house"
    async with image_house(folder) as house:
        upload = await sent(house, data)
        struck = _strike(house, monkeypatch, where)
        job = await house.jobs.submit(
            "image.import", ImportImageRequest(upload=upload, name="mine")
        )
        # A disc is never converted.
        if data != iso() or where != "convert":
            await asyncio.wait_for(struck.wait(), 60)
    monkeypatch.undo()
    async with image_house(folder) as house:
        await house.jobs.recover()
        ended = await house.jobs.wait(job.id, 60)
        assert ended.state is JobState.DONE, ended.problem
        await house.view.wait_for(house.documents.store.revision)
        image = house.catalogue.resolve("mine")
        volume = house.view.volumes[image.volume]
        content = house.pool.path(volume).read_bytes()
        assert image.digest == hashlib.sha256(content).hexdigest()
        assert image.kind is (ImageKind.ISO if data == iso() else ImageKind.DISK)
        assert leavings(house) == [volume.filename]
        assert len(house.view.volumes) == 1


def _strike(house: ImageHouse, monkeypatch: pytest.MonkeyPatch, where: str) -> asyncio.Event:
    """After that step the job never goes on, as if the daemon were dead."""
    struck = asyncio.Event()

    async def never() -> None:
        struck.set()
        await asyncio.Event().wait()

    def after(real: Any) -> Any:
        async def call(*arguments: Any, **options: Any) -> Any:
            await real(*arguments, **options)
            await never()

        return call

    places: dict[str, tuple[Any, str]] = {
        "convert": (importing, "convert"),
        "import": (house.pool, "import_file"),
        "digest": (importing, "in_thread"),
        "commit": (house.catalogue, "add"),
        "remove": (house.uploads, "remove"),
    }
    if where == "look":
        real_layer = importing.ImportImage._layer

        async def layer(*arguments: Any) -> Any:
            await never()
            return await real_layer(*arguments)

        monkeypatch.setattr(importing.ImportImage, "_layer", layer)
        return struck
    thing, name = places[where]
    monkeypatch.setattr(thing, name, after(getattr(thing, name)))
    return struck


async def test_cancelled_in_the_middle(house: ImageHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    struck = _strike(house, monkeypatch, "convert")
    upload = await sent(house, qcow2(data=b"x"))
    job = await house.jobs.submit("image.import", ImportImageRequest(upload=upload, name="mine"))
    await asyncio.wait_for(struck.wait(), 60)
    await house.jobs.cancel(job.id)
    assert (await house.jobs.wait(job.id, 60)).state is JobState.CANCELLED
    assert leavings(house) == []


async def test_larger_than_the_setting_after_all(tmp_path: Path) -> None:
    """A VHD says two sizes, and which of them counts depends on who made it."""
    data = vhd(size=MIB, geometry=16 * MIB, entries=8)
    async with image_house(tmp_path / "house", most=4 * MIB) as house:
        job = await imported(house, data)
        assert job.problem is not None
        assert job.problem.detail["reason"] == "too-large"
        assert leavings(house) == []


def test_the_tool_knows_what_we_write(tmp_path: Path) -> None:
    """The crafted files of these tests are what they claim to be."""
    path = tmp_path / "image"
    path.write_bytes(qcow2(data=b"hello"))
    done = subprocess.run(
        ["qemu-img", "check", "-f", "qcow2", path], capture_output=True, check=True
    )
    assert b"No errors" in done.stdout
