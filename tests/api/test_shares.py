"""Shared folders by the API: kept in the document, mounted in a running guest, refused by name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from guesthouse.drivers.base import DriverEvent
from guesthouse.model.job import Job, JobState
from guesthouse.shares.attached import GuestShares
from guesthouse.supervisor.sharing import follow_shares
from tests.api.api_house import ApiHouse, guest_document
from tests.api.test_writes import WAIT, job_of
from tests.sharing_guest import FakeGuest

ROUTE = "/v1/guests/web/shares"


@pytest.fixture
def inside() -> Iterator[FakeGuest]:
    guest = FakeGuest()
    yield guest
    guest.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


async def running(house: ApiHouse, inside: FakeGuest, folder: Path) -> GuestShares:
    """A guest whose shares go to `inside`."""
    guest = await house.guest("web", user="guest")
    live = house.rooms.live.get(guest.id)
    assert live is not None
    live.shares = GuestShares(folder, inside, inside, user="guest")
    return live.shares


async def add(api: httpx.AsyncClient, source: Path | str, **more: Any) -> Job:
    body = {"source": str(source), "target": "/srv/site", **more}
    return job_of(await api.post(ROUTE, json=body, params=WAIT))


async def test_a_stopped_guest_gets_it_with_its_next_start(
    api: httpx.AsyncClient, house: ApiHouse, source: Path
) -> None:
    await house.guest("web", start=False)
    job = await add(api, source, read_only=True)
    assert job.state is JobState.DONE and job.result == {"name": "site", "reason": ""}
    [share] = (await api.get(ROUTE)).json()
    assert share["state"] == "waiting" and share["read_only"] and share["way"] == "sftp"
    assert share["host_uid"] == os.getuid()
    assert (await api.get("/v1/guests/web")).json()["spec"]["shares"][0]["name"] == "site"
    done = job_of(await api.delete(f"{ROUTE}/site", params=WAIT))
    assert done.state is JobState.DONE
    assert (await api.get(ROUTE)).json() == []


async def test_a_running_guest_has_it_at_once(
    api: httpx.AsyncClient, house: ApiHouse, source: Path, inside: FakeGuest, tmp_path: Path
) -> None:
    await running(house, inside, tmp_path)
    job = await add(api, source)
    assert job.result is not None and str(job.result["reason"]).startswith("sftp: ")
    assert inside.mounted == {"/srv/site"}
    [share] = (await api.get(ROUTE)).json()
    assert share["state"] == "mounted" and share["walls"]
    inside.busy.add("/srv/site")
    refused = job_of(await api.delete(f"{ROUTE}/site", params=WAIT))
    assert refused.problem is not None and refused.problem.code == "in-use"
    assert "vim (process 7)" in refused.problem.message and inside.mounted
    assert len((await api.get(ROUTE)).json()) == 1
    forced = job_of(await api.delete(f"{ROUTE}/site", params={**WAIT, "force": "true"}))
    assert forced.state is JobState.DONE and not inside.ports


async def test_what_fails_in_the_guest_is_undone(
    api: httpx.AsyncClient, house: ApiHouse, source: Path, inside: FakeGuest, tmp_path: Path
) -> None:
    await running(house, inside, tmp_path)
    inside.broken.add("/srv/site")
    job = await add(api, source)
    assert job.problem is not None and "sshfs: broken" in job.problem.message
    assert (await api.get(ROUTE)).json() == [] and not inside.ports
    inside.able = False
    job = await add(api, source)
    assert job.problem is not None and job.problem.code == "agent-unsupported"
    assert "apt install sshfs" in job.problem.hint


async def test_what_cannot_be_shared(
    api: httpx.AsyncClient, house: ApiHouse, source: Path, tmp_path: Path
) -> None:
    await house.guest("web", start=False)
    (tmp_path / "link").symlink_to("/etc")
    for wrong, word in (
        (tmp_path / "nowhere", "cannot be shared"),
        ("/etc", "folder of the system"),
        (tmp_path / "link", "folder of the system"),
        (house.rooms.folders.state, "own files"),
    ):
        job = await add(api, wrong)
        assert job.problem is not None and word in job.problem.message, wrong
    assert (await add(api, "/etc", system_folder=True, read_only=True)).state is JobState.DONE
    job = await add(api, source)
    assert job.problem is not None and job.problem.code == "conflict"
    for body in ({"source": "x", "target": "/a"}, {"source": "/x", "target": "/etc"}):
        answer = await api.post(ROUTE, json=body, params=WAIT)
        assert answer.status_code == 400, answer.text
    answer = job_of(await api.delete(f"{ROUTE}/nothing", params=WAIT))
    assert answer.problem is not None and answer.problem.code == "not-found"


async def test_a_guest_without_our_port_is_refused(
    api: httpx.AsyncClient, house: ApiHouse, source: Path
) -> None:
    await house.add(guest_document("web", ssh_port=False))
    job = await add(api, source)
    assert job.problem is not None and job.problem.code == "agent-unsupported"


async def test_a_launch_with_shares(api: httpx.AsyncClient, house: ApiHouse, source: Path) -> None:
    folders = [{"source": str(source), "target": f"/srv/{name}/x"} for name in ("a", "b")]
    body = {"image": "micro", "name": "web", "start": False, "shares": folders}
    job = job_of(await api.post("/v1/guests", json=body, params=WAIT))
    assert job.state is JobState.DONE, job.problem
    assert [one["name"] for one in (await api.get(ROUTE)).json()] == ["x", "x-2"]
    for wrong, code in (([folders[0], folders[0]], "conflict"),
                        ([{"source": "/etc", "target": "/srv/a"}], "invalid-input")):  # fmt: skip
        body = {"image": "micro", "name": "db", "start": False, "shares": wrong}
        job = job_of(await api.post("/v1/guests", json=body, params=WAIT))
        assert job.problem is not None and job.problem.code == code
        assert (await api.get("/v1/guests/db")).status_code == 404


async def test_the_supervisor_mounts_when_the_guest_is_up_and_after_a_reset(
    api: httpx.AsyncClient, house: ApiHouse, source: Path, inside: FakeGuest, tmp_path: Path
) -> None:
    shares = await running(house, inside, tmp_path)
    await add(api, source)
    guest = house.view.guest("web")
    live = house.rooms.live.get(guest.id)
    assert live is not None
    await shares.unmount(guest.spec.shares[0])
    live.progress.update((), "ssh", "")
    task = asyncio.create_task(follow_shares(house.rooms, guest.id, live))

    async def until(mounted: bool) -> None:
        async with asyncio.timeout(30):
            while bool(inside.ports) != mounted:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    await asyncio.sleep(0.05)
    assert not inside.ports
    live.progress.update(("ssh",), "", "")
    await until(True)
    fan = live.running.fan  # type: ignore[attr-defined]  # the fake driver's
    fan.send(DriverEvent("reset"))
    await until(False)
    inside.mounted.clear()
    fan.send(DriverEvent("ssh-open"))
    await until(True)
    await asyncio.sleep(0.05)
    inside.broken.add("/srv/site")
    fan.send(DriverEvent("reset"))
    await until(False)
    inside.mounted.clear()
    fan.send(DriverEvent("ssh-open"))
    async with asyncio.timeout(30):
        while not live.share_problems:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    [view] = (await api.get(ROUTE)).json()
    assert view["state"] == "failed" and "broken" in view["message"]
    fan.send(DriverEvent("exit"))
    await asyncio.wait_for(task, 30)
