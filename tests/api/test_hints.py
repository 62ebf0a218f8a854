"""What is said to do next when a guest's state does not allow something."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from guesthouse.errors import InvalidTransition
from guesthouse.model.reports import EmptyRequest, ExecRequest
from tests.api.api_house import ApiHouse

WAIT = {"wait": "30"}


async def _problem(api: httpx.AsyncClient, method: str, path: str) -> dict[str, Any]:
    job = (await api.request(method, path, params=WAIT)).json()
    problem: dict[str, Any] = job["problem"]
    assert problem["code"] == "invalid-state"
    return problem


async def test_start_of_a_guest_that_runs(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.guest("web")
    problem = await _problem(api, "POST", "/v1/guests/web/start")
    assert problem["message"] == "Cannot start it: guest 'web' is running."
    assert problem["hint"] == "It runs already. To start it anew: guest restart web"


async def test_removal_of_a_guest_that_runs(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.guest("web")
    problem = await _problem(api, "DELETE", "/v1/guests/web")
    assert problem["hint"] == "Stop it first (guest stop web), or kill it: guest rm --force web"


async def test_a_command_in_a_paused_guest(house: ApiHouse) -> None:
    house.by_ssh = True
    await house.guest("web")
    await house.ended(await house.pause("web", EmptyRequest(), "test"))
    with pytest.raises(InvalidTransition) as caught:
        await house.open_exec("web", ExecRequest(argv=("true",)))
    assert "guest 'web' is paused" in caught.value.message
    assert caught.value.hint == "Resume it first: guest resume web"
