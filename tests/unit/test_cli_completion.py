"""Completion in the shells themselves: keys are typed, and what stands on the line is read."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guesthouse.model.firewall import Firewall, Rule
from guesthouse.model.image import Image
from guesthouse.model.states import GuestState

from .cli_room import Room, make_room

DEADLINE = 60.0

# (what is typed before Tab, what stands there then)
LINES = [
    ("guest sto", "guest stop"),
    ("guest stop we", "guest stop web"),
    ("guest stop web d", "guest stop web db"),
    ("guest shell d", "guest shell db"),
    ("guest ls --sta", "guest ls --state"),
    ("guest ls --state runn", "guest ls --state running"),
    ("guest ls --image deb", "guest ls --image debian/12"),
    ("guest launch deb", "guest launch debian/12"),
    ("guest image inf", "guest image info"),
    ("guest image info deb", "guest image info debian/12"),
    ("guest top d", "guest top db"),
    ("guest network info la", "guest network info lan"),
    ("guest launch --network la", "guest launch --network lan"),
    ("guest launch --group ss", "guest launch --group ssh"),
    ("guest firewall add we", "guest firewall add web"),
    ("guest firewall add web all", "guest firewall add web allow"),
    ("guest firewall add web allow in tc", "guest firewall add web allow in tcp"),
    (
        "guest firewall add web allow in --from se",
        "guest firewall add web allow in --from set:office",
    ),
    ("guest firewall rm web no-s", "guest firewall rm web no-ssh"),
    ("guest firewall group join ss", "guest firewall group join ssh"),
    ("guest firewall set add off", "guest firewall set add office"),
    ("guest nic add web --network la", "guest nic add web --network lan"),
    ("guest nic rm d", "guest nic rm db"),
    ("guest nic set web 0 net", "guest nic set web 0 network="),
]


@pytest.fixture
def guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Room]:
    for room in make_room(tmp_path, monkeypatch, capfd):
        room.house.add("db", GuestState.STOPPED)
        room.house.add_network("lan")
        room.house.fire.groups["ssh"] = ()
        room.house.fire.sets["office"] = ()
        room.house.fire.firewalls["guests/web"] = Firewall(rules=(Rule(name="no-ssh"),))
        room.house.images = [
            Image(id="I", name="debian/12", digest="d" * 64, size=1, created_at=0.0)
        ]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        monkeypatch.setenv("PATH", path)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("TERM", "dumb")
        yield room


class Typist:
    """A shell at a terminal of its own, and somebody who types.

    What is typed is not read from the screen, where line editors move about: the line is handed to
    a function `show`, which writes its words to a file.
    """

    def __init__(self, argv: list[str], folder: Path) -> None:
        self._file = folder / "line"
        self._fd, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (50, 200))
        self._process = subprocess.Popen(
            argv, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def line(self, typed: str) -> str:
        """What is on the line after `typed` and a Tab. Ctrl-A goes to its start."""
        self._file.unlink(missing_ok=True)
        self.type(f"{typed}\t\x01show \x05\r")
        return self._written()

    def ready(self) -> None:
        self._file.unlink(missing_ok=True)
        self.type("show ready\r")
        assert self._written() == "ready"

    def _written(self) -> str:
        ended = time.monotonic() + DEADLINE
        os.set_blocking(self._fd, False)
        seen = b""
        while not (self._file.exists() and self._file.read_text().endswith("\n")):
            try:
                seen += os.read(self._fd, 4096)
            except BlockingIOError:
                time.sleep(0.02)
            assert time.monotonic() < ended, seen.decode(errors="replace")
        return self._file.read_text().strip()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)


def _shell(folder: Path, argv: list[str], *setup: str) -> Typist:
    shell = Typist(argv, folder)
    shell.type(f'show() {{ echo "$*" > {folder}/line.new; mv {folder}/line.new {folder}/line; }}\r')
    shell.ready()
    for line in setup:
        shell.type(f"{line}\r")
        shell.ready()
    return shell


def test_bash_completes(guest: Room, tmp_path: Path) -> None:
    shell = _shell(
        tmp_path,
        ["bash", "--noprofile", "--norc", "-i"],
        'eval "$(guest completion bash)"',
        "bind 'set bell-style none'",
    )
    try:
        for typed, then in LINES:
            assert shell.line(typed) == then
        job = guest.house.submit("image.build", None)
        assert shell.line("guest job show 0") == f"guest job show {job.id}"
        assert shell.line("guest set web prot") == "guest set web protected="
        guest.house.close()
        assert shell.line("guest stop we") == "guest stop we"  # nobody to ask, and no noise
    finally:
        shell.close()


def test_zsh_completes(guest: Room, tmp_path: Path) -> None:
    if not shutil.which("zsh"):
        pytest.skip("zsh is not installed")
    shell = _shell(
        tmp_path,
        ["zsh", "-f", "-i"],
        "bindkey -e; unsetopt beep",
        f"autoload -Uz compinit; compinit -u -d {tmp_path}/zcompdump",
        'eval "$(guest completion zsh)"',
    )
    try:
        for typed, then in LINES:
            assert shell.line(typed) == then
    finally:
        shell.close()


def test_fish_completes(guest: Room, tmp_path: Path) -> None:
    if not shutil.which("fish"):
        pytest.skip("fish is not installed")
    script = tmp_path / "guest.fish"
    script.write_text(guest("completion", "fish").out)
    asks = "; ".join(f"echo '> {typed}'; complete -C '{typed}'" for typed, _ in LINES)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {script}; {asks}"],
        capture_output=True,
        check=True,
        timeout=300,
    )
    answers = done.stdout.decode().split("> ")[1:]
    for (typed, then), answer in zip(LINES, answers, strict=True):
        asked, *found = answer.splitlines()
        assert asked == typed
        # Each answer is a word, and after a tab what is known of it.
        assert then.rsplit(" ", 1)[1] in [word.partition("\t")[0] for word in found]
    assert "stopped" in answers[3]
