"""Imports that end in the middle: a daemon that is killed, a user who changes their mind."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from .conftest import House, gone, until

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]

MIB = 1 << 20
SIZE = 192 * MIB


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk that does not pack, so that its conversion takes a while."""
    path = tmp_path_factory.mktemp("noise") / "noise.img"
    with path.open("wb") as file:
        for _ in range(SIZE // MIB):
            file.write(os.urandom(MIB))
        file.seek(510)
        file.write(b"\x55\xaa")
    return path


def uploads(house: House) -> list[Path]:
    folder = house.state / "uploads"
    return list(folder.iterdir()) if folder.is_dir() else []


def tool(daemon: int) -> int | None:
    """Pid of the daemon's qemu-img, once it is that and no longer what confines it."""
    for pid in Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split():
        if Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].endswith(b"qemu-img"):
            return int(pid)
    return None


def halted(house: House, noise: Path, name: str) -> tuple[subprocess.Popen[bytes], int]:
    """An import that stands still in the middle of its conversion, and the pid of its tool."""
    house.json("image", "ls")  # the daemon is there
    daemon = house.daemon_pid
    process = house.popen("image", "import", str(noise), name)
    found: int = until(lambda: tool(daemon), say="it is being converted")
    os.kill(found, signal.SIGSTOP)
    return process, found


def layers(house: House) -> list[Path]:
    return list(house.state.glob("pools/*/layers/*"))


def ends_with(code: int, house: House, process: subprocess.Popen[bytes]) -> None:
    """And nothing is left of it."""
    said = process.communicate(timeout=120)
    assert process.returncode == code, said
    until(lambda: not uploads(house), say="nothing of the upload is left")
    assert not house.json("image", "ls")
    assert not layers(house)


def test_a_daemon_killed_while_converting(house: House, noise: Path) -> None:
    process, pid = halted(house, noise, "one")
    house.kill_daemon()
    until(lambda: gone(pid), say="its tool is gone too")
    # The command finds the next daemon, which begins the conversion anew.
    assert process.wait(timeout=120) == 0, process.stdout and process.stdout.read()
    (image,) = house.json("image", "ls")
    assert (image["name"], image["virtual_size"]) == ("one", SIZE)
    assert not uploads(house)
    (layer,) = layers(house)
    subprocess.run(["qemu-img", "compare", "-q", layer, noise], check=True)
    house.run("image", "rm", "--yes", "one")
    assert not layers(house)


def test_an_import_that_is_cancelled(house: House, noise: Path) -> None:
    process, pid = halted(house, noise, "two")
    process.send_signal(signal.SIGINT)
    ends_with(10, house, process)  # the job's own end: cancelled
    assert gone(pid)


def test_a_sending_that_is_cancelled(house: House, noise: Path) -> None:
    process = house.popen("image", "import", str(noise), "three")
    until(lambda: any(path.stat().st_blocks for path in uploads(house)), say="some of it came")
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    ends_with(130, house, process)
