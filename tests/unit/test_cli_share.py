"""`guest share add|ls|rm`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from guesthouse.model.share import Share

from .cli_room import Room, make_room


@pytest.fixture
def guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Room]:
    yield from make_room(tmp_path, monkeypatch, capfd)


def give(guest: Room, *shares: Share) -> None:
    for key, one in guest.house.guests.items():
        spec = msgspec.structs.replace(one.spec, shares=shares)
        guest.house.guests[key] = msgspec.structs.replace(one, spec=spec)


SITE = Share(name="site", source="/home/ada/site", target="/srv/site", host_uid=1, host_gid=1)


def test_add_sends_what_was_asked(
    guest: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    guest.house.results["guest.share"] = {"result": {"name": "site", "reason": "sftp: it is."}}
    said = guest("share", "add", "web", "./a/../site:/srv/site:ro", "--guest-user", "www-data")
    assert said.out == f"Shared {tmp_path}/site at /srv/site of web\n"
    assert "sftp: it is." in said.err
    assert guest.bodies("POST", "/v1/guests/web/shares") == [
        {
            "source": f"{tmp_path}/site",
            "target": "/srv/site",
            "read_only": True,
            "way": None,
            "guest_user": "www-data",
            "system_folder": False,
        }
    ]


@pytest.mark.parametrize("text", ["/home/ada", "/a:/etc", "/a:b", "a:"])
def test_add_refuses_what_cannot_be(guest: Room, text: str) -> None:
    assert guest("share", "add", "web", text).code == 2
    assert guest.bodies("POST", "/v1/guests/web/shares") == []


def test_ls_and_rm(guest: Room) -> None:
    assert "no shared folders" in guest("share", "ls", "web").err
    give(guest, SITE)
    lines = guest("share", "ls", "web").out.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "HOST", "GUEST", "MODE", "WAY"]
    assert lines[1].split() == ["site", "mounted", "/home/ada/site", "/srv/site", "rw", "sftp"]
    assert "/home/ada/site -> /srv/site" in guest("info", "web").out
    assert guest.json("share", "ls", "web")[0]["target"] == "/srv/site"
    for which in ("site", "/srv/site"):
        said = guest("share", "rm", "web", which)
        assert said.out == "/home/ada/site is not shared with web any more\n"
        assert guest.house.seen[-2][:2] == ("DELETE", "/v1/guests/web/shares/site")
    assert guest("share", "rm", "--force", "web", "site").code == 0
    said = guest("share", "rm", "web", "/srv")
    assert said.code == 3 and "Its shares: /srv/site" in said.err
