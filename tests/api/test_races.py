"""Cancellations and writes that meet at the worst moment."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

WAIT = {"wait": "60"}
SETTLED = {"stopped", "running"}


async def _post(api: httpx.AsyncClient, path: str, body: dict[str, Any], *, wait: bool) -> Any:
    answer = await api.post(path, json=body, params=WAIT if wait else {})
    assert answer.status_code in {202, 409}, answer.text
    return answer.json()


async def _state(api: httpx.AsyncClient, name: str) -> str:
    return str((await api.get(f"/v1/guests/{name}")).json()["status"]["state"])


async def _settled(api: httpx.AsyncClient, name: str) -> str:
    """A cancel that came too late is answered at once, before the view shows the job's end."""
    async with asyncio.timeout(30):
        while (state := await _state(api, name)) not in SETTLED:  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.01)
    return state


async def test_a_start_cancelled_at_any_moment_leaves_no_guest_on_its_way(
    api: httpx.AsyncClient,
) -> None:
    await _post(api, "/v1/guests", {"image": "micro", "name": "web", "start": False}, wait=True)
    for pause in (0, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06):
        job = await _post(api, "/v1/guests/web/start", {}, wait=False)
        await asyncio.sleep(pause)
        await _post(api, f"/v1/jobs/{job['id']}/cancel", {}, wait=True)
        assert await _settled(api, "web") in SETTLED
        await _post(api, "/v1/guests/web/stop", {"force": True}, wait=True)
        assert await _state(api, "web") == "stopped"


async def test_a_rename_meets_the_supervisors_writes(api: httpx.AsyncClient) -> None:
    names = ("one", "two")
    body = {"image": "micro", "name": "one", "wait_ready": False}
    await _post(api, "/v1/guests", body, wait=True)
    for turn in range(10):
        old, new = names[turn % 2], names[(turn + 1) % 2]
        await _post(api, f"/v1/guests/{old}/restart", {"force": True}, wait=True)
        job = await _post(api, f"/v1/guests/{old}/rename", {"name": new}, wait=True)
        assert job["state"] == "done", job["problem"]
