"""The life of a job: accepted, run, ended, followed, cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from guesthouse.errors import (
    Conflict,
    DeadlineExceeded,
    Internal,
    InvalidInput,
    NoSpace,
    NotFound,
    UnknownImage,
)
from guesthouse.jobs.context import JobContext
from guesthouse.jobs.feed import Item
from guesthouse.model.document import Noun
from guesthouse.model.ids import new_id
from guesthouse.model.job import Job, JobProgress, JobState, Step
from guesthouse.store.contract import ABSENT, Op, Put
from tests.unit.jobs_house import DEADLINE, ToyHouse, ToyParams, forever, nothing, toy_house, until


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ToyHouse]:
    async with toy_house(tmp_path) as opened:
        yield opened


async def end(house: ToyHouse, job: Job) -> Job:
    return await house.runner.wait(job.id, DEADLINE)


async def stored(house: ToyHouse, job: Job) -> Job:
    return (await house.documents.jobs.require(job.id)).doc


async def collect(house: ToyHouse, job: Job) -> list[Item]:
    async with asyncio.timeout(DEADLINE):
        return [item async for item in house.runner.subscribe(job.id)]


async def test_a_job_runs_and_ends(house: ToyHouse) -> None:
    class Answer(Noun, kw_only=True, frozen=True):
        guest: str

    async def body(ctx: JobContext) -> Answer:
        ids = await ctx.step("make", guest=lambda: "01G", name="web")
        assert ids == {"guest": "01G", "name": "web"}
        assert ctx.job.state is JobState.RUNNING
        assert not ctx.resumed
        return Answer(guest=ids["guest"])

    house.toy("toy", body)
    job = await house.runner.submit(
        "toy", ToyParams(on=("guests/1",), text="t"), target="guests/1", target_name="web"
    )
    assert (await stored(house, job)).params == {"on": ["guests/1"], "text": "t"}
    done = await end(house, job)
    assert done == await stored(house, job)
    assert (done.state, done.result, done.problem) == (JobState.DONE, {"guest": "01G"}, None)
    assert done.steps == (Step(name="make", creates={"guest": "01G", "name": "web"}),)
    assert (done.attempts, done.requester, done.locks) == (1, "test", ("guests/1",))
    assert done.created_at <= (done.started_at or 0) <= (done.ended_at or 0)
    assert house.runner.holder("guests/1") is None
    assert house.runner.active() == []


async def test_the_fast_path_is_three_commits(house: ToyHouse) -> None:
    async def body(ctx: JobContext) -> None:
        await ctx.step("launch", incarnation="1")
        ctx.final_ops(Put("guests/1", b"running"), Put("x", b"", expect=ABSENT))

    house.toy("toy", body)
    job = await house.runner.submit("toy", ToyParams(on=("guests/1",)))
    await end(house, job)
    assert house.store.commits == 3
    guest, document = await house.store.get("guests/1"), await house.store.get(f"jobs/{job.id}")
    assert guest.revision == document.revision


async def test_wrong_parameters_are_refused(house: ToyHouse) -> None:
    house.toy("toy", nothing)
    with pytest.raises(InvalidInput) as caught:
        await house.runner.submit("toy", {"txt": "x"})
    assert caught.value.detail["field"] == "txt"
    with pytest.raises(Internal):
        await house.runner.submit("unknown", {})
    assert house.store.commits == 0


async def test_errors_become_problems_and_undo_in_reverse(house: ToyHouse) -> None:
    undone: list[str] = []

    async def body(ctx: JobContext) -> None:
        async def undo(name: str) -> None:
            undone.append(name)

        ctx.undo(lambda: undo("kept"))
        ctx.keep()
        ctx.undo(lambda: undo("first"))

        async def broken() -> None:
            raise ValueError("cannot undo")

        ctx.undo(broken)
        ctx.undo(lambda: undo("last"))
        raise UnknownImage("There is no image 'x'.", hint="Look.", image="x", path=Path("/p"))

    house.toy("toy", body)
    failed = await end(house, await house.runner.submit("toy", {}))
    assert undone == ["last", "first"]
    assert failed.state is JobState.FAILED
    assert failed.problem is not None
    assert (failed.problem.code, failed.problem.hint) == ("unknown-image", "Look.")
    assert failed.problem.detail == {"image": "x", "path": "/p"}
    lines = "\n".join(await house.runner.log_lines(failed.id))
    assert "cannot undo" in lines
    assert "There is no image" in lines


async def test_defects_are_internal_with_a_trace_in_the_log(house: ToyHouse) -> None:
    async def body(ctx: JobContext) -> None:
        raise ZeroDivisionError("oops")

    house.toy("toy", body)
    failed = await end(house, await house.runner.submit("toy", {}))
    assert failed.problem is not None
    assert failed.problem.code == "internal"
    assert failed.problem.detail["id"] in failed.problem.message
    assert any("ZeroDivisionError" in line for line in await house.runner.log_lines(failed.id))


async def test_a_result_that_json_cannot_hold_is_a_defect(house: ToyHouse) -> None:
    async def body(ctx: JobContext) -> dict[str, object]:
        return {"x": object()}

    house.toy("toy", body)
    failed = await end(house, await house.runner.submit("toy", {}))
    assert failed.problem is not None
    assert failed.problem.code == "internal"


async def test_a_step_twice_in_one_run_is_a_defect(house: ToyHouse) -> None:
    async def body(ctx: JobContext) -> None:
        await ctx.step("same")
        await ctx.step("same")

    house.toy("toy", body)
    failed = await end(house, await house.runner.submit("toy", {}))
    assert failed.problem is not None
    assert failed.problem.code == "internal"


async def test_failing_final_ops_undo_the_job(house: ToyHouse) -> None:
    undone = []

    async def body(ctx: JobContext) -> None:
        async def undo() -> None:
            undone.append(1)

        ctx.undo(undo)
        ctx.final_ops(Put("guests/1", b"", expect=77))

    house.toy("toy", body)
    failed = await end(house, await house.runner.submit("toy", {}))
    assert failed.problem is not None
    assert failed.problem.code == "revision-conflict"
    assert undone == [1]
    assert await house.store.get("guests/1") is None


async def test_final_ops_are_made_anew_after_a_conflict(house: ToyHouse) -> None:
    asked = []

    async def body(ctx: JobContext) -> None:
        async def ops() -> list[Op]:
            asked.append(1)
            return [Put("guests/1", b"", expect=77 if len(asked) < 3 else ABSENT)]

        ctx.final_ops(ops)

    house.toy("toy", body)
    assert (await end(house, await house.runner.submit("toy", {}))).state is JobState.DONE
    assert len(asked) == 3


async def test_followers_hear_everything_in_order(house: ToyHouse) -> None:
    go = asyncio.Event()

    async def body(ctx: JobContext) -> None:
        await go.wait()
        ctx.log("one\ntwo")
        ctx.progress(0.5, "half")
        await ctx.step("act")

    house.toy("toy", body)
    job = await house.runner.submit("toy", {})
    following = asyncio.create_task(collect(house, job))
    await asyncio.sleep(0)
    go.set()
    items = await following
    assert items[0] == job
    assert [i for i in items if isinstance(i, str)] == ["one", "two"]
    assert [i for i in items if isinstance(i, JobProgress)] == [
        JobProgress(job=job.id, fraction=0.5, message="half")
    ]
    assert [i.state for i in items if isinstance(i, Job)][-1] is JobState.DONE
    assert await collect(house, job) == [items[-1]]
    assert await house.runner.log_lines(job.id) == ["one", "two"]


async def test_progress_is_throttled_and_the_last_is_kept(house: ToyHouse) -> None:
    go = asyncio.Event()

    async def body(ctx: JobContext) -> None:
        for n in range(1001):
            ctx.progress(n / 1000, str(n))
        await go.wait()

    house.toy("toy", body)
    job = await house.runner.submit("toy", {})
    events = house.runner.subscribe(job.id)
    seen = []
    async with asyncio.timeout(DEADLINE):
        async for item in events:
            if isinstance(item, JobProgress):
                seen.append(item)
                if item.message == "1000":
                    break
    assert len(seen) < 20
    last = house.runner.last_progress(job.id)
    assert last is not None
    assert last.fraction == 1.0
    go.set()
    await end(house, job)


async def test_a_follower_that_does_not_read_loses_lines_only(house: ToyHouse) -> None:
    go = asyncio.Event()

    async def body(ctx: JobContext) -> None:
        await go.wait()
        for n in range(5000):
            ctx.log(str(n))

    house.toy("toy", body)
    job = await house.runner.submit("toy", {})
    events = house.runner.subscribe(job.id)
    go.set()
    await end(house, job)
    items = [item async for item in events]
    assert isinstance(items[0], Job)
    assert items[-1].state is JobState.DONE  # type: ignore[union-attr]  # the last item is a job
    assert 900 < len(items) < 1100
    assert items[-2] == "4999"


async def test_the_log_is_capped(house: ToyHouse) -> None:
    async def body(ctx: JobContext) -> None:
        for n in range(300):
            ctx.log(f"{n} " + "x" * 9000)
            if n % 50 == 0:
                await asyncio.sleep(0.01)

    house.toy("toy", body)
    job = await house.runner.submit("toy", {})
    await end(house, job)
    lines = await house.runner.log_lines(job.id)
    file = house.folder / "jobs" / f"{job.id}.log"
    assert file.stat().st_size <= 1 << 20
    assert file.stat().st_mode & 0o777 == 0o600
    assert "full" in lines[-1]
    assert [line.split()[0] for line in lines[:-1]] == [str(n) for n in range(len(lines) - 1)]
    assert all(len(line) <= 8192 for line in lines)


async def test_waiting_in_vain(house: ToyHouse) -> None:
    house.toy("toy", forever)
    job = await house.runner.submit("toy", {})
    with pytest.raises(DeadlineExceeded):
        await house.runner.wait(job.id, 0.01)
    assert house.runner.find(job.id) is not None
    with pytest.raises(NotFound):
        await house.runner.wait(new_id(), 1)
    with pytest.raises(NotFound):
        await anext(house.runner.subscribe(new_id()))


async def test_cancel_interrupts_and_undoes(house: ToyHouse) -> None:
    undone = []

    async def body(ctx: JobContext) -> None:
        async def undo() -> None:
            await asyncio.sleep(0.01)
            undone.append(ctx.cancelled.is_set())

        await ctx.step("make")
        ctx.undo(undo)
        await asyncio.Event().wait()

    house.toy("toy", body)
    job = await house.runner.submit("toy", {})
    await until(lambda: bool((house.runner.find(job.id) or job).steps))
    asked = await house.runner.cancel(job.id)
    assert asked.cancel_requested
    ended = await end(house, job)
    assert ended.state is JobState.CANCELLED
    assert ended.problem is not None
    assert ended.problem.code == "cancelled"
    assert undone == [True]
    with pytest.raises(Conflict):
        await house.runner.cancel(job.id)
    assert (await house.runner.interrupt(job.id, "again")).state is JobState.CANCELLED


async def test_undo_is_not_disturbed_by_further_cancels(house: ToyHouse) -> None:
    undoing, go, undone = asyncio.Event(), asyncio.Event(), []

    async def body(ctx: JobContext) -> None:
        async def undo() -> None:
            undoing.set()
            await go.wait()
            undone.append(1)

        ctx.undo(undo)
        await asyncio.Event().wait()

    house.toy("toy", body)
    job = await house.runner.submit("toy", {})
    await asyncio.sleep(0.01)
    await house.runner.cancel(job.id)
    await undoing.wait()
    with pytest.raises(Conflict):
        await house.runner.cancel(job.id)
    await house.runner.interrupt(job.id, "again")
    go.set()
    assert (await end(house, job)).state is JobState.CANCELLED
    assert undone == [1]


async def test_jobs_that_may_not_be_cancelled_can_be_interrupted(house: ToyHouse) -> None:
    house.toy("toy", forever, may_cancel=False)
    job = await house.runner.submit("toy", ToyParams(on=("guests/1",)))
    assert not job.may_cancel
    with pytest.raises(Conflict, match="cannot be cancelled"):
        await house.runner.cancel(job.id)
    assert house.runner.holder("guests/1") == job.id
    await house.runner.interrupt(job.id, "interrupted by stop --force")
    ended = await end(house, job)
    assert ended.problem is not None
    assert ended.problem.message == "interrupted by stop --force"


async def test_an_operation_that_cancels_itself_is_a_defect(house: ToyHouse) -> None:
    async def body(ctx: JobContext) -> None:
        raise asyncio.CancelledError

    house.toy("toy", body)
    failed = await end(house, await house.runner.submit("toy", {}))
    assert failed.state is JobState.FAILED
    assert failed.problem is not None
    assert failed.problem.code == "internal"


async def test_failing_while_cancelled_is_cancelled(house: ToyHouse) -> None:
    begun = asyncio.Event()

    async def body(ctx: JobContext) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("the tool died of it")

    house.toy("toy", body)
    job = await house.runner.submit("toy", {})
    await begun.wait()
    await house.runner.cancel(job.id)
    assert (await end(house, job)).state is JobState.CANCELLED
    assert any("the tool died of it" in line for line in await house.runner.log_lines(job.id))


async def test_dedupe_answers_the_active_job(house: ToyHouse) -> None:
    go = asyncio.Event()

    async def body(ctx: JobContext) -> None:
        await go.wait()

    toy = house.toy("toy", body)
    jobs = await asyncio.gather(
        *(house.runner.submit("toy", {}, dedupe="debian/12") for _ in range(5))
    )
    assert len({job.id for job in jobs}) == 1
    other = await house.runner.submit("toy", {}, dedupe="debian/13")
    assert other.id != jobs[0].id
    go.set()
    await end(house, jobs[0])
    await end(house, other)
    again = await house.runner.submit("toy", {}, dedupe="debian/12")
    assert again.id != jobs[0].id
    await end(house, again)
    assert toy.runs == 3


async def test_a_cancelled_job_is_not_joined_by_new_submissions(house: ToyHouse) -> None:
    stuck = asyncio.Event()

    async def body(ctx: JobContext) -> None:
        ctx.undo(stuck.wait)
        await asyncio.Event().wait()

    house.toy("toy", body)
    first = await house.runner.submit("toy", {}, dedupe="x")
    await asyncio.sleep(0.01)
    await house.runner.cancel(first.id)
    second = await house.runner.submit("toy", {}, dedupe="x")
    assert second.id != first.id
    stuck.set()
    await end(house, first)
    third = await house.runner.submit("toy", {}, dedupe="x")
    assert third.id == second.id


async def test_a_recorded_id_is_one_job(house: ToyHouse) -> None:
    toy = house.toy("toy", nothing)
    id = new_id()
    first = await house.runner.submit("toy", {}, job_id=id)
    await end(house, first)
    assert (await house.runner.submit("toy", {}, job_id=id)).state is JobState.DONE
    assert toy.runs == 1


async def test_join_forwards_progress_and_raises_what_failed(house: ToyHouse) -> None:
    async def child(ctx: JobContext) -> None:
        ctx.progress(0.5, "building")
        await asyncio.sleep(0)
        raise UnknownImage("no such image", hint="look", image="x")

    caught = []

    async def parent(ctx: JobContext) -> dict[str, object]:
        job = await ctx.submit("child", {}, dedupe="x")
        try:
            await ctx.join(job.id, span=(0.2, 0.6))
        except UnknownImage as error:
            caught.append(error)
        return {"child": job.id}

    house.toy("child", child)
    house.toy("parent", parent)
    job = await house.runner.submit("parent", {}, requester="uid:7")
    items = await collect(house, job)
    assert [i.fraction for i in items if isinstance(i, JobProgress)] == [pytest.approx(0.4)]
    assert (caught[0].hint, caught[0].detail) == ("look", {"image": "x"})
    done = items[-1]
    assert isinstance(done, Job)
    assert done.result is not None
    assert (await house.runner.get(str(done.result["child"]))).requester == "uid:7"


async def test_cancelling_the_only_parent_cancels_the_child(house: ToyHouse) -> None:
    async def parent(ctx: JobContext) -> None:
        job = await ctx.submit("child", {}, dedupe="x")
        await ctx.join(job.id)

    house.toy("child", forever)
    house.toy("parent", parent)
    one = await house.runner.submit("parent", {})
    two = await house.runner.submit("parent", {})
    await until(lambda: len(house.runner.active()) == 3)
    await asyncio.sleep(0.01)
    child = next(job for job in house.runner.active() if job.kind == "child")
    await house.runner.cancel(one.id)
    await end(house, one)
    assert house.runner.find(child.id) is not None
    await house.runner.cancel(two.id)
    await end(house, two)
    assert (await end(house, child)).state is JobState.CANCELLED


async def test_a_job_that_cannot_be_recorded_is_refused(house: ToyHouse) -> None:
    house.toy("toy", nothing)
    house.store.failing = lambda ops: NoSpace("full")
    with pytest.raises(NoSpace):
        await house.runner.submit("toy", ToyParams(on=("guests/1",)), dedupe="x")
    assert house.runner.holder("guests/1") is None
    assert house.runner.active() == []
    house.store.failing = lambda ops: None
    job = await house.runner.submit("toy", ToyParams(on=("guests/1",)), dedupe="x")
    assert (await end(house, job)).state is JobState.DONE


def failing_writes_of(*states: JobState) -> object:
    def failing(ops: list[Op]) -> Exception | None:
        for op in ops:
            if isinstance(op, Put) and any(f'"state":"{s}"'.encode() in op.value for s in states):
                return NoSpace("full")
        return None

    return failing


async def test_a_full_disk_delays_the_end_but_loses_nothing(
    house: ToyHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guesthouse.jobs.execution.RETRY_FIRST", 0.01)

    async def body(ctx: JobContext) -> None:
        await ctx.step("act")
        ctx.final_ops(Put("guests/1", b"running"))

    house.toy("toy", body)
    house.store.failing = failing_writes_of(JobState.DONE)  # type: ignore[assignment]  # a double of one method
    job = await house.runner.submit("toy", ToyParams(on=("guests/1",)))
    await until(lambda: "full" in getattr(house.runner.last_progress(job.id), "message", ""))
    assert house.runner.holder("guests/1") == job.id
    house.store.failing = lambda ops: None
    assert (await end(house, job)).state is JobState.DONE
    assert (await house.store.get("guests/1")).value == b"running"


async def test_a_failure_is_told_at_once_and_recorded_later(
    house: ToyHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guesthouse.jobs.record.RETRY_FIRST", 0.01)

    async def body(ctx: JobContext) -> None:
        raise NotFound("gone")

    house.toy("toy", body)
    house.store.failing = failing_writes_of(JobState.FAILED)  # type: ignore[assignment]  # a double of one method
    job = await house.runner.submit("toy", ToyParams(on=("guests/1",)))
    assert (await end(house, job)).state is JobState.FAILED
    assert not (await stored(house, job)).ended
    assert (await house.runner.get(job.id)).state is JobState.FAILED
    assert (await collect(house, job))[-1].state is JobState.FAILED  # type: ignore[union-attr]  # the last item is a job
    assert house.runner.holder("guests/1") is None
    assert house.runner.active() == []
    house.store.failing = lambda ops: None
    await until(lambda: house.runner.find(job.id) is None)
    assert (await stored(house, job)).state is JobState.FAILED


async def test_a_submission_given_up_on_still_runs(house: ToyHouse) -> None:
    toy = house.toy("toy", nothing)
    submitting = asyncio.create_task(house.runner.submit("toy", {}))
    await asyncio.sleep(0)
    submitting.cancel()
    await asyncio.wait({submitting})
    await until(lambda: toy.runs == 1)
