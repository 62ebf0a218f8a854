"""Every change is a job: accepted with 202, durable, followed to its end."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import httpx
import pytest

from guesthouse.model.device import Protocol, Publish
from guesthouse.model.document import decode_strict
from guesthouse.model.job import Job, JobState
from guesthouse.store.contract import Put
from guesthouse.store.documents import IMAGES
from tests.api.api_house import ApiHouse, guest_document, image_document

WAIT = {"wait": "60"}
UDP = {"protocol": Protocol.UDP}


def job_of(answer: httpx.Response) -> Job:
    assert answer.status_code == 202, answer.text
    return decode_strict(answer.content, Job)


async def test_a_launch_is_accepted_and_then_done(api: httpx.AsyncClient, house: ApiHouse) -> None:
    house.driver.gate.clear()
    body = {"image": "micro", "name": "web", "wait_ready": False}
    answer = await api.post("/v1/guests", json=body)
    accepted = job_of(answer)
    assert (accepted.kind, accepted.ended) == ("guest.launch", False)
    assert answer.headers["location"] == f"/v1/jobs/{accepted.id}"
    # Readable at once, though the view follows the store by itself.
    assert (await api.get(answer.headers["location"])).json()["id"] == accepted.id
    house.driver.gate.set()
    assert (await house.ended(accepted)).state is JobState.DONE
    assert (await api.get("/v1/guests/web")).json()["status"]["state"] == "running"


async def test_a_launch_waits_until_the_guest_is_ready(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    job = job_of(await api.post("/v1/guests", json={"image": "micro"}, params=WAIT))
    assert job.result is not None
    guest = (await api.get(f"/v1/guests/{job.result['name']}")).json()
    assert guest["readiness"]["waiting"] is None
    assert "ssh" in guest["readiness"]["passed"]
    assert guest["addresses"]


async def test_waiting_answers_the_end_and_reads_show_it(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    await house.guest("web", start=False)
    for verb, state in [("start", "running"), ("pause", "paused"), ("resume", "running")]:
        job = job_of(await api.post(f"/v1/guests/web/{verb}", params=WAIT))
        assert (job.kind, job.state) == (f"guest.{verb}", JobState.DONE)
        assert (await api.get("/v1/guests/web")).json()["status"]["state"] == state


async def test_a_job_that_fails_carries_its_problem(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    await house.guest("web", start=False)
    job = job_of(await api.post("/v1/guests/web/pause", params=WAIT))
    assert job.state is JobState.FAILED
    assert job.problem is not None
    assert (job.problem.code, job.problem.status) == ("invalid-state", 409)
    assert "guest start" in job.problem.hint


async def test_waiting_too_short_answers_the_job_as_it_is(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    await house.guest("web", start=False)
    house.driver.gate.clear()
    job = job_of(await api.post("/v1/guests/web/start", params={"wait": "0.05"}))
    assert not job.ended
    assert (await api.get("/v1/guests/web")).json()["job"] == job.id


@pytest.mark.parametrize(
    ("running", "method", "path", "body"),
    [
        (False, "POST", "start", {"paused": True, "wait_ready": False}),
        (True, "POST", "stop", {"force": True, "timeout": 1.5}),
        (True, "POST", "restart", {"timeout": 3}),
        (True, "POST", "pause", {}),
        (True, "POST", "resume", None),
        (True, "POST", "reset", None),
        (True, "POST", "power-button", None),
        (False, "POST", "rename", {"name": "db"}),
        (True, "POST", "ports", {"host_port": 0, "guest_port": 80}),
        (True, "DELETE", "ports/tcp/127.0.0.1/8080", None),
        (True, "DELETE", "ports/udp/127.0.0.1/23053", None),
        (True, "PATCH", "", {"cpus": 2, "description": "ours", "cpu": None}),
        (True, "PATCH", "", {}),
        (False, "DELETE", "", None),
        (True, "DELETE", "?force=true", None),
        (True, "DELETE", "?force=true&now=true", None),
    ],
)
async def test_every_verb_of_a_guest(
    api: httpx.AsyncClient,
    house: ApiHouse,
    running: bool,
    method: str,
    path: str,
    body: dict[str, Any] | None,
) -> None:
    ports = (Publish(host_port=8080, guest_port=80), Publish(host_port=23053, guest_port=53, **UDP))
    await house.guest("web", start=running, publish=ports)
    target = f"/v1/guests/web/{path}".replace("/?", "?").removesuffix("/")
    answer = await api.request(method, target, json=body)
    job = await house.ended(job_of(answer))
    assert job.state is JobState.DONE, job.problem
    assert job.target_name == "web"
    assert job.requester == f"uid:{os.getuid()}"


async def test_changes_take_effect(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.guest("web", start=False)
    await api.patch("/v1/guests/web", json={"cpus": 4}, params=WAIT)
    await api.post("/v1/guests/web/rename", json={"name": "db"}, params=WAIT)
    assert (await api.get("/v1/guests/db")).json()["spec"]["cpus"] == 4
    await api.delete("/v1/guests/db", params=WAIT)
    assert (await api.get("/v1/guests")).json() == []


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/guests/nobody/start", None, 404, "not-found"),
        ("/v1/guests", {"image": "micro", "name": "web"}, 409, "name-taken"),
        ("/v1/guests", {"image": "beos/5"}, 404, "unknown-image"),
        ("/v1/images", {"name": "beos/5"}, 404, "unknown-image"),
    ],
)
async def test_what_cannot_be_is_refused_before_there_is_a_job(
    api: httpx.AsyncClient, house: ApiHouse, path: str, body: Any, status: int, code: str
) -> None:
    await house.add(guest_document("web"))
    answer = await api.post(path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert not house.view.jobs


@pytest.mark.parametrize("port", ["tcp/127.0.0.1/x", "tcp/127.0.0.1/0", "sctp/127.0.0.1/80"])
async def test_a_port_that_cannot_be(api: httpx.AsyncClient, house: ApiHouse, port: str) -> None:
    await house.add(guest_document("web"))
    answer = await api.delete(f"/v1/guests/web/ports/{port}")
    assert answer.json()["code"] == "invalid-input"
    assert answer.json()["context"]["field"] in {"host_port", "protocol"}


async def test_images_are_built_and_removed(api: httpx.AsyncClient, house: ApiHouse) -> None:
    built = job_of(await api.post("/v1/images", json={"name": "micro"}, params=WAIT))
    assert (built.kind, built.state) == ("image.build", JobState.DONE)
    assert [image["name"] for image in (await api.get("/v1/images")).json()] == ["micro"]
    removed = job_of(await api.delete("/v1/images/micro", params=WAIT))
    assert (removed.kind, removed.state) == ("image.remove", JobState.DONE)
    assert (await api.get("/v1/images")).json() == []


async def test_an_image_with_a_slash_is_removed_by_its_name(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    image = image_document("debian/12")
    name = Put(IMAGES.name_key(image.name), image.id.encode())
    await house.add(image)
    await house.view.wait_for(await house.rooms.documents.store.commit([name]))
    job = job_of(await api.delete("/v1/images/debian/12", params=WAIT))
    assert job.state is JobState.DONE, job.problem
    assert (await api.get("/v1/images")).json() == []


async def test_storage_is_collected(api: httpx.AsyncClient) -> None:
    job = job_of(await api.post("/v1/storage/collect", params=WAIT))
    assert (job.kind, job.state) == ("storage.collect", JobState.DONE)


async def test_the_daemon_is_asked_to_stop_after_the_answer(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    answer = await api.post("/v1/daemon/stop")
    assert (answer.status_code, answer.json()) == (202, {})
    async with asyncio.timeout(30):
        await house.stop_asked.wait()
