"""Uploads, images made of them, and guests of such images: through the real application."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from guesthouse.api.routes import uploads as upload_routes
from guesthouse.host.settings import Settings
from guesthouse.model.ids import new_id
from guesthouse.model.job import JobState
from guesthouse.model.reports import LaunchRequest
from guesthouse.operations.creation import forget_orphaned
from guesthouse.supervisor.housekeeping import Housekeeping
from tests.api.api_house import ApiHouse
from tests.foreign_files import MIB, iso, qcow2

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDb0mC0mM0mC0mM0mC0mM0mC0mM0mC0mM0mC0mM0mC0m jo@desk"
USER_DATA = "#cloud-config\npassword: open-sesame\n"
BYTES = {"Content-Type": "application/octet-stream"}


async def uploaded(api: httpx.AsyncClient, data: bytes) -> str:
    made = await api.post("/v1/uploads", json={"size": len(data)})
    assert made.status_code == 201
    path = made.headers["location"]
    assert path == f"/v1/uploads/{made.json()['id']}"
    sent = await api.put(path, params={"offset": 0}, content=data, headers=BYTES)
    assert (sent.status_code, sent.json()["size"]) == (200, len(data))
    return str(made.json()["id"])


async def imported(api: httpx.AsyncClient, data: bytes, name: str, **more: Any) -> dict[str, Any]:
    """The job, ended."""
    body = {"upload": await uploaded(api, data), "name": name, **more}
    answer = await api.post("/v1/images-import", params={"wait": 60}, json=body)
    assert answer.status_code == 202
    job: dict[str, Any] = answer.json()
    return job


async def launched(api: httpx.AsyncClient, image: str, name: str, **more: Any) -> dict[str, Any]:
    """The guest, or the problem."""
    body = {"image": image, "name": name, "ready_timeout": 30, **more}
    answer = await api.post("/v1/guests", params={"wait": 60}, json=body)
    if answer.status_code >= 400:
        problem: dict[str, Any] = answer.json()
        return problem
    assert answer.json()["state"] == "done", answer.json()["problem"]
    guest: dict[str, Any] = (await api.get(f"/v1/guests/{name}")).json()
    return guest


async def test_from_a_file_to_a_guest(api: httpx.AsyncClient, house: ApiHouse) -> None:
    job = await imported(api, qcow2(data=b"hello"), "mine", description="a server")
    assert job["state"] == "done", job["problem"]
    image = (await api.get("/v1/images/mine")).json()
    assert (image["kind"], image["format"], image["source"], image["description"]) == (
        "disk",
        "qcow2",
        "imported",
        "a server",
    )
    guest = await launched(api, "mine", "web")
    # Nobody waits for what cannot come.
    assert guest["status"]["ready"] == ["process"]
    assert guest["readiness"]["waiting"] is None
    spec = guest["spec"]
    assert (spec["agent"], spec["ssh_port"], spec["seed"]) == (False, False, "nocloud")
    assert [disk["name"] for disk in spec["disks"]] == ["root", "seed"]
    assert house.rooms.live.get(guest["id"]) is not None
    assert house.rooms.live.require(house.view.guest("web"), verb="x").ssh is None


async def test_a_guest_with_an_agent_is_waited_for(api: httpx.AsyncClient) -> None:
    await imported(api, qcow2(), "mine", agent=True)
    guest = await launched(api, "mine", "web")
    assert guest["status"]["ready"] == ["process", "kernel", "agent", "network"]


async def test_a_disc_beside_an_empty_disk(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await imported(api, iso(), "installer")
    disks = (await launched(api, "installer", "new"))["spec"]["disks"]
    assert [(disk["name"], disk["device"], disk["read_only"], disk["size"]) for disk in disks] == [
        ("root", "disk", False, 20 << 30),
        ("cdrom", "cdrom", True, len(iso())),
    ]
    more = (await launched(api, "installer", "other", disk=5 << 30))["spec"]["disks"]
    assert more[0]["size"] == 5 << 30
    assert more[1]["volume"] == disks[1]["volume"]
    # The disc is both guests' and the image's: it outlives each guest, and keeps the image.
    await api.delete("/v1/guests/new", params={"wait": 60, "force": True, "now": True})
    await api.delete("/v1/images/installer", params={"wait": 60})
    assert (await api.get("/v1/images/installer")).json()["in_use_by"] == ["other"]
    await api.delete("/v1/guests/other", params={"wait": 60, "force": True, "now": True})
    gone = await api.delete("/v1/images/installer", params={"wait": 60})
    assert gone.json()["state"] == "done"
    assert not house.view.volumes
    assert not list(house.rooms.pool.layers.folder.iterdir())


async def test_refusals_name_their_reason(api: httpx.AsyncClient, house: ApiHouse) -> None:
    job = await imported(api, qcow2(backing=b"/etc/shadow"), "evil")
    assert (job["state"], job["problem"]["code"]) == ("failed", "invalid-input")
    assert job["problem"]["detail"]["reason"] == "backing-file"
    assert not list(house.rooms.uploads.root.iterdir())


async def test_submissions_that_cannot_be(api: httpx.AsyncClient) -> None:
    upload = await uploaded(api, qcow2())
    cases = [
        ({"upload": upload, "name": "micro"}, 409),
        ({"upload": upload, "name": "Bad Name"}, 400),
        ({"upload": upload, "name": "x", "seed": "house"}, 400),
        ({"upload": upload, "name": "x", "format": "dmg"}, 400),
        ({"upload": new_id(), "name": "x"}, 404),
        ({"upload": "../secrets", "name": "x"}, 404),
        ({"name": "x"}, 400),
    ]
    for body, status in cases:
        assert (await api.post("/v1/images-import", json=body)).status_code == status, body
    assert (await api.delete(f"/v1/uploads/{upload}")).status_code == 204
    assert (await api.get(f"/v1/uploads/{upload}")).status_code == 404
    assert (await api.delete(f"/v1/uploads/{upload}")).status_code == 404


async def test_sending_in_pieces(api: httpx.AsyncClient, house: ApiHouse) -> None:
    data = os.urandom(5 * MIB)
    made = (await api.post("/v1/uploads", json={"size": len(data) + MIB})).json()
    path = f"/v1/uploads/{made['id']}"

    async def stream() -> Any:
        for at in range(0, len(data), 100_000):
            yield data[at : at + 100_000]

    sent = await api.put(path, params={"offset": MIB}, content=stream(), headers=BYTES)
    assert sent.status_code == 200
    assert house.rooms.uploads.path(made["id"]).read_bytes() == bytes(MIB) + data
    beyond = await api.put(path, params={"offset": 3 * MIB}, content=data, headers=BYTES)
    assert (beyond.status_code, beyond.json()["context"]["field"]) == (400, "offset")
    wrong = await api.put(path, content=b"{}", headers={"Content-Type": "application/json"})
    assert wrong.status_code == 415
    shown = (await api.get(path)).json()
    assert shown["size"] == len(data) + MIB
    assert len(data) <= shown["stored"] < len(data) + MIB


async def test_a_sender_that_hangs_up(
    api: httpx.AsyncClient, house: ApiHouse, folder: Path
) -> None:
    made = (await api.post("/v1/uploads", json={"size": MIB})).json()
    _, writer = await asyncio.open_unix_connection(str(folder / "socket"))
    writer.write(
        f"PUT /v1/uploads/{made['id']} HTTP/1.1\r\nHost: x\r\nContent-Length: {MIB}\r\n"
        "Content-Type: application/octet-stream\r\n\r\nonly this".encode()
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    for _ in range(200):
        if (await api.delete(f"/v1/uploads/{made['id']}")).status_code == 204:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the upload stays busy")


async def test_files_larger_than_any_image(api: httpx.AsyncClient, house: ApiHouse) -> None:
    house.rooms.settings = Settings(max_image_size="1M")
    answer = await api.post("/v1/uploads", json={"size": 2 * MIB})
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    assert "max_image_size" in answer.json()["hint"]


async def test_housekeeping_throws_old_uploads_away(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    old, young = await uploaded(api, b"old"), await uploaded(api, b"young")
    os.utime(house.rooms.uploads.path(old), (1, 1))
    await Housekeeping(house.rooms, house.jobs).round(0.0)
    assert (await api.get(f"/v1/uploads/{old}")).status_code == 404
    assert (await api.get(f"/v1/uploads/{young}")).status_code == 200


def everything_stored(house: ApiHouse) -> bytes:
    """All bytes below the state folder, without the disks."""
    layers = house.rooms.pool.layers.folder
    paths = (path for path in house.rooms.folders.state.rglob("*") if path.is_file())
    return b"".join(path.read_bytes() for path in paths if path.parent != layers)


async def test_user_data_is_kept_nowhere_but_on_the_disc(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    await imported(api, qcow2(), "cloud")
    guest = await launched(
        api, "cloud", "web", user_data=USER_DATA, network_config="version: 2\n", ssh_keys=[KEY]
    )
    seed = next(disk for disk in guest["spec"]["disks"] if disk["name"] == "seed")
    path = house.rooms.pool.path(house.view.volumes[seed["volume"]])
    assert path.stat().st_mode & 0o777 == 0o600
    disc = path.read_bytes()
    for words in (b"open-sesame", b"version: 2", KEY.encode(), guest["id"].encode()):
        assert words in disc
    assert b"open-sesame" not in everything_stored(house)
    assert house.rooms.secrets.list() == [f"ssh-{guest['id']}"]
    for target in ("/v1/jobs", "/v1/guests/web", "/v1/guests/web/logs?source=house"):
        assert "open-sesame" not in (await api.get(target)).text
    await api.delete("/v1/guests/web", params={"wait": 60, "force": True, "now": True})
    assert not path.exists()


async def test_user_data_of_a_launch_that_fails(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await imported(api, qcow2(), "cloud")
    body = {"image": "cloud", "name": "web", "user_data": USER_DATA, "disk": 65536}
    answer = await api.post("/v1/guests", params={"wait": 60}, json=body)
    assert answer.json()["state"] == "failed"
    assert house.rooms.secrets.list() == []
    assert b"open-sesame" not in everything_stored(house)


async def test_user_data_of_a_launch_that_is_not_accepted(
    api: httpx.AsyncClient, house: ApiHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await imported(api, qcow2(), "cloud")
    house.jobs._stopping = True
    answer = await api.post("/v1/guests", json={"image": "cloud", "user_data": USER_DATA})
    assert answer.status_code == 503
    assert house.rooms.secrets.list() == []


async def test_user_data_that_a_dead_daemon_left(house: ApiHouse) -> None:
    house.driver.gate.clear()
    request = LaunchRequest(image="micro", name="web", wait_ready=False)
    job = await house.launch(request, "test")
    active, orphan = job.target.removeprefix("guests/"), new_id()
    await house.driver.arrived.wait()
    for guest in (active, orphan):
        house.rooms.secrets.put(f"seed-{guest}", b"{}")
    await house.view.wait_for(house.rooms.documents.store.revision)
    await forget_orphaned(house.rooms)
    assert f"seed-{orphan}" not in house.rooms.secrets.list()
    assert f"seed-{active}" in house.rooms.secrets.list()
    house.driver.gate.set()
    assert (await house.ended(job)).state is JobState.DONE


async def test_what_an_image_would_not_heed_is_refused(api: httpx.AsyncClient) -> None:
    await imported(api, iso(), "installer")
    await imported(api, qcow2(), "bare", seed="none")
    await imported(api, qcow2(), "cloud")
    cases: list[tuple[str, dict[str, Any], str, str]] = [
        ("micro", {"user_data": USER_DATA}, "user_data", "set up by this house itself"),
        ("micro", {"network_config": "version: 2"}, "network_config", "no cloud-init"),
        ("bare", {"user_data": USER_DATA}, "user_data", "not set up by anybody"),
        ("bare", {"ssh_keys": [KEY]}, "ssh_keys", "would take an ssh key"),
        ("installer", {"ssh_keys": [KEY]}, "ssh_keys", "would take an ssh key"),
        ("cloud", {"user": "jo"}, "user", "its own users"),
        ("cloud", {"user_data": "password: open-sesame"}, "user_data", "does not begin"),
        ("cloud", {"ssh_keys": ["no key"]}, "ssh_keys", "no public ssh key"),
        ("micro", {"ssh_keys": ["no key"]}, "ssh_keys", "no public ssh key"),
    ]
    for image, more, field, said in cases:
        problem = await launched(api, image, "web", **more)
        assert (problem["status"], problem["context"]["field"]) == (400, field), (image, more)
        assert said in problem["detail"], problem["detail"]
        assert "open-sesame" not in json.dumps(problem)


async def test_our_own_images_take_more_keys(api: httpx.AsyncClient, house: ApiHouse) -> None:
    guest = await launched(api, "micro", "web", ssh_keys=[KEY])
    assert guest["spec"]["keys"] == [KEY]
    assert [disk["name"] for disk in guest["spec"]["disks"]] == []
    assert guest["spec"]["seed"] == "house"


def test_bodies_of_any_size_are_taken() -> None:
    """Everywhere else a body is bounded."""
    assert upload_routes.write_upload.request_max_body_size is None
