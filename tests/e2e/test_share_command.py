"""`guest launch --share` and `guest share` with a daemon that is killed under an open file."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import House, until

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]


@pytest.fixture(scope="module")
def site(house: House) -> Iterator[Path]:
    folder = house.folder / "site"
    folder.mkdir()
    (folder / "page").write_text("from the host\n")
    house.run("launch", "micro", "m1", "--memory", "192M", "--share", f"{folder}:/srv/site")
    yield folder


def sh(house: House, script: str) -> str:
    return house.out("exec", "m1", "--", "sh", "-c", script)


def test_a_guest_has_it_when_it_is_ready(house: House, site: Path) -> None:
    assert (
        sh(house, "cat /srv/site/page; echo from the guest >/srv/site/reply") == "from the host\n"
    )
    made = site / "reply"
    assert made.read_text() == "from the guest\n" and made.stat().st_uid == os.getuid()
    [share] = house.json("share", "ls", "m1")
    assert (share["state"], share["way"]) == ("mounted", "sftp")
    assert "namespace" in share["walls"]


def test_it_outlives_the_daemon_and_comes_back_with_the_guest(house: House, site: Path) -> None:
    log = site / "log"
    sh(house, "exec >/srv/site/log 2>/dev/null; (while :; do echo tick; sleep 0.2; done) &")
    until(lambda: log.exists() and log.stat().st_size, say="the guest writes")
    house.kill_daemon()
    size = log.stat().st_size
    until(lambda: log.stat().st_size > size, say="it writes on without a daemon")
    until(
        lambda: house.json("share", "ls", "m1")[0]["state"] == "mounted",
        say="the new daemon has found it",
    )
    size = log.stat().st_size
    until(lambda: log.stat().st_size > size, say="it writes on with a new daemon")
    busy = house.run("share", "rm", "m1", "/srv/site", ok=False)
    assert busy.returncode == 5 and b"in use in the guest by" in busy.stderr
    house.run("restart", "--force", "m1")
    until(
        lambda: house.json("share", "ls", "m1")[0]["state"] == "mounted",
        say="it is back after a restart",
        seconds=240,
    )
    assert sh(house, "cat /srv/site/page") == "from the host\n"


def test_shares_come_and_go_while_it_runs(house: House, site: Path) -> None:
    other = house.folder / "other"
    other.mkdir()
    (other / "x").write_text("x")
    said = house.out("share", "add", "m1", f"{other}:/mnt/other:ro")
    assert said == f"Shared {other} at /mnt/other of m1\n"
    script = "cat /mnt/other/x; echo y >/mnt/other/x || echo no; exit 0"
    assert sh(house, script) == "xno\n"
    house.run("share", "rm", "m1", "/mnt/other")
    assert sh(house, "ls -A /mnt/other") == ""
    house.run("share", "rm", "m1", "site")
    assert house.json("share", "ls", "m1") == []
    refused = house.run("share", "add", "m1", "/etc:/mnt/etc", ok=False)
    assert refused.returncode == 2 and b"--system-folder" in refused.stderr


def test_a_file_server_that_is_killed_is_replaced_by_itself(house: House, tmp_path: Path) -> None:
    """Nobody asks for it, with a daemon that started the server, and with one that found it."""
    (tmp_path / "page").write_text("from the host\n")
    house.run("share", "add", "m1", f"{tmp_path}:/srv/kept")
    for again in (False, True):
        if again:
            house.kill_daemon()
            until(lambda: house.json("share", "ls", "m1")[0]["state"] == "mounted", say="found")
        killed = server(house)
        os.kill(killed, signal.SIGKILL)
        until(
            lambda old=killed: server(house) not in (None, old), say="another serves", seconds=120
        )
        until(
            lambda: (
                house.run("exec", "m1", "--", "cat", "/srv/kept/page", ok=False).stdout
                == b"from the host\n"
            ),
            say="the guest has it again",
            seconds=120,
        )
    sh(house, "echo back >/srv/kept/reply")
    assert (tmp_path / "reply").read_text() == "back\n"
    house.run("share", "rm", "m1", "/srv/kept")
    assert server(house) is None


def server(house: House) -> int | None:
    """Pid of the file server that the guest's runtime folder tells of."""
    for record in house.folder.glob("run/*/guests/*/share-kept.json"):
        try:
            return int(json.loads(record.read_bytes())["pid"])
        except FileNotFoundError:
            pass
    return None


def test_the_choice_and_its_reason_are_shown(house: House, tmp_path: Path) -> None:
    said = house.run("share", "add", "m1", f"{tmp_path}:/srv/why:ro").stderr.decode()
    assert "sftp: the house's file server over a virtio-serial port (no virtiofs: " in said
    share = next(one for one in house.json("share", "ls", "m1") if one["name"] == "why")
    assert share["way"] == "sftp" and share["reason"] in said
    assert share["reason"] in house.run("share", "ls", "m1").stderr.decode()
    shown = house.out("info", "m1")
    assert f"{tmp_path} -> /srv/why, read-only (sftp)" in shown and share["reason"] in shown
    house.run("share", "rm", "m1", "/srv/why")
