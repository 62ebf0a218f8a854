"""kill -9 at every point of a job's life: at every write of its journal and within its actions.

The points are not listed here: a run that lives records them, and each is then run into.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from guesthouse.model.job import Job, JobState
from guesthouse.store.contract import Entry
from guesthouse.store.documents import Documents
from guesthouse.store.sqlite import SqliteStore
from tests.crash import toy_jobs
from tests.crash.toy_jobs import CONTENT, DEADLINE, KINDS

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.crash.toy_jobs"])

ENDS = {
    "toy.make": (JobState.DONE, 1),
    "toy.fail": (JobState.FAILED, 0),
    "toy.remove": (JobState.DONE, 0),
    "toy.parent": (JobState.DONE, 1),
}
"""How a job ends, and how many things there are then."""


def daemon(folder: Path, kind: str = "", chosen: int | str = 0) -> bool:
    """Run one; whether it lived."""
    process = PROCESSES.Process(target=toy_jobs.run, args=(str(folder), kind, chosen))
    process.start()
    process.join(DEADLINE * 2)
    assert process.exitcode in (0, -signal.SIGKILL), f"ended with {process.exitcode}"
    return process.exitcode == 0


def prepare(folder: Path, kind: str) -> Path:
    folder.mkdir()
    if kind == "toy.remove":  # there must be something to remove
        assert daemon(folder, "toy.make")
    return folder


def passed(folder: Path) -> list[str]:
    return (folder / "passed").read_text().splitlines()


async def read(folder: Path) -> tuple[list[Job], list[Entry]]:
    store = await SqliteStore.open(folder / "guesthouse.db")
    try:
        jobs = (await Documents(store).jobs.list()).documents
        return [found.doc for found in jobs], (await store.list("things/")).entries
    finally:
        await store.close()


async def check(folder: Path, kind: str, where: str) -> None:
    """Nothing is half: the job ended as it should, and the disks are exactly those of things."""
    jobs, things = await read(folder)
    assert all(job.ended for job in jobs), where
    disks = {path.name: path.read_bytes() for path in (folder / "disks").iterdir()}
    assert disks == {entry.value.decode(): CONTENT for entry in things}, where
    mine = [job for job in jobs if job.kind == kind]
    if not mine:  # it was never accepted, so it must have left no trace
        assert len(things) == (1 if kind == "toy.remove" else 0), where
        return
    state, count = ENDS[kind]
    assert mine[-1].state is state, f"{where}: {mine[-1].problem}"
    assert len(things) == count, where
    assert len({job.id for job in jobs}) == len(jobs)
    if kind == "toy.parent":
        assert len(jobs) == 2, f"{where}: its child ran twice"


def record(folder: Path, kind: str) -> list[str]:
    """The points of a run that nothing kills."""
    prepare(folder, kind)
    assert daemon(folder, kind)
    return passed(folder)


@pytest.mark.parametrize("kind", KINDS)
async def test_killed_at_every_point(tmp_path: Path, kind: str) -> None:
    points = record(tmp_path / "recording", kind)
    await check(tmp_path / "recording", kind, "without a kill")
    assert f"{kind} accepted before" in points
    assert f"{kind} {ENDS[kind][0].value} after" in points
    for number, name in enumerate(points, start=1):
        folder = prepare(tmp_path / str(number), kind)
        assert not daemon(folder, kind, number), f"{name} was not reached"
        assert daemon(folder)
        await check(folder, kind, f"killed at {name}")


async def test_every_step_is_among_the_points(tmp_path: Path) -> None:
    """The journal is what the kills are generated from: each step is there, before and after."""
    for kind in KINDS:
        points = record(tmp_path / kind, kind)
        jobs, _ = await read(tmp_path / kind)
        for job in jobs:
            for step in job.steps:
                if job.kind == kind:
                    assert f"{kind} step:{step.name} before" in points
                    assert f"{kind} step:{step.name} after" in points


async def killed_twice(folder: Path, kind: str, first: int, second: int) -> bool:
    """Killed at one point, and again at a point of the recovery; False when there is no such."""
    prepare(folder, kind)
    assert not daemon(folder, kind, first)
    lived = daemon(folder, "", second)
    if not lived:
        assert daemon(folder)
    await check(folder, kind, f"killed at point {first}, then at {second} of the recovery")
    return not lived


@pytest.mark.parametrize("kind", KINDS)
async def test_killed_again_while_recovering(tmp_path: Path, kind: str) -> None:
    seed = int(os.environ.get("GUESTHOUSE_SEED", time.time_ns() % 1_000_000))
    print(f"GUESTHOUSE_SEED={seed}")
    dice = random.Random(seed)
    points = len(record(tmp_path / "recording", kind))
    for number in range(6):
        first, second = dice.randint(1, points), dice.randint(1, 8)
        await killed_twice(tmp_path / str(number), kind, first, second)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
async def test_killed_again_at_every_point_of_recovering(tmp_path: Path, kind: str) -> None:
    for first in range(1, len(record(tmp_path / "recording", kind)) + 1):
        second = 1
        while await killed_twice(tmp_path / f"{first}-{second}", kind, first, second):
            second += 1


async def test_an_action_that_always_kills_the_daemon_is_undone(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "house", "toy.make")
    assert not daemon(folder, "toy.make", "disk half")
    lives = 1
    while not daemon(folder, "", "disk half"):
        lives += 1
        assert lives < 8, "the daemon dies for ever"
    (job,), things = await read(folder)
    assert job.state is JobState.FAILED
    assert job.problem is not None
    assert job.problem.code == "interrupted"
    assert things == []
    assert list((folder / "disks").iterdir()) == []


async def test_killed_by_somebody_else_at_any_time(tmp_path: Path) -> None:
    """Not at a point of ours: wherever the process is after a while."""
    dice = random.Random(7)
    for number in range(8):
        folder = prepare(tmp_path / str(number), "toy.parent")
        process = PROCESSES.Process(target=toy_jobs.run, args=(str(folder), "toy.parent", 0))
        process.start()
        await asyncio.sleep(dice.uniform(0.0, 0.12))
        process.kill()
        process.join(DEADLINE)
        assert daemon(folder)
        await check(folder, "toy.parent", f"round {number}")
