"""A launch or start whose waiting is called off: its guest runs on, and that is said."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from guesthouse.model.job import JobState
from guesthouse.operations.live import LiveGuest
from tests.api.api_house import ApiHouse
from tests.api.test_writes import job_of


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set once somebody waits for a guest, which never becomes ready."""
    reached = asyncio.Event()

    async def wait_ready(*_: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(LiveGuest, "wait_ready", wait_ready)
    return reached


@pytest.mark.parametrize("verb", ["launch", "start"])
async def test_it_says_that_the_guest_runs_on(
    api: httpx.AsyncClient, house: ApiHouse, waiting: asyncio.Event, verb: str
) -> None:
    if verb == "launch":
        answer = await api.post("/v1/guests", json={"image": "micro", "name": "web"})
    else:
        await house.guest("web", start=False)
        answer = await api.post("/v1/guests/web/start", json={"wait_ready": True})
    job = job_of(answer)
    async with asyncio.timeout(30):
        await waiting.wait()
    await api.post(f"/v1/jobs/{job.id}/cancel")
    ended = await house.ended(job)
    assert ended.state is JobState.CANCELLED
    assert ended.problem is not None
    assert ended.problem.code == "cancelled"
    assert ended.problem.message == "Waiting for guest 'web' was cancelled. The guest runs on."
    assert "guest info web" in ended.problem.hint
    assert "guest stop web" in ended.problem.hint
    assert (await api.get("/v1/guests/web")).json()["status"]["state"] == "running"


async def test_a_launch_that_is_cancelled_before_leaves_no_guest(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    house.driver.gate.clear()
    job = job_of(await api.post("/v1/guests", json={"image": "micro", "name": "web"}))
    async with asyncio.timeout(30):
        await house.driver.arrived.wait()
    await api.post(f"/v1/jobs/{job.id}/cancel")
    ended = await house.ended(job)
    assert ended.state is JobState.CANCELLED
    assert ended.problem is not None
    assert "runs on" not in ended.problem.message
    assert (await api.get("/v1/guests")).json() == []
