"""Guesthouse is upgraded below a daemon that runs: users are told, and a restart harms no guest."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import guesthouse
from guesthouse.host.installed import LOOK_EVERY

from .conftest import House, until

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]


@pytest.fixture
def copied() -> Iterator[House]:
    """A house whose program is a copy of its own, in the folder `program`."""
    made = House(Path(tempfile.mkdtemp(prefix="gh-")))
    ignored = shutil.ignore_patterns("__pycache__")
    program = made.folder / "program"
    shutil.copytree(Path(guesthouse.__file__).parent, program / "guesthouse", ignore=ignored)
    made.env["PYTHONPATH"] = str(program)
    try:
        yield made
    finally:
        made.close()


def test_an_upgrade_is_told_until_the_daemon_is_restarted(copied: House) -> None:
    copied.run("launch", "micro", "m", "--memory", "128M", "--no-wait")
    process, daemon = copied.pid("m"), copied.daemon_pid
    assert copied.run("ls").stderr == b""
    changed = copied.folder / "program" / "guesthouse" / "errors.py"
    new = changed.with_name("new")
    shutil.copy2(changed, new)
    new.rename(changed)

    def told() -> str:
        return copied.run("ls").stderr.decode()

    said = until(told, seconds=30 * LOOK_EVERY, say="a warning")
    assert said.count("\n") == 1
    assert "guest daemon restart" in said
    assert "m" in copied.out("ls", "-q")
    copied.run("daemon", "restart")
    assert copied.daemon_pid != daemon
    assert copied.run("ls").stderr == b""
    assert (copied.status("m")["state"], copied.pid("m")) == ("running", process)
    os.kill(process, 0)
