"""More memory than there is: refused at once, with a hint that leads somewhere."""

from __future__ import annotations

import httpx
import pytest

from guesthouse.errors import LaunchFailed
from guesthouse.model.job import JobState
from guesthouse.operations import memory
from tests.api.api_house import ApiHouse
from tests.api.test_writes import WAIT, job_of

TOO_MUCH = 900 << 40


async def test_more_than_the_host_has_is_refused_at_once(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    await house.guest("web", start=False)
    jobs = set(house.view.jobs)
    launch = {"image": "micro", "name": "big", "memory": TOO_MUCH}
    for answer in (
        await api.patch("/v1/guests/web", json={"memory": TOO_MUCH}),
        await api.post("/v1/guests", json=launch),
    ):
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid-input")
        assert "900T" in answer.json()["detail"]
        assert "64G in all" in answer.json()["detail"]
        assert "big" not in answer.json()["hint"]
    assert set(house.view.jobs) == jobs
    assert (await api.get("/v1/guests/web")).json()["spec"]["memory"] < TOO_MUCH
    # As much as the host has may be wanted; whether it is free shows at the start.
    job = job_of(await api.patch("/v1/guests/web", json={"memory": 1 << 36}, params=WAIT))
    assert job.state is JobState.DONE


async def test_the_hint_names_no_guest_that_is_gone(
    api: httpx.AsyncClient, house: ApiHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.guest("web", start=False)
    monkeypatch.setattr(memory, "available", lambda: 1 << 20)
    launch = {"image": "micro", "name": "big"}
    refused = job_of(await api.post("/v1/guests", json=launch, params=WAIT))
    assert refused.problem is not None
    assert refused.problem.code == "no-memory"
    assert "big" not in refused.problem.hint
    assert "--memory" in refused.problem.hint
    # One that stays can be changed.
    refused = job_of(await api.post("/v1/guests/web/start", params=WAIT))
    assert refused.problem is not None
    assert "guest set web memory=" in refused.problem.hint


async def test_the_engines_words_outlive_the_guest(api: httpx.AsyncClient, house: ApiHouse) -> None:
    words = "qemu: the moon is full\nqemu: giving up"
    error = LaunchFailed("The engine did not start: giving up", hint="See its log.", stderr=words)
    house.driver.fail("launch", error)
    launch = {"image": "micro", "name": "big"}
    refused = job_of(await api.post("/v1/guests", json=launch, params=WAIT))
    assert refused.problem is not None
    assert f"guest job log {refused.id}" in refused.problem.hint
    log = (await api.get(f"/v1/jobs/{refused.id}/log")).text
    assert "the moon is full" in log
