"""Following jobs to their ends, whatever the connection does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from guesthouse.client import follow as following
from guesthouse.client.follow import follow, outcome
from guesthouse.client.house import House, guest_path, image_path
from guesthouse.client.transport import Transport
from guesthouse.errors import (
    Cancelled,
    DaemonUnreachable,
    GuesthouseError,
    Internal,
    InvalidInput,
    NoSpace,
    NotFound,
)
from guesthouse.model.job import Job, JobProgress, JobState
from guesthouse.model.reports import LogLine, StartRequest, StopRequest

from .fake_house import FakeHouse, fake_house


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHouse]:
    monkeypatch.setattr(following, "PAUSE", 0.001)
    with fake_house(tmp_path) as made:
        made.add("web")
        yield made


def _reconnect(server: FakeHouse) -> Any:
    return lambda: Transport(str(server.path))


def _house(server: FakeHouse) -> House:
    return House(Transport(str(server.path)))


def test_progress_lines_and_the_end(server: FakeHouse) -> None:
    server.hold = True
    house = _house(server)
    job = house.start("web", StartRequest(wait_ready=True))
    assert server.seen[-1] == (
        "POST",
        "/v1/guests/web/start",
        {"paused": False, "wait_ready": True, "ready_timeout": 300.0},
    )
    steps: list[object] = []
    for event in follow(house, job, reconnect=_reconnect(server)):
        steps.append(event)
        if len(steps) == 1:
            server.ticks[job.id].append(LogLine(line="hello"))
            server.tick(job.id, None, "nearly")
        if len(steps) == 3:
            server.finish(job.id)
    assert [type(step) for step in steps] == [JobProgress, LogLine, JobProgress, Job]
    assert outcome(steps[-1]).state is JobState.DONE  # type: ignore[arg-type]  # the last step is a job


def test_a_broken_connection_is_followed_further(server: FakeHouse) -> None:
    server.hold = True
    server.cut_events = 3
    house = _house(server)
    job = house.stop("web", StopRequest())
    reconnections: list[None] = []

    def reconnect() -> Transport:
        reconnections.append(None)
        if len(reconnections) == 3:
            server.finish(job.id)
        return Transport(str(server.path))

    *_, last = follow(house, job, reconnect=reconnect)
    assert isinstance(last, Job)
    assert last.state is JobState.DONE
    assert len(reconnections) == 3


def test_the_end_may_pass_while_nobody_listens(server: FakeHouse) -> None:
    house = _house(server)
    server.hold = True
    job = house.pause("web")
    server.stopped.set()  # the events end without the job's end
    threading.Timer(0.2, lambda: server.finish(job.id)).start()

    def reconnect() -> Transport:
        server.finish(job.id)
        return Transport(str(server.path))

    *_, last = follow(house, job, reconnect=reconnect)
    assert isinstance(last, Job)
    assert last.ended


def test_it_gives_up_after_a_while_and_says_where_to_look(server: FakeHouse) -> None:
    house = _house(server)
    server.hold = True
    job = house.resume("web")
    attempts: list[None] = []

    def reconnect() -> Transport:
        attempts.append(None)
        raise DaemonUnreachable("No daemon answers.")

    server.close()
    with pytest.raises(DaemonUnreachable, match="Lost sight") as caught:
        list(follow(house, job, reconnect=reconnect))
    assert len(attempts) == following.ATTEMPTS - 1
    assert f"guest job show {job.id}" in caught.value.hint


def test_a_daemon_that_refuses_to_start_again_is_heard(server: FakeHouse) -> None:
    house = _house(server)
    server.hold, server.cut_events = True, 1
    job = house.reset("web")

    def reconnect() -> Transport:
        raise NoSpace("The disk is full.")

    with pytest.raises(NoSpace):
        list(follow(house, job, reconnect=reconnect))


def test_an_ended_job_is_not_asked_for(server: FakeHouse) -> None:
    house = _house(server)
    job = server.finish(house.reset("web").id)
    server.close()
    assert list(follow(house, job, reconnect=_reconnect(server))) == [job]


def test_outcomes(server: FakeHouse) -> None:
    job = _house(server).reset("web")
    done = server.finish(job.id)
    assert outcome(done) is done
    full = server.finish(job.id, NoSpace("Full.", hint="Free some.", path="/x"))
    with pytest.raises(NoSpace) as caught:
        outcome(full)
    assert (caught.value.message, caught.value.hint) == ("Full.", "Free some.")
    assert caught.value.detail == {"path": "/x"}
    for state, kind in ((JobState.CANCELLED, Cancelled), (JobState.FAILED, Internal)):
        with pytest.raises(kind):
            outcome(msgspec.structs.replace(done, state=state, problem=None))


def test_typed_answers(server: FakeHouse) -> None:
    house = _house(server)
    assert house.info().mode.value == "personal"
    assert [guest.name for guest in house.guests()] == ["web"]
    assert house.guest("web").addresses == ("10.0.2.15",)
    assert house.facts().accelerator == "tcg"
    assert house.screenshot("web").startswith(b"\x89PNG")
    with pytest.raises(NotFound, match="nobody"):
        house.guest("nobody")
    with pytest.raises(InvalidInput):
        house.set_guest("web", {"colour": "red"})
    house.set_guest("web", {"cpus": 4})
    assert server.seen[-1] == ("PATCH", "/v1/guests/web", {"cpus": 4})


def test_an_answer_of_another_version_is_explained(
    server: FakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "view", lambda guest: {"name": guest.name, "colour": "red"})
    with pytest.raises(Internal, match="do not understand each other") as caught:
        _house(server).guests()
    assert "guest daemon restart" in caught.value.hint


@pytest.mark.parametrize("ref", ["", ".", ".."])
def test_references_that_would_name_something_else(ref: str) -> None:
    with pytest.raises(GuesthouseError):
        guest_path(ref)
    with pytest.raises(GuesthouseError):
        image_path(f"debian/{ref}")


def test_references_are_quoted() -> None:
    assert guest_path("a/b?c#d", "start") == "/v1/guests/a%2Fb%3Fc%23d/start"
    assert image_path("debian/12") == "/v1/images/debian/12"
