"""Guests' clocks are set after they stood still; where that fails, it is told and fails nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from guesthouse.errors import AgentUnavailable
from guesthouse.guestos.agent import Agent
from guesthouse.model.guest import Guest
from guesthouse.model.job import Job, JobState
from guesthouse.operations import lifecycle
from guesthouse.operations.clocks import step_guest_clock
from tests.api.api_house import ApiHouse
from tests.api.test_writes import WAIT, job_of

HOUR = 3600.0


async def with_agent(house: ApiHouse, name: str = "web") -> Guest:
    guest = await house.guest(name)
    live = house.rooms.live.get(guest.id)
    assert live is not None
    await live.wait_ready(name, 60)
    return guest


async def press(api: httpx.AsyncClient, verb: str, name: str = "web") -> Job:
    job = job_of(await api.post(f"/v1/guests/{name}/{verb}", json={}, params=WAIT))
    assert job.state is JobState.DONE, job.problem
    return job


async def log_of(api: httpx.AsyncClient, job: Job) -> str:
    return (await api.get(f"/v1/jobs/{job.id}/log")).text


def behind(house: ApiHouse, guest: Guest) -> float:
    live = house.rooms.live.get(guest.id)
    assert live is not None
    inside: Any = live.running
    return float(inside.inside.behind)


async def set_right(house: ApiHouse, guest: Guest) -> None:
    deadline = time.monotonic() + 60
    while behind(house, guest):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_resume_sets_the_clock(api: httpx.AsyncClient, house: ApiHouse) -> None:
    guest = await with_agent(house)
    await press(api, "pause")
    house.driver.set_behind(guest.id, HOUR)
    job = await press(api, "resume")
    assert behind(house, guest) == 0
    assert "its clock was 3600.0 s behind, and is set" in await log_of(api, job)
    assert (await api.get("/v1/guests/web")).json()["clock"] == ""


async def test_a_guest_that_went_on_by_itself(house: ApiHouse) -> None:
    """As after a monitor's loss, or a resume by whoever else holds its engine."""
    guest = await with_agent(house)
    house.driver.set_behind(guest.id, HOUR)
    house.driver.emit(guest.id, "resumed")
    await set_right(house, guest)


async def test_after_the_host_slept(api: httpx.AsyncClient, house: ApiHouse) -> None:
    guests = [await with_agent(house, name) for name in ("web", "db", "off")]
    await press(api, "pause", "off")
    for guest in guests:
        house.driver.set_behind(guest.id, HOUR)
    house.supervisor.clocks.jumped(HOUR)
    for guest in guests[:2]:
        await set_right(house, guest)
    assert behind(house, guests[2]) == HOUR, "a paused one cannot answer"
    await press(api, "resume", "off")
    assert behind(house, guests[2]) == 0


async def test_a_clock_that_cannot_be_set_fails_no_resume(
    api: httpx.AsyncClient, house: ApiHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = await with_agent(house)
    await press(api, "pause")
    house.driver.set_behind(guest.id, HOUR)

    async def silent(self: Agent) -> None:
        raise AgentUnavailable("The guest's agent hung up.")

    monkeypatch.setattr(Agent, "set_time", silent)
    job = await press(api, "resume")
    shown = (await api.get("/v1/guests/web")).json()
    assert shown["status"]["state"] == "running"
    assert shown["clock"] == "not set after it stood still: The guest's agent hung up."
    assert "its clock is not set after it stood still" in await log_of(api, job)
    monkeypatch.undo()
    await press(api, "pause")
    await press(api, "resume")
    assert (await api.get("/v1/guests/web")).json()["clock"] == ""


async def test_an_agent_that_does_not_answer_holds_up_no_resume(
    api: httpx.AsyncClient, house: ApiHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_agent(house)
    await press(api, "pause")

    async def hangs(self: Agent) -> float:
        await asyncio.sleep(3600)
        return 0.0

    monkeypatch.setattr(Agent, "get_time", hangs)
    monkeypatch.setattr(lifecycle, "CLOCK_SECONDS", 0.05)
    await press(api, "resume")
    assert "did not answer within 0.05 s" in (await api.get("/v1/guests/web")).json()["clock"]


async def test_one_whose_agent_never_answered_is_left_alone(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    guest = await house.guest("web", start=False)
    job_of(await api.post("/v1/guests/web/start", json={"paused": True}, params=WAIT))
    live = house.rooms.live.get(guest.id)
    assert live is not None
    house.driver.set_behind(guest.id, HOUR)
    assert await step_guest_clock("web", live, timeout=60) == ""
    assert behind(house, guest) == HOUR and not live.clock
