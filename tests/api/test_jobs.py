"""Jobs: listed, cancelled, followed."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from guesthouse.api.http_streams import with_heartbeat
from tests.api.api_house import ApiHouse, guest_document
from tests.api.documented import Documented
from tests.api.sse import events

WAIT = {"wait": "60"}


async def test_jobs_are_listed_newest_first(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.add(guest_document("web"), guest_document("db"))
    for guest in ("web", "db", "web"):
        await api.patch(f"/v1/guests/{guest}", json={"cpus": 2}, params=WAIT)
    house.driver.gate.clear()
    running = (await api.post("/v1/guests/db/start")).json()
    jobs = (await api.get("/v1/jobs")).json()
    assert [job["target_name"] for job in jobs] == ["db", "web", "db", "web"]
    assert [job["id"] for job in (await api.get("/v1/jobs?active=true")).json()] == [running["id"]]
    assert len((await api.get("/v1/jobs?active=false")).json()) == 3
    assert len((await api.get("/v1/jobs?guest=web")).json()) == 2
    assert len((await api.get("/v1/jobs?guest=db&active=false&limit=5")).json()) == 1
    assert [job["id"] for job in (await api.get("/v1/jobs?limit=2")).json()] == [
        job["id"] for job in jobs[:2]
    ]


async def test_jobs_of_a_guest_that_is_gone_are_still_found(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    guest = await house.guest("web", start=False)
    await api.delete("/v1/guests/web", params=WAIT)
    for ref in ("web", guest.id):
        jobs = (await api.get(f"/v1/jobs?guest={ref}")).json()
        assert [job["kind"] for job in jobs] == ["guest.delete", "guest.launch"]
    assert (await api.get("/v1/jobs?guest=never")).status_code == 404


async def test_a_job_is_cancelled(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.guest("web", start=False)
    house.driver.gate.clear()
    job = (await api.post("/v1/guests/web/start")).json()
    await house.driver.arrived.wait()
    answer = await api.post(f"/v1/jobs/{job['id']}/cancel", params=WAIT)
    assert answer.status_code == 202
    assert answer.json()["state"] == "cancelled"
    assert (await api.get("/v1/guests/web")).json()["status"]["state"] == "stopped"


async def test_what_may_not_be_cancelled_says_so(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.guest("web", start=False)
    house.driver.gate.clear()
    await api.post("/v1/guests/web/start")
    job = (await api.delete("/v1/guests/web")).json()  # waits for the start
    answer = await api.post(f"/v1/jobs/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert (await api.post("/v1/jobs/nothing/cancel")).status_code == 404


async def test_a_job_s_log_is_text(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.guest("web", start=False)
    job = (await api.post("/v1/guests/web/start", params=WAIT)).json()
    assert (await api.get(f"/v1/jobs/{job['id']}/log")).text == ""
    (house.rooms.folders.jobs / f"{job['id']}.log").write_text("one\ntwo \u2026\n")
    answer = await api.get(f"/v1/jobs/{job['id']}/log")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == "one\ntwo \u2026\n"


async def test_a_job_is_followed_to_its_end(
    api: httpx.AsyncClient, house: ApiHouse, documented: Documented
) -> None:
    house.driver.gate.clear()
    body = {"image": "micro", "name": "web", "wait_ready": False}
    job = (await api.post("/v1/guests", json=body)).json()
    kinds = []
    async with api.stream("GET", f"/v1/jobs/{job['id']}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for kind, data in events(response):
            if kind:
                kinds.append(kind)
                component = {"progress": "JobProgress", "log": "LogLine", "job": "Job"}[kind]
                documented.schema(component, data)
                house.driver.gate.set()
            if kind == "job" and data["ended_at"] is not None:
                # A client that reads now sees what the job did.
                state = (await api.get("/v1/guests/web")).json()["status"]["state"]
                assert (data["state"], state) == ("done", "running")
    assert kinds[-1] == "job"
    assert "progress" in kinds


async def test_following_an_ended_job_answers_it_at_once(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    await house.guest("web")
    job = (await api.post("/v1/guests/web/stop", params=WAIT)).json()
    async with api.stream("GET", f"/v1/jobs/{job['id']}/events") as response:
        heard = [(kind, data) async for kind, data in events(response) if kind]
    assert [(kind, data["state"]) for kind, data in heard] == [("job", "done")]
    assert (await api.get("/v1/jobs/nothing/events")).status_code == 404


async def test_silence_is_filled_with_heartbeats() -> None:
    closed = asyncio.Event()

    async def source():  # type: ignore[no-untyped-def]  # an async generator
        try:
            yield b"one"
            await asyncio.sleep(0.3)
            yield b"two"
            await asyncio.sleep(300)
        finally:
            closed.set()

    stream = with_heartbeat(source(), interval=0.02)
    heard = []
    async for piece in stream:
        heard.append(piece)
        if piece == b"two":
            break
    await stream.aclose()
    assert closed.is_set()
    assert heard[0].startswith(b": ")
    assert heard[1] == b"one"
    assert heard.count(b": still here\n\n") >= 1
    assert all(piece.startswith(b": ") for piece in heard[2:-1])


@pytest.mark.parametrize("error", [ValueError("no"), None])
async def test_the_end_of_a_source_ends_the_stream(error: Exception | None) -> None:
    async def source():  # type: ignore[no-untyped-def]  # an async generator
        yield b"one"
        if error is not None:
            raise error

    heard = []
    try:
        async for piece in with_heartbeat(source()):
            heard.append(piece)
    except ValueError as raised:
        assert raised is error
    assert heard[1:] == [b"one"]
