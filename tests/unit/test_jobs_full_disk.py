"""What a full disk keeps from being undone or recorded waits for room, and is not given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from guesthouse.errors import NoSpace, NotFound
from guesthouse.jobs.context import JobContext
from guesthouse.model.job import JobState
from tests.unit.jobs_house import DEADLINE, ToyHouse, ToyParams, toy_house, until

KEY = "guests/1"


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ToyHouse]:
    monkeypatch.setattr("guesthouse.jobs.context.RETRY_FIRST", 0.01)
    async with toy_house(tmp_path) as opened:
        yield opened


class Disk:
    """Full for as long as it is told to be. :ivar tried: how often something was written to it."""

    def __init__(self) -> None:
        self.full = True
        self.tried = 0
        self.written: list[str] = []

    async def write(self, what: str) -> str:
        self.tried += 1
        if self.full:
            raise NoSpace("full")
        self.written.append(what)
        return what


async def test_an_undo_waits_for_room_and_keeps_the_lock(house: ToyHouse) -> None:
    disk = Disk()

    async def body(ctx: JobContext) -> None:
        ctx.undo(lambda: disk.write("first"))
        ctx.undo(lambda: disk.write("second"))
        raise NotFound("gone")

    house.toy("toy", body)
    job = await house.runner.submit("toy", ToyParams(on=(KEY,)))
    await until(lambda: disk.tried > 2)
    assert house.runner.holder(KEY) == job.id
    assert disk.written == []
    disk.full = False
    assert (await house.runner.wait(job.id, DEADLINE)).state is JobState.FAILED
    assert disk.written == ["second", "first"]


async def test_an_undo_that_waits_is_left_to_the_next_daemon(tmp_path: Path) -> None:
    disk = Disk()

    async def body(ctx: JobContext) -> None:
        await ctx.step("act")
        ctx.undo(lambda: disk.write("undone"))
        raise NotFound("gone")

    async with toy_house(tmp_path) as house:
        house.toy("toy", body)
        job = await house.runner.submit("toy", ToyParams(on=(KEY,)))
        await until(lambda: disk.tried > 0)
        await house.runner.close()
        assert not (await house.documents.jobs.require(job.id)).doc.ended
    disk.full = False
    async with toy_house(tmp_path) as house:
        house.toy("toy", body)
        await house.runner.recover()
        assert (await house.runner.wait(job.id, DEADLINE)).state is JobState.FAILED
    assert disk.written == ["undone"]


async def test_what_has_happened_is_recorded_once_there_is_room(house: ToyHouse) -> None:
    disk = Disk()

    async def body(ctx: JobContext) -> None:
        assert await ctx.insist(lambda: disk.write("killed")) == "killed"

    house.toy("toy", body)
    job = await house.runner.submit("toy", ToyParams(on=(KEY,)))
    await until(lambda: disk.tried > 2)
    assert "full" in getattr(house.runner.last_progress(job.id), "message", "")
    disk.full = False
    assert (await house.runner.wait(job.id, DEADLINE)).state is JobState.DONE
    assert disk.written == ["killed"]


async def test_a_job_that_insists_can_be_cancelled(house: ToyHouse) -> None:
    disk = Disk()

    async def body(ctx: JobContext) -> None:
        await ctx.insist(lambda: disk.write("never"))

    house.toy("toy", body)
    job = await house.runner.submit("toy", ToyParams(on=(KEY,)))
    await until(lambda: disk.tried > 0)
    await house.runner.cancel(job.id)
    assert (await house.runner.wait(job.id, DEADLINE)).state is JobState.CANCELLED
    assert disk.written == []


async def test_insisting_does_not_hide_other_failures(house: ToyHouse) -> None:
    async def body(ctx: JobContext) -> None:
        async def missing() -> None:
            await asyncio.sleep(0)
            raise NotFound("no such guest")

        await ctx.insist(missing)

    house.toy("toy", body)
    job = await house.runner.submit("toy", ToyParams())
    ended = await house.runner.wait(job.id, DEADLINE)
    assert ended.problem is not None
    assert ended.problem.code == "not-found"
