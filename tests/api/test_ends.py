"""Guests that end while something is done with them."""

from __future__ import annotations

import pytest

from guesthouse.errors import EngineError, MonitorLost, NotFound
from guesthouse.model.job import JobState
from guesthouse.model.reports import StopRequest
from guesthouse.model.states import GuestState
from guesthouse.operations import lifecycle
from tests.api.api_house import ApiHouse


@pytest.mark.parametrize("error", [NotFound("It has ended."), MonitorLost("It hung up.")])
async def test_one_that_ends_while_it_is_asked_to_has_stopped(
    house: ApiHouse, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    guest = await house.guest("web")
    live = house.rooms.live.require(guest, verb="stop it")

    async def state() -> tuple[str, str]:
        await house.driver.end(guest)
        raise error

    monkeypatch.setattr(live.running, "state", state)
    job = await house.ended(await house.stop("web", StopRequest(), "test"))
    assert (job.state, job.problem) == (JobState.DONE, None)
    status = house.view.guest("web").status
    assert (status.state, status.reason, status.pid) == (GuestState.STOPPED, "killed", None)
    assert "another hand" in status.message


async def test_one_that_cannot_be_asked_and_lives_on_is_not_called_stopped(
    house: ApiHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = await house.guest("web")
    live = house.rooms.live.require(guest, verb="stop it")
    monkeypatch.setattr(lifecycle, "_ENDING_SECONDS", 0.1)
    answers = [EngineError("It does not answer.")]

    async def state() -> tuple[str, str]:
        if answers:
            raise answers.pop()
        return "running", ""

    monkeypatch.setattr(live.running, "state", state)
    job = await house.ended(await house.stop("web", StopRequest(), "test"))
    assert job.state is JobState.FAILED
    assert house.view.guest("web").state is GuestState.RUNNING
    assert house.view.guest("web").status.pid == guest.status.pid
