"""Garbage collection: what it takes, and above all what it leaves."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from guesthouse.model.device import Disk
from guesthouse.model.guest import Guest, GuestSpec, GuestStatus
from guesthouse.model.ids import new_id
from guesthouse.model.job import Job, JobState, Step
from guesthouse.model.states import GuestState
from guesthouse.model.volume import Volume
from guesthouse.storage import durable
from guesthouse.storage.collect import CollectParams
from guesthouse.storage.usage import doom
from guesthouse.store.contract import ABSENT, Op, Put
from tests.image_house import ImageHouse, image_house

NOW = CollectParams(grace=-5)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ImageHouse]:
    async with image_house(tmp_path / "house") as house:
        yield house


def volume(parent: str = "", **more: object) -> Volume:
    return Volume(
        **{"id": new_id(), "parent": parent, "size": 1 << 20, "created_at": time.time(), **more}
    )


async def stored(house: ImageHouse, *volumes: Volume) -> None:
    """Files, documents and copies, as operations leave them."""
    for one in volumes:
        parent = house.view.volumes.get(one.parent)
        if parent:
            await house.pool.create_overlay(one, house.pool.path(parent))
        else:
            await house.pool.create_empty(one)
        await commit(house, house.documents.volumes.put_op(one, expect=ABSENT))
        await house.pool.write_copy("volumes", one)


async def commit(house: ImageHouse, *ops: Op) -> None:
    await house.view.wait_for(await house.documents.store.commit(ops))


async def guest_on(house: ImageHouse, top: Volume) -> Guest:
    disks = (Disk(name="root", volume=top.id, size=top.size),)
    guest = Guest(
        id=new_id(),
        name="web",
        uuid="",
        number=0,
        created_at=0.0,
        spec=GuestSpec(image="", image_id="", disks=disks),
        status=GuestStatus(state=GuestState.STOPPED, since=0.0),
    )
    await commit(house, house.documents.guests.put_op(guest, expect=ABSENT))
    return guest


async def collect(house: ImageHouse, params: CollectParams = NOW) -> Job:
    job = await house.jobs.submit("storage.collect", params, dedupe="storage")
    return await house.jobs.wait(job.id, 120)


def layers(house: ImageHouse) -> set[str]:
    return set(os.listdir(house.pool.layers.folder))


async def test_files_without_documents_go_after_the_grace(house: ImageHouse) -> None:
    stray, used = volume(), volume()
    await house.pool.create_empty(stray)
    await stored(house, used)
    job = await collect(house, CollectParams())
    assert job.result["files"] == 0 and len(layers(house)) == 2
    job = await collect(house)
    assert job.result["files"] == 1 and job.result["freed"] > 0
    assert layers(house) == {used.filename}  # its document is there, though nobody uses it


async def test_a_linked_file_with_an_old_date_is_young(house: ImageHouse, tmp_path: Path) -> None:
    old = volume(immutable=True)
    await house.pool.create_empty(old)
    source = house.pool.path(old).rename(tmp_path / "cached")
    os.utime(source, (0, 0))
    os.link(source, house.pool.path(old))
    assert (await collect(house, CollectParams())).result["files"] == 0
    assert layers(house) == {old.filename}


async def test_doomed_volumes_go_with_their_doomed_parents(house: ImageHouse) -> None:
    base = volume(immutable=True)
    await stored(house, base)
    top = volume(base.id)
    await stored(house, top)
    for one in (base, top):
        await commit(house, house.documents.volumes.put_op(doom(one)))
    job = await collect(house, CollectParams())
    assert job.result["volumes"] == 2
    assert not house.view.volumes and not layers(house)
    assert os.listdir(house.pool.documents / "volumes") == []


async def test_doomed_volumes_that_somebody_needs_stay(house: ImageHouse) -> None:
    base = volume(immutable=True)
    await stored(house, base)
    top, lonely = volume(base.id), volume(base.id)
    await stored(house, top, lonely)
    guest = await guest_on(house, top)
    for one in (base, top):
        await commit(house, house.documents.volumes.put_op(doom(one)))
    assert (await collect(house)).result["volumes"] == 0
    assert len(layers(house)) == 3
    await commit(house, house.documents.guests.delete_op(guest.id))
    assert (await collect(house)).result["volumes"] == 1  # the base still carries another volume
    assert layers(house) == {base.filename, lonely.filename}


async def test_nothing_goes_while_documents_are_quarantined(house: ImageHouse) -> None:
    await house.pool.create_empty(volume())
    await commit(house, Put(f"guests/{new_id()}", b"{}"))
    job = await collect(house)
    assert job.state is JobState.FAILED and job.problem.code == "conflict"
    assert "cannot be read" in job.problem.message
    assert len(layers(house)) == 1


async def test_what_a_job_is_making_stays(house: ImageHouse) -> None:
    made, other = volume(), volume()
    for one in (made, other):
        await house.pool.create_empty(one)
    steps = (Step(name="create", creates={"volumes": f"{made.id},{new_id()}"}),)
    job = Job(id=new_id(), kind="guest.launch", steps=steps, created_at=0.0)
    await commit(house, house.documents.jobs.put_op(job))
    await collect(house)
    assert layers(house) == {made.filename}


async def test_a_lost_database_costs_no_disk(tmp_path: Path) -> None:
    """The daemon starts with an empty database beside a pool full of disks."""
    async with image_house(tmp_path / "house") as house:
        one = volume()
        await stored(house, one)
    for path in (tmp_path / "house").glob("guesthouse.db*"):
        path.unlink()
    async with image_house(tmp_path / "house") as house:
        assert not house.view.volumes
        job = await collect(house)
        assert job.result["kept"] == 1 and job.result["files"] == 0
        assert layers(house) == {one.filename}
        assert "copy of its document" in "\n".join(await house.jobs.log_lines(job.id))


async def test_leavings_of_interrupted_work_go(house: ImageHouse) -> None:
    used = volume()
    await stored(house, used)
    stale = durable.temporary_beside(house.pool.path(used))
    stale.write_bytes(b"x" * 8192)
    copy = durable.temporary_beside(house.pool.documents / "volumes" / f"{used.id}.json")
    copy.touch()
    assert (await collect(house, CollectParams())).result["leavings"] == 0
    job = await collect(house)
    assert job.result["leavings"] == 2 and job.result["freed"] >= 8192
    assert layers(house) == {used.filename}


async def test_foreign_files_are_left_alone(house: ImageHouse) -> None:
    (house.pool.layers.folder / "notes.txt").write_text("mine")
    (house.pool.layers.folder / "my.qcow2").write_text("mine too")
    await collect(house)
    assert layers(house) == {"notes.txt", "my.qcow2"}
