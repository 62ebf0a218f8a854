"""`guest launch --share` and `guest share` with a daemon that is killed under an open file."""

from __future__ import annotations

import os
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
