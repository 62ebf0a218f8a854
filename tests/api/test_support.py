"""The support bundle: what is in it, and what must never be."""

from __future__ import annotations

import io
import json
import re
import tarfile

import httpx
import msgspec
import pytest

from guesthouse.drivers.base import ENGINE_LOG, SERIAL_LOG
from guesthouse.guestos.keys import secret_name
from guesthouse.host.settings import Settings
from guesthouse.model.ids import new_id
from guesthouse.operations.support import SHORT_TAIL, without_secrets
from guesthouse.store.contract import Put
from tests.api.api_house import ApiHouse

KEY = b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk=\n-----END OPENSSH PRIVATE KEY-----\n"


async def bundle(api: httpx.AsyncClient) -> dict[str, bytes]:
    answer = await api.get("/v1/support-bundle")
    assert answer.headers["content-type"] == "application/gzip"
    with tarfile.open(fileobj=io.BytesIO(answer.content), mode="r:gz") as archive:
        members = archive.getmembers()
        folders = {member.name.partition("/")[0] for member in members}
        assert len(folders) == 1 and folders.pop().startswith("guesthouse-support-")
        assert {member.mode for member in members} == {0o600}
        found = {}
        for member in members:
            file = archive.extractfile(member)
            assert file is not None
            found[member.name.partition("/")[2]] = file.read()
        return found


async def test_what_is_in_it(api: httpx.AsyncClient, house: ApiHouse) -> None:
    guest = await house.guest("web")
    folders = house.rooms.folders
    (folders.state / "daemon.log").write_text("the daemon began\n")
    (folders.keeper_state / "keeper.log").write_text("the keeper began\n")
    (folders.guest_state(guest.id) / ENGINE_LOG).write_text(
        "dropped\n" + "x" * SHORT_TAIL + "\nwhole line\n"
    )
    broken = new_id()
    await house.view.wait_for(
        await house.rooms.documents.store.commit([Put(f"guests/{broken}", b"{}")])
    )
    found = await bundle(api)
    about = json.loads(found["about.json"])
    assert about["guesthouse"] == (await api.get("/v1")).json()["version"]
    assert about["python"] and about["sqlite"] and about["kernel"]
    assert json.loads(found["host.json"])["accelerator"] == "tcg"
    assert json.loads(found["house.json"])["quarantined"].keys() == {f"guests/{broken}"}
    (document,) = json.loads(found["documents/guests.json"])
    assert document["launch"]["argv"] == ["fake", "web"]
    store = json.loads(found["store.json"])
    assert 0 < store["revision"] <= house.rooms.documents.store.revision
    assert f"guests/{guest.id}" in store["revisions"]
    jobs = {job["kind"]: job["id"] for job in json.loads(found["jobs.json"])}
    assert jobs.keys() == {"guest.launch", "image.build"}
    assert f"logs/jobs/{jobs['guest.launch']}.log" in found
    assert found["logs/daemon.log"] == b"the daemon began\n"
    assert found["logs/keeper.log"] == b"the keeper began\n"
    assert found[f"logs/engine/{guest.id}.log"] == b"whole line\n"
    assert {"layers.json", "recovery.json", "settings.json"} <= found.keys()


async def test_no_secrets_are_in_it(api: httpx.AsyncClient, house: ApiHouse) -> None:
    """Not the files of the secrets' folder, not what was seen on consoles, and nothing that
    strayed into a log or a setting."""
    guest = await house.guest("web")
    house.rooms.secrets.put("token", b"a-token-of-somebody")
    house.serial_log("web").write_text("login: what was typed at the console\n")
    mirror = "deb https://user:mirror-password@example.org/debian bookworm main"
    house.rooms.settings = Settings(mirrors=(mirror,))
    stray = KEY + b"Get:1 http://apt:apt-password@example.org/ bookworm\n"
    (house.rooms.folders.state / "daemon.log").write_bytes(b"before\n" + stray + b"after\n")
    found = await bundle(api)
    everything = b"".join([*found.values(), *(name.encode() for name in found)])
    secrets = house.rooms.secrets
    assert set(secrets.list()) == {secret_name(guest.id), "token"}
    for name in secrets.list():
        content = secrets.get(name)
        assert content not in everything
        for line in content.split(b"\n"):
            assert len(line) < 20 or line not in everything or line.startswith(b"-----")
    for text in (b"PRIVATE KEY", b"a-token", b"mirror-password", b"apt-password", b"was typed"):
        assert text not in everything
    assert b"before\n[a private key]\nGet:1 http://***@example.org/" in found["logs/daemon.log"]
    assert not [name for name in found if SERIAL_LOG in name or "secret" in name]


async def test_what_cannot_be_had_says_why(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.guest("web")
    found = await bundle(api)
    assert b"FileNotFoundError" in found["logs/daemon.log.missing"]
    assert "documents/guests.json" in found


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (b"x " + KEY + b" y", b"x [a private key]\n y"),
        (b"-----BEGIN RSA PRIVATE KEY-----\nhalf of", b"[a private key]"),
        (msgspec.json.encode(KEY.decode()), b'"[a private key]\\n"'),
        (b"see http://a.example/x@y and mail a@b.example", None),
        (b"https://token@host/x", b"https://***@host/x"),
        (b'"ftp://u:p@h/"', b'"ftp://***@h/"'),
    ],
)
def test_what_strays_is_taken_out(text: bytes, left: bytes | None) -> None:
    assert without_secrets(text) == (text if left is None else left)


async def test_every_bundle_is_new(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.guest("web", start=False)
    await bundle(api)
    await house.guest("db", start=False)
    found = await bundle(api)
    names = re.findall(rb'"name": "(web|db)"', found["documents/guests.json"])
    assert sorted(names) == [b"db", b"web"]
