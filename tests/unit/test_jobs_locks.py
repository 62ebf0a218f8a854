"""Locks of jobs: fair, ordered, named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guesthouse.errors import Internal
from guesthouse.jobs.context import JobContext
from guesthouse.jobs.locks import Locks, LockTimeout, rank
from guesthouse.model.job import JobState
from tests.unit.jobs_house import DEADLINE, ToyHouse, ToyParams, forever, nothing, toy_house, until


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ToyHouse]:
    async with toy_house(tmp_path) as opened:
        yield opened


def test_order() -> None:
    keys = ["guests/2", "names/x", "guests/1", "networks/n", "volumes/v", "pools/p", "images/a/b"]
    assert sorted(keys, key=rank) == [
        "pools/p",
        "images/a/b",
        "volumes/v",
        "networks/n",
        "guests/1",
        "guests/2",
        "names/x",
    ]


async def test_all_or_none_at_once() -> None:
    locks = Locks()
    assert locks.try_acquire("a", ["guests/1", "guests/2"])
    assert not locks.try_acquire("b", ["guests/2", "guests/3"])
    assert locks.holder("guests/3") is None
    assert locks.holder("guests/2") == "a"
    locks.release("a")
    assert locks.try_acquire("b", ["guests/2", "guests/3"])
    assert locks.held("b") == {"guests/2", "guests/3"}


async def test_first_come_first_served_except_urgent_ones() -> None:
    locks, order = Locks(), []
    locks.try_acquire("holder", ["k"])

    async def take(job: str, *, first: bool = False) -> None:
        await locks.acquire(job, ["k"], timeout=DEADLINE, first=first)
        order.append(job)
        locks.release(job)

    tasks = []
    for job in ("a", "b", "urgent", "c"):
        tasks.append(asyncio.create_task(take(job, first=job == "urgent")))
        await asyncio.sleep(0)
    locks.release("holder")
    await asyncio.gather(*tasks)
    assert order == ["urgent", "a", "b", "c"]
    assert locks.holder("k") is None


async def test_a_lock_handed_over_is_not_stolen() -> None:
    locks = Locks()
    locks.try_acquire("a", ["k"])
    waiting = asyncio.create_task(locks.acquire("b", ["k"], timeout=DEADLINE))
    await asyncio.sleep(0)
    locks.release("a")
    assert not locks.try_acquire("c", ["k"])
    await waiting
    assert locks.holder("k") == "b"


async def test_timeout_names_the_holder_and_leaves_the_queue() -> None:
    locks = Locks()
    locks.try_acquire("a", ["k"])
    with pytest.raises(LockTimeout) as caught:
        await locks.acquire("b", ["j", "k"], timeout=0.01)
    assert (caught.value.key, caught.value.holder) == ("k", "a")
    locks.release("b")
    locks.release("a")
    assert locks.try_acquire("c", ["j", "k"])


@pytest.mark.parametrize("handed_over", [False, True])
async def test_cancelling_a_wait_passes_the_lock_on(handed_over: bool) -> None:
    locks = Locks()
    locks.try_acquire("a", ["k"])
    b = asyncio.create_task(locks.acquire("b", ["k"], timeout=DEADLINE))
    c = asyncio.create_task(locks.acquire("c", ["k"], timeout=DEADLINE))
    await asyncio.sleep(0)
    if handed_over:
        locks.release("a")
    b.cancel()
    await asyncio.wait({b})
    assert b.cancelled()
    locks.release("a")
    await c
    assert locks.holder("k") == "c"
    assert locks.held("b") == frozenset()


async def test_taking_out_of_order_is_a_defect() -> None:
    locks = Locks()
    await locks.acquire("a", ["guests/2"], timeout=1)
    await locks.acquire("a", ["guests/2", "guests/3"], timeout=1)
    with pytest.raises(Internal):
        await locks.acquire("a", ["volumes/1"], timeout=1)
    locks.release("a", ["guests/2", "guests/3"])
    await locks.acquire("a", ["volumes/1"], timeout=1)


@settings(max_examples=60, deadline=None)
@given(
    plans=st.lists(
        st.tuples(
            st.sets(st.sampled_from(["pools/p", "images/i", "guests/1", "guests/2"]), min_size=1),
            st.integers(0, 3),
            st.booleans(),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_never_two_holders_and_never_a_deadlock(plans: list[tuple[set[str], int, bool]]) -> None:
    async def scenario() -> None:
        locks, inside = Locks(), set[str]()

        async def job(name: str, keys: set[str], pauses: int) -> None:
            try:
                await locks.acquire(name, keys, timeout=DEADLINE)
                assert not inside & keys
                inside.update(keys)
                for _ in range(pauses):
                    await asyncio.sleep(0)
                inside.difference_update(keys)
            finally:
                if not inside & keys or locks.held(name) == keys:
                    inside.difference_update(keys & locks.held(name))
                locks.release(name)

        tasks = []
        for n, (keys, pauses, cancel) in enumerate(plans):
            tasks.append(task := asyncio.create_task(job(str(n), keys, pauses)))
            await asyncio.sleep(0)
            if cancel:
                task.cancel()
        done, pending = await asyncio.wait(tasks, timeout=DEADLINE)
        assert not pending
        for task in done:
            assert task.cancelled() or task.exception() is None
        assert locks.try_acquire("last", ["pools/p", "images/i", "guests/1", "guests/2"])

    asyncio.run(scenario())


async def test_jobs_on_one_guest_run_one_after_the_other(house: ToyHouse) -> None:
    running, most = set[str](), 0

    async def body(ctx: JobContext) -> None:
        nonlocal most
        running.add(ctx.job.id)
        most = max(most, len(running))
        await asyncio.sleep(0.001)
        running.discard(ctx.job.id)

    house.toy("toy", body)
    jobs = [await house.runner.submit("toy", ToyParams(on=("guests/1",))) for _ in range(5)]
    ended = [await house.runner.wait(job.id, DEADLINE) for job in jobs]
    assert most == 1
    assert [job.started_at for job in ended] == sorted(job.started_at or 0 for job in ended)


async def test_a_waiting_job_says_for_whom_and_ends_busy(house: ToyHouse) -> None:
    house.toy("guest.snapshot", forever)
    house.toy("guest.stop", nothing, lock_deadline=0.05)
    holder = await house.runner.submit(
        "guest.snapshot", ToyParams(on=("guests/1",)), target="guests/1", target_name="web"
    )
    job = await house.runner.submit(
        "guest.stop", ToyParams(on=("guests/1",)), target="guests/1", target_name="web"
    )
    assert job.state is JobState.QUEUED
    await until(lambda: house.runner.last_progress(job.id) is not None)
    progress = house.runner.last_progress(job.id)
    assert progress is not None
    assert progress.message == f"waiting for job {holder.id} (guest.snapshot) of guest web"
    ended = await house.runner.wait(job.id, DEADLINE)
    assert ended.problem is not None
    assert ended.problem.code == "busy"
    assert ended.problem.message.startswith("Guest 'web' is busy: job")
    assert ended.problem.detail == {
        "holder": holder.id,
        "kind": "guest.snapshot",
        "target": "guests/1",
    }
    assert house.runner.holder("guests/1") == holder.id


async def test_a_waiting_job_can_be_cancelled(house: ToyHouse) -> None:
    house.toy("hold", forever)
    toy = house.toy("toy", nothing)
    await house.runner.submit("hold", ToyParams(on=("guests/1",)))
    job = await house.runner.submit("toy", ToyParams(on=("guests/1",)))
    await house.runner.cancel(job.id)
    assert (await house.runner.wait(job.id, DEADLINE)).state is JobState.CANCELLED
    assert toy.runs == 0


async def test_interrupting_the_holder_lets_an_urgent_job_in_first(house: ToyHouse) -> None:
    order = []

    async def body(ctx: JobContext) -> None:
        order.append(ctx.job.target_name)

    house.toy("hold", forever, may_cancel=False)
    house.toy("toy", body)
    on = ToyParams(on=("guests/1",))
    holder = await house.runner.submit("hold", on)
    patient = await house.runner.submit("toy", on, target_name="patient")
    await until(lambda: house.runner.last_progress(patient.id) is not None)
    urgent = await house.runner.submit("toy", on, target_name="urgent", urgent=True)
    await until(lambda: house.runner.last_progress(urgent.id) is not None)
    await house.runner.interrupt(holder.id, "stop --force")
    await house.runner.wait(urgent.id, DEADLINE)
    await house.runner.wait(patient.id, DEADLINE)
    assert order == ["urgent", "patient"]


async def test_further_locks_are_noted_and_released(house: ToyHouse) -> None:
    go = asyncio.Event()

    async def body(ctx: JobContext) -> None:
        await ctx.lock("guests/2", "guests/1")
        await ctx.step("act")
        ctx.release("guests/1")
        await go.wait()

    house.toy("toy", body)
    job = await house.runner.submit("toy", ToyParams(on=("guests/1",)))
    await until(lambda: house.runner.holder("guests/1") is None)
    assert house.runner.holder("guests/2") == job.id
    stored = (await house.documents.jobs.require(job.id)).doc
    assert set(stored.locks) == {"guests/1", "guests/2"}
    go.set()
    ended = await house.runner.wait(job.id, DEADLINE)
    assert ended.locks == ("guests/2",)
    assert house.runner.holder("guests/2") is None


async def test_locking_out_of_order_fails_the_job(house: ToyHouse) -> None:
    async def body(ctx: JobContext) -> None:
        await ctx.lock("volumes/1")

    house.toy("toy", body)
    job = await house.runner.submit("toy", ToyParams(on=("guests/1",)))
    ended = await house.runner.wait(job.id, DEADLINE)
    assert ended.problem is not None
    assert ended.problem.code == "internal"
