"""What becomes of jobs when the daemon stops, dies, or comes back as another version."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from guesthouse.errors import Unavailable
from guesthouse.jobs.context import JobContext
from guesthouse.jobs.recovery import ATTEMPTS, UNDO_ATTEMPTS
from guesthouse.jobs.retention import KEPT_JOBS, KEPT_SECONDS
from guesthouse.model.ids import new_id
from guesthouse.model.job import Job, JobState, Step
from guesthouse.store.contract import Put
from tests.unit.jobs_house import DEADLINE, ToyHouse, ToyParams, forever, nothing, toy_house, until


async def leave(folder: Path, **fields: object) -> Job:
    """A job document as a daemon that was killed leaves it."""
    raw: dict[str, object] = {
        "id": new_id(),
        "kind": "toy",
        "params": {"on": ["guests/1"]},
        "locks": ["guests/1"],
        "state": JobState.RUNNING,
        "attempts": 1,
        "created_at": 1.0,
        "started_at": 1.0,
    }
    job = msgspec.convert(raw | fields, Job)
    async with toy_house(folder) as house:
        await house.store.commit([house.documents.jobs.put_op(job)])
    return job


async def end(house: ToyHouse, job: Job) -> Job:
    return await house.runner.wait(job.id, DEADLINE)


async def test_closing_neither_undoes_nor_ends(tmp_path: Path) -> None:
    undone, ids = [], []

    async def body(ctx: JobContext) -> None:
        async def undo() -> None:
            undone.append(1)

        ids.append((await ctx.step("make", volume=new_id))["volume"])
        ctx.undo(undo)
        if not ctx.resumed:
            await asyncio.Event().wait()

    async with toy_house(tmp_path) as house:
        house.toy("toy", body)
        job = await house.runner.submit("toy", ToyParams(on=("guests/1",)), dedupe="x")
        queued = await house.runner.submit("toy", ToyParams(on=("guests/1",)))
        await until(lambda: bool(ids))
        waiting = asyncio.create_task(house.runner.wait(job.id))
        following = house.runner.subscribe(job.id)
        await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await waiting
    assert not [item async for item in following if isinstance(item, Job) and item.ended]
    assert undone == []

    async with toy_house(tmp_path) as house:
        toy = house.toy("toy", body)
        assert [j.id for j in await house.runner.recover()] == [job.id, queued.id]
        assert house.runner.holder("guests/1") == job.id
        same = await house.runner.submit("toy", ToyParams(on=("guests/1",)), dedupe="x")
        assert same.id == job.id
        ended = await end(house, job)
        assert (ended.state, ended.attempts) == (JobState.DONE, 1)  # orderly stops do not count
        assert toy.runs == 1 or house.runner.holder("guests/1") == queued.id
        await until(lambda: toy.runs == 2)
        await house.runner.cancel(queued.id)
        await end(house, queued)
    assert ids[0] == ids[1]


async def test_closing_waits_for_undos_but_not_for_ever(tmp_path: Path) -> None:
    undoing, later = asyncio.Event(), []

    async def body(ctx: JobContext) -> None:
        async def never_comes() -> None:
            later.append(1)

        async def hangs() -> None:
            undoing.set()
            await asyncio.Event().wait()

        ctx.undo(never_comes)
        ctx.undo(hangs)
        raise ValueError

    async with toy_house(tmp_path) as house:
        house.toy("toy", body)
        job = await house.runner.submit("toy", {})
        await undoing.wait()
        await house.runner.close(deadline=0.05)
        assert later == []
        assert not (await house.documents.jobs.require(job.id)).doc.ended


async def test_recovery_takes_up_with_the_recorded_ids(tmp_path: Path) -> None:
    job = await leave(tmp_path, steps=[Step(name="make", creates={"volume": "01V"})])
    states = []

    async def body(ctx: JobContext) -> dict[str, object]:
        states.append(ctx.job.state)
        assert ctx.resumed
        assert ctx.has_step("make")
        assert not ctx.has_step("start")
        return dict(await ctx.step("make", volume=new_id, extra="new in this version"))

    async with toy_house(tmp_path) as house:
        house.toy("toy", body)
        (taken,) = await house.runner.recover()
        assert (taken.state, taken.attempts) == (JobState.RECOVERING, 2)
        ended = await end(house, job)
        assert ended.state is JobState.DONE
        assert ended.result == {"volume": "01V", "extra": "new in this version"}
        assert ended.steps == (Step(name="make", creates=ended.result),)
        assert any("attempt 2" in line for line in await house.runner.log_lines(job.id))
    assert states == [JobState.RUNNING]


async def test_holders_come_before_waiters(tmp_path: Path) -> None:
    waiter = await leave(tmp_path, state="queued", attempts=0, started_at=None)
    holder = await leave(tmp_path)
    order = []

    async def body(ctx: JobContext) -> None:
        order.append(ctx.job.id)

    async with toy_house(tmp_path) as house:
        house.toy("toy", body)
        await house.runner.recover()
        await end(house, waiter)
    assert order == [holder.id, waiter.id]


async def test_locks_taken_on_the_way_are_taken_again_first(tmp_path: Path) -> None:
    job = await leave(tmp_path, locks=["guests/1", "guests/2"])
    async with toy_house(tmp_path) as house:
        house.toy("toy", forever)
        await house.runner.recover()
        assert house.runner.holder("guests/2") == job.id


async def test_undone_after_too_many_attempts(tmp_path: Path) -> None:
    job = await leave(tmp_path, attempts=ATTEMPTS, steps=[Step(name="make")])
    done: list[str] = []

    async def body(ctx: JobContext) -> None:
        async def undo() -> None:
            done.append("undo make")

        await ctx.step("make")
        ctx.undo(undo)
        done.append("make")
        await ctx.step("start")
        done.append("start")

    async with toy_house(tmp_path) as house:
        house.toy("toy", body)
        await house.runner.recover()
        ended = await end(house, job)
    assert done == ["make", "undo make"]
    assert ended.state is JobState.FAILED
    assert ended.problem is not None
    assert ended.problem.code == "interrupted"
    assert str(ATTEMPTS) in ended.problem.message


async def test_a_job_that_cannot_even_be_undone_is_left(tmp_path: Path) -> None:
    job = await leave(
        tmp_path,
        attempts=ATTEMPTS + UNDO_ATTEMPTS,
        steps=[Step(name="make", creates={"volume": "01V"})],
    )
    async with toy_house(tmp_path) as house:
        toy = house.toy("toy", nothing)
        assert await house.runner.recover() == []
        ended = await end(house, job)
    assert toy.runs == 0
    assert ended.problem is not None
    assert ended.problem.detail == {"steps": {"make": {"volume": "01V"}}}


@pytest.mark.parametrize(
    ("fields", "code"),
    [({"kind": "of.the.future"}, "interrupted"), ({"params": {"x": 1}}, "unknown-field")],
)
async def test_jobs_that_nobody_understands_fail(
    tmp_path: Path, fields: dict[str, object], code: str
) -> None:
    job = await leave(tmp_path, **fields)
    async with toy_house(tmp_path) as house:
        toy = house.toy("toy", nothing)
        await house.store.commit([Put("guests/1", b"untouched")])
        assert await house.runner.recover() == []
        ended = await end(house, job)
        assert (await house.documents.jobs.require(job.id)).doc.state is JobState.FAILED
        assert (await house.store.get("guests/1")).value == b"untouched"
    assert toy.runs == 0
    assert ended.problem is not None
    assert ended.problem.code == code


@pytest.mark.parametrize(
    ("steps", "course"),
    [(["make"], ["make", "undo make"]), (["make", "start"], ["make", "start"]), ([], [])],
)
async def test_a_cancel_is_remembered(tmp_path: Path, steps: list[str], course: list[str]) -> None:
    job = await leave(tmp_path, cancel_requested=True, steps=[Step(name=s) for s in steps])
    done: list[str] = []

    async def body(ctx: JobContext) -> None:
        async def undo(name: str) -> None:
            done.append(f"undo {name}")

        for name in ("make", "start"):
            await ctx.step(name)
            ctx.undo(lambda name=name: undo(name))
            done.append(name)

    async with toy_house(tmp_path) as house:
        house.toy("toy", body)
        await house.runner.recover()
        ended = await end(house, job)
    assert done == course
    assert ended.state is (JobState.DONE if len(steps) == 2 else JobState.CANCELLED)


async def test_a_queued_job_that_was_cancelled_never_runs(tmp_path: Path) -> None:
    job = await leave(tmp_path, state="queued", attempts=0, started_at=None, cancel_requested=True)
    async with toy_house(tmp_path) as house:
        toy = house.toy("toy", nothing)
        await house.runner.recover()
        assert (await end(house, job)).state is JobState.CANCELLED
    assert toy.runs == 0


async def test_a_document_that_does_not_parse_is_left_alone(tmp_path: Path) -> None:
    async with toy_house(tmp_path) as house:
        await house.store.commit([Put("jobs/broken", b"{")])
        assert await house.runner.recover() == []
        assert (await house.store.get("jobs/broken")).value == b"{"


async def test_nothing_is_recovered_on_a_read_only_store(tmp_path: Path) -> None:
    job = await leave(tmp_path)
    async with toy_house(tmp_path) as house:
        house.toy("toy", nothing)
        house.store.refuse_writes("a newer Guesthouse is needed")
        assert await house.runner.recover() == []
        with pytest.raises(Unavailable):
            await house.runner.wait(job.id, DEADLINE)
        assert [item async for item in house.runner.subscribe(job.id)] == [job]


async def test_submissions_while_stopping_are_refused(tmp_path: Path) -> None:
    async with toy_house(tmp_path) as house:
        toy = house.toy("toy", nothing)
        await house.runner.close()
        with pytest.raises(Unavailable):
            await house.runner.submit("toy", {})
    assert toy.runs == 0


async def test_retention(tmp_path: Path) -> None:
    now, logs = 1e9, tmp_path / "jobs"
    logs.mkdir()
    async with toy_house(tmp_path) as house:

        def job(age: float, **fields: object) -> Job:
            ended = {"id": new_id(), "kind": "toy", "state": "done", "created_at": 1.0}
            return msgspec.convert(ended | {"ended_at": now - age} | fields, Job)

        running = job(0, state="running", ended_at=None)
        old = [job(KEPT_SECONDS + 1) for _ in range(250)]
        new = [job(60) for _ in range(KEPT_JOBS + 30)]
        jobs = [running, *old, *new]
        for start in range(0, len(jobs), 100):
            await house.store.commit(
                [house.documents.jobs.put_op(j) for j in jobs[start : start + 100]]
            )
        await house.store.commit([Put("jobs/broken", b"{")])
        for id in (old[0].id, new[0].id, new[-1].id, running.id, "broken", "orphan"):
            (logs / f"{id}.log").write_text("line\n")
        assert await house.runner._retention.tidy(now) == 280
        left = await house.documents.jobs.list()
        assert [v.doc.id for v in left.documents] == [running.id, *(j.id for j in new[30:])]
        assert list(left.broken) == ["jobs/broken"]
        assert {path.stem for path in logs.iterdir()} == {new[-1].id, running.id, "broken"}


async def test_old_jobs_go_at_the_start(tmp_path: Path) -> None:
    job = await leave(tmp_path, state="done", ended_at=1.0)
    async with toy_house(tmp_path) as house:
        await house.runner.recover()
        async with asyncio.timeout(DEADLINE), house.store.watch("", since=1) as changes:
            assert (await anext(changes))[0][:2] == (f"jobs/{job.id}", None)
