"""A guest removed by mistake comes back; one that is protected cannot be; a bundle for support."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from .conftest import House, gone, until

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]


def test_removed_by_mistake(house: House) -> None:
    house.run("launch", "micro", "web", "--memory", "128M")
    pid, before = house.pid("web"), house.json("info", "web")
    refused = house.run("rm", "--yes", "web", ok=False)
    assert refused.returncode == 5 and not gone(pid)  # it runs
    said = house.out("rm", "--yes", "--force", "web")
    assert "guest undelete web" in said
    until(lambda: gone(pid), say="its process is gone")
    assert house.json("ls") == []
    assert house.run("start", "web", ok=False).returncode == 3
    assert "guest undelete" in house.run("info", "web", ok=False).stderr.decode()
    house.run("launch", "micro", "web", "--no-start")  # the name is free
    assert house.run("undelete", "web", ok=False).returncode == 5
    house.run("undelete", "web", "--name", "old")
    back = house.json("info", "old")
    for key in ("id", "uuid", "number"):
        assert back[key] == before[key]
    house.run("start", "--wait", "old")
    assert house.out("exec", "old", "--", "hostname").strip() == "old"
    house.run("rm", "--yes", "--now", "web")
    assert house.json("trash", "ls") == []


def test_protected(house: House) -> None:
    house.run("set", "old", "protected=true")
    pid = house.pid("old")
    for options in ((), ("--force",), ("--force", "--now")):
        refused = house.run("rm", "--yes", *options, "old", ok=False)
        assert refused.returncode == 5
        assert b"protected=false" in refused.stderr
    assert house.pid("old") == pid and not gone(pid)
    house.run("set", "old", "protected=false")


def test_bundle(house: House, tmp_path: Path) -> None:
    path = tmp_path / "help.tar.gz"
    house.run("doctor", "--bundle", str(path))
    found = {}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            found[member.name.partition("/")[2]] = file.read()
    (guest,) = json.loads(found["documents/guests.json"])
    assert guest["name"] == "old"
    assert any("qemu-system" in word for word in guest["launch"]["argv"])
    assert b"serves" in found["logs/keeper.log"]
    assert "logs/daemon.log" in found
    everything = b"".join(found.values())
    secrets = [path for path in (house.state / "secrets").iterdir() if path.is_file()]
    assert secrets
    for secret in secrets:
        body = [line for line in secret.read_bytes().split(b"\n") if line and b"---" not in line]
        assert body
        assert not [line for line in body if line in everything]
    assert b"PRIVATE KEY" not in everything


def test_emptying_the_trash_frees_the_space(house: House) -> None:
    house.run("rm", "--yes", "--force", "old")
    (trashed,) = house.json("trash", "ls")
    assert house.run("trash", "empty", ok=False).returncode == 2
    house.run("trash", "empty", "--yes")
    assert house.json("trash", "ls") == []
    state = house.state
    assert not (state / "guests" / trashed["id"]).exists()
    assert not [path for path in (state / "secrets").iterdir() if trashed["id"] in path.name]
    left = state / "pools" / "default" / "documents" / "guests"
    assert list(left.iterdir()) == []
