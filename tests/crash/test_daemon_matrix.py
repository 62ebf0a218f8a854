"""Every kind of job, struck at every point of it: nothing may be lost, leaked or left half.

The points are recorded from a run of each operation, so a new step is in the matrix by itself.
`GUESTHOUSE_SEED` chooses the sample.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from guesthouse.host.keeper.procfs import read_stat
from guesthouse.images.cache import BuildCache
from guesthouse.model.job import Job
from guesthouse.operations.all import all_operations
from tests.crash.conftest import ROWS
from tests.crash.daemon_house import CrashHouse, Street
from tests.crash.matrix import (
    Case,
    Fault,
    Point,
    Row,
    Snapshot,
    cases_of,
    disturbed,
    judge,
    result_of,
    sample,
    violations,
)
from tests.crash.trials import Trial, Verb, prepare
from tests.crash.verbs import VERBS
from tests.e2e.conftest import until

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]

ROOT = os.geteuid() == 0
SAMPLE = 25
STRIKE_SECONDS = 60.0
FULL_SECONDS = 1.2
"""How long the disk stays full, unless the job ends before."""
SETTLE_SECONDS = 30.0


def record(house: CrashHouse, name: str) -> dict[Point, bool]:
    """The points of an operation, from a run in which nothing strikes, and whether its guest has
    a process then."""
    verb = VERBS[name]
    trial = prepare(house, verb)
    before = house.quick()
    house.points()
    verb.provoke(house, trial)
    job = until(lambda: newest(house.quick(), before, verb), say=f"a job {verb.kind}")
    house.wait_idle()
    assert house.do(job).ended
    found = {
        Point(point["kind"], point["what"], point["when"]): bool(point["engine"])
        for point in house.points()
        if point["job"] == job.id
    }
    assert len(found) >= 4, found
    check(house, name, lambda now: "" if verb.complete(now, trial) else "it is not complete", verb)
    tidy(house, trial)
    return found


def newest(now: Snapshot, before: Snapshot, verb: Verb) -> Job | None:
    ids = [id for id, job in now.jobs.items() if job.kind == verb.kind and id not in before.jobs]
    return now.jobs[max(ids)] if ids else None


def strike(house: CrashHouse, case: Case) -> Row:
    """Let one fault happen, and look at what comes of it."""
    verb = VERBS[case.verb]
    trial = prepare(house, verb)
    before = house.quick()
    house.arm(case)
    house.ask_again(lambda: verb.provoke(house, trial))
    until(house.struck, seconds=STRIKE_SECONDS, say=f"{case} is reached")
    if case.fault is Fault.FULL:
        wait_for_the_end(house, before, verb)
        house.free()
    if case.fault is Fault.DAEMON:
        assert house.process is not None
        house.process.wait()
        house.start()
    house.wait_idle()

    def judged(now: Snapshot) -> str:
        return judge(
            case.fault,
            newest(now, before, verb),
            complete=verb.complete(now, trial),
            untouched=verb.untouched(now, trial),
            dead=dead(now, trial),
            sure=verb.sure,
        )

    check(house, str(case), judged, verb)
    result = result_of(newest(house.quick(), before, verb))
    tidy(house, trial)
    return Row(case, result)


def wait_for_the_end(house: CrashHouse, before: Snapshot, verb: Verb) -> None:
    """Until the job has ended, as far as it can on a full disk."""
    ended = time.monotonic() + FULL_SECONDS
    while time.monotonic() < ended:
        job = newest(house.quick(), before, verb)
        if job is not None and job.ended:
            return
        time.sleep(0.1)


def dead(now: Snapshot, trial: Trial) -> bool:
    guest = now.guests.get(trial.was.id) if trial.was else now.named(trial.name)
    return guest is not None and guest.state.value in {"stopped", "failed"}


def check(house: CrashHouse, what: str, judged: Callable[[Snapshot], str], verb: Verb) -> None:
    """The operation happened or not; after a collection nothing is wrong anywhere.

    What happens by itself (an end that is noticed, a keeper that comes back) is waited for.
    """
    persistent(lambda: [found] if (found := judged(house.quick())) else [], what)
    verb.mend(house)
    house.do(house.client.collect())

    def wrong() -> list[str]:
        now = house.snapshot()
        assert house.bystander is not None
        ticks = read_stat(house.bystander.pid)[1]
        return [*violations(now), *disturbed(house.bystander, now, ticks)]

    persistent(wrong, what)


def persistent(wrong: Callable[[], list[str]], what: str) -> None:
    ended = time.monotonic() + SETTLE_SECONDS
    while found := wrong():
        assert time.monotonic() < ended, "\n".join([what, *found])
        time.sleep(0.1)


def tidy(house: CrashHouse, trial: Trial) -> None:
    for guest_id in house.quick().guests:
        if house.bystander is None or guest_id != house.bystander.id:
            house.remove(guest_id)


def run_cases(street: Street, cases: list[Case], subtests: pytest.Subtests) -> None:
    for case in cases:
        with subtests.test(str(case)):
            house = street.house()
            try:
                ROWS.append(strike(house, case))
            except BaseException as error:
                ROWS.append(Row(case, f"FAILED: {error}".replace("\n", " | ")[:300]))
                print(house.log_end())
                street.leave()
                raise
    uptime(street.house())


def uptime(house: CrashHouse) -> None:
    """The bystander works, and has never been interrupted."""
    assert house.bystander is not None
    since = time.time() - (house.bystander.started_at or 0)
    told = float(house.out("exec", house.bystander.id, "--", "cat", "/proc/uptime").split()[0])
    # Its clock begins some seconds after its process.
    assert told > 0.5 * since - 30


APART = {
    # They start and stop all guests, the bystander too; `test_host_jobs` has a house for them.
    "host.start-guests",
    "host.stop-guests",
}

SEED = 20261124
"""Of the sample unless GUESTHOUSE_SEED says otherwise: one commit gives one result."""


def test_every_kind_of_job_is_in_the_matrix(tmp_path: Path) -> None:
    kinds = set(all_operations(MagicMock(), BuildCache(tmp_path)).kinds())
    assert kinds - APART == {verb.kind for verb in VERBS.values()}


@pytest.mark.timeout(900)
def test_some_points(street: Street, subtests: pytest.Subtests) -> None:
    seed = int(os.environ.get("GUESTHOUSE_SEED") or SEED)
    print(f"GUESTHOUSE_SEED={seed}")
    ROWS.append(f"sample of {SAMPLE}, GUESTHOUSE_SEED={seed}")
    house = street.house()
    cases = [case for name in VERBS for case in cases_of(name, record(house, name), root=ROOT)]
    run_cases(street, sample(cases, SAMPLE, seed), subtests)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", VERBS)
def test_every_point(street: Street, subtests: pytest.Subtests, name: str) -> None:
    run_cases(street, cases_of(name, record(street.house(), name), root=ROOT), subtests)
