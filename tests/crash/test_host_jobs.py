"""The jobs that stop all guests and start them again, with the daemon killed at every point.

The host goes down and comes up once for each pair of points: one of `host.stop-guests`, one of
`host.start-guests`. Whatever is struck, afterwards all guests are as asked, and none is lost. In
`./check --full` the jobs of the single guests, which those two submit, are struck as well.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import pytest

from guesthouse.host.process import boot_id
from guesthouse.model.guest import Guest
from guesthouse.model.job import Job, JobState
from guesthouse.model.reports import StartRequest, StopGuestsRequest, StopRequest
from guesthouse.operations.hosting import HOST_LOCK, HOSTS, StartGuests, StopGuests
from guesthouse.operations.lifecycle import HOST_SHUTDOWN
from tests.crash.conftest import ROWS
from tests.crash.daemon_house import CrashHouse
from tests.crash.matrix import Case, Fault, Point, Row, Snapshot, result_of, violations
from tests.crash.test_daemon_matrix import STRIKE_SECONDS, persistent
from tests.e2e.conftest import until

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]

EARLIER = "00000000-0000-4000-8000-000000000000"
"""A boot of the host before this one."""


class Inn:
    """A house with a guest of every kind, as far as its host's going down is concerned.

    :ivar on: starts with its host, and is killed with it. :ivar last: starts if it ran before, and
        is asked to power off. :ivar left: is left running, and not started. :ivar idle: as `last`,
        but stopped.
    """

    def __init__(self, house: CrashHouse) -> None:
        self.house = house
        self.on = self._guest(autostart="on", autostart_order=10, shutdown_action="kill")
        self.last = self._guest(autostart="last", autostart_order=20, shutdown_timeout=2.0)
        self.left = self._guest(shutdown_action="leave")
        self.idle = self._guest(autostart="last")
        self.begin()

    def _guest(self, **settings: object) -> str:
        name = self.house.launch("crash/disk", start=False)
        self.house.do(self.house.client.set_guest(name, dict(settings)))
        return name

    def begin(self) -> None:
        """Have those run that shall, before the host goes down."""
        now = self.house.quick()
        for name in (self.on, self.last, self.left):
            if self._of(now, name).state.value != "running":
                self.house.do(self.house.client.start(name, StartRequest()))

    @staticmethod
    def _of(now: Snapshot, name: str) -> Guest:
        guest = now.named(name)
        assert guest is not None, f"{name} is lost"
        return guest

    def states(self, now: Snapshot) -> dict[str, tuple[str, int]]:
        """Of each guest the state, and how many processes it has."""
        found = {}
        for role in ("on", "last", "left", "idle"):
            guest = self._of(now, getattr(self, role))
            found[role] = (guest.state.value, len(now.engines.get(guest.id, [])))
        return found

    def reasons(self, now: Snapshot) -> set[str]:
        return {self._of(now, name).status.reason for name in (self.on, self.last)}

    # --- the host goes down -----------------------------------------------------------------------

    def go_down(self, case: Case | None) -> Job | None:
        """Have all stopped, struck in the middle; answers the job, unless there never was one."""
        house = self.house
        before = house.quick()
        asked = house.ask_again(lambda: house.client.stop_guests(StopGuestsRequest()))
        if case is None:
            assert asked is not None
        else:
            self._struck(case)
        job = self._ended(StopGuests.kind, before, sure=case is None)
        if job is None:  # nobody heard it: nothing may have happened, and it is asked for again
            running = ("running", 1)
            assert self.states(house.quick()) == {
                "on": running, "last": running, "left": running, "idle": ("stopped", 0),
            }  # fmt: skip
            self.house.do(self.house.client.stop_guests(StopGuestsRequest()))
        return job

    def is_down(self, now: Snapshot) -> list[str]:
        stopped = ("stopped", 0)
        wanted = {"on": stopped, "last": stopped, "left": ("running", 1), "idle": stopped}
        found = self.states(now)
        wrong = [] if found == wanted else [f"the host is down, and guests are {found}"]
        if (reasons := self.reasons(now)) != {HOST_SHUTDOWN}:
            wrong.append(f"the reasons are {reasons}")
        return wrong

    # --- the host comes up ------------------------------------------------------------------------

    def come_up(self, case: Case | None) -> Job:
        """Simulate a boot of the host after which the daemon is struck in the middle."""
        house = self.house
        house.do(house.client.stop(self.left, StopRequest(force=True)))
        house.wait_idle()
        house.kill()
        house.points()  # of what was before this boot
        self._boot()
        before = house.quick()
        if case is not None:
            house.arm(case)
        house.start(doomed=case is not None)
        if case is not None:
            self._struck(case)
        job = self._ended(StartGuests.kind, before, sure=True)
        assert job is not None
        return job

    def _boot(self) -> None:
        """All that the house knows happened in an earlier boot."""
        with sqlite3.connect(self.house.folders.database) as database:
            rows = database.execute(
                "SELECT key, value FROM entries WHERE key LIKE 'guests/%' OR key LIKE 'hosts/%'"
            ).fetchall()
            for key, value in rows:
                text = value.replace(boot_id().encode(), EARLIER.encode())
                database.execute("UPDATE entries SET value = ? WHERE key = ?", (text, key))
        database.close()

    def is_up(self, now: Snapshot) -> list[str]:
        running, stopped = ("running", 1), ("stopped", 0)
        wanted = {"on": running, "last": running, "left": stopped, "idle": stopped}
        found = self.states(now)
        wrong = [] if found == wanted else [f"the host is up, and guests are {found}"]
        record = HOSTS.decode(HOST_LOCK, self.house.documents()[HOST_LOCK])
        if record.autostart is not None:
            wrong.append(f"guests are to be started once more: {record.autostart}")
        return wrong

    # --- both -------------------------------------------------------------------------------------

    def _struck(self, case: Case) -> None:
        house = self.house
        until(house.struck, seconds=STRIKE_SECONDS, say=f"{case} is reached")
        assert house.process is not None
        house.process.wait()
        house.start()

    def _ended(self, kind: str, before: Snapshot, *, sure: bool) -> Job | None:
        """The one new job of that kind, at its end. :param sure: there is one, maybe soon."""

        def new() -> list[Job]:
            jobs = self.house.quick().jobs
            return [job for id, job in jobs.items() if job.kind == kind and id not in before.jobs]

        if sure:
            until(new, say=f"a job {kind}")
        self.house.wait_idle()
        found = new()
        assert len(found) <= 1, f"{kind} ran {len(found)} times"
        if not found:
            return None
        assert found[0].state is JobState.DONE, found[0].problem
        assert found[0].result is not None
        assert not found[0].result["failed"], found[0].result
        done = found[0].result.get("stopped") or found[0].result.get("started")
        assert sorted(done) == [self.on, self.last]
        return found[0]

    def check(self, what: str, wrong: Callable[[Snapshot], list[str]]) -> None:
        persistent(lambda: wrong(self.house.quick()), what)
        self.house.do(self.house.client.collect())

        def broken() -> list[str]:
            now = self.house.snapshot()
            return [*wrong(now), *violations(now)]

        persistent(broken, what)


@pytest.fixture(scope="module")
def inn() -> Iterator[Inn]:
    house = CrashHouse(Path(tempfile.mkdtemp(prefix="gh-")), small=os.geteuid() == 0)
    try:
        asyncio.run(house._add_images())
        house.start()
        yield Inn(house)
    except BaseException:
        print(house.log_end())
        raise
    finally:
        house.close()


@pytest.fixture(scope="module")
def points(inn: Inn) -> tuple[list[Point], list[Point]]:
    """All that are passed while the host goes down, and while it comes up, undisturbed."""
    house = inn.house
    house.points()
    inn.go_down(None)
    down = house.points()
    inn.check("down", inn.is_down)
    house.points()
    inn.come_up(None)
    up = house.points()
    inn.check("up", inn.is_up)
    return _distinct(down), _distinct(up)


def _distinct(passed: list[dict[str, str]]) -> list[Point]:
    found = dict.fromkeys(Point(one["kind"], one["what"], one["when"]) for one in passed)
    return [point for point in found if point.kind.startswith(("host.", "guest.st"))]


def strike_all(inn: Inn, subtests: pytest.Subtests, down: list[Point], up: list[Point]) -> None:
    for at_stop, at_start in zip_longest(down, up):
        inn.begin()
        for name, point, move, judged in (
            ("host-down", at_stop, inn.go_down, inn.is_down),
            ("host-up", at_start, inn.come_up, inn.is_up),
        ):
            case = None if point is None else Case(name, point, Fault.DAEMON)
            with subtests.test(str(case or name)):
                if case is not None and move == inn.go_down:
                    inn.house.arm(case)
                job = move(case)
                inn.check(str(case or name), judged)
                if case is not None:
                    ROWS.append(Row(case, result_of(job)))


@pytest.mark.timeout(900)
def test_the_daemon_dies_at_each_step_of_both_jobs(
    inn: Inn, points: tuple[list[Point], list[Point]], subtests: pytest.Subtests
) -> None:
    down, up = ([p for p in passed if p.kind.startswith("host.")] for passed in points)
    assert {point.what for point in down} >= {"accepted", "step:stop", "done"}
    assert {point.what for point in up} >= {"accepted", "step:start", "done"}
    strike_all(inn, subtests, down, up)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_the_daemon_dies_at_each_step_of_their_guests_jobs(
    inn: Inn, points: tuple[list[Point], list[Point]], subtests: pytest.Subtests
) -> None:
    down, up = ([p for p in passed if p.kind.startswith("guest.")] for passed in points)
    assert {point.kind for point in [*down, *up]} == {"guest.start", "guest.stop"}
    strike_all(inn, subtests, down, up)
