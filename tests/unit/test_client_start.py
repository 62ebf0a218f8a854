"""Finding a daemon, and starting one: with a program in the daemon's place."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guesthouse.client import start
from guesthouse.client.start import find, reach, start_personal
from guesthouse.errors import (
    Conflict,
    DaemonUnreachable,
    DeadlineExceeded,
    Forbidden,
    HostLacks,
)

# Speaks as the daemon does towards whoever starts it. argv: what to do, the ready descriptor.
DAEMON = """
import fcntl, json, os, socket, sys, time
what, fd = sys.argv[1], int(sys.argv[2])
state, path = os.environ["GUESTHOUSE_STATE"], os.environ["TEST_SOCKET"]
print("starting as", what, flush=True)
if what == "dies":
    sys.exit("the database is made of cheese")
if what == "refuses":
    os.write(fd, json.dumps({"code": "host-lacks", "detail": "No.", "hint": "Buy one."}).encode())
    sys.exit(9)
if what == "sleeps":
    time.sleep(600)
lock = os.open(state + "/lock", os.O_RDWR | os.O_CREAT)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    os.write(fd, json.dumps({"code": "conflict", "detail": "already running"}).encode() + b"\\n")
    sys.exit(5)
if what == "slow":
    time.sleep(0.5)
if os.path.exists(path):
    os.unlink(path)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
with open(state + "/pids", "a") as pids:
    pids.write(f"{os.getpid()} {os.getsid(0)} {os.getcwd()}\\n")
os.write(fd, b"ok\\n")
os.close(fd)
while True:
    listener.accept()[0].close()
"""


class Place:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = folder / "state"
        self.socket = folder / "run" / "api.sock"
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "GUESTHOUSE_STATE": str(self.state),
            "GUESTHOUSE_SOCKET": str(self.socket),
            "TEST_SOCKET": str(self.socket),
        }
        self.what = "serves"
        self._script = folder / "daemon.py"
        self._script.write_text(DAEMON)
        self.socket.parent.mkdir()
        monkeypatch.setattr(start, "daemon_argv", self._argv)

    def _argv(self, word: int) -> list[str]:
        return [sys.executable, str(self._script), self.what, str(word)]

    def pids(self) -> list[list[str]]:
        path = self.state / "pids"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place(tmp_path, monkeypatch)
    yield made
    for pid, *_ in made.pids():
        os.kill(int(pid), signal.SIGKILL)


def test_the_real_command_imports_nothing_from_the_working_folder() -> None:
    argv = start.daemon_argv(7)
    assert argv == [sys.executable, "-P", "-m", "guesthouse.daemon", "--ready-fd", "7"]


def test_starts_a_daemon_that_belongs_to_no_terminal(place: Place) -> None:
    assert find(place.env) is None
    told: list[str] = []
    reached = reach(place.env, tell=told.append)
    assert reached.started
    reached.transport.connect().close()
    (pid, session, cwd) = place.pids()[0]
    assert (session, cwd) == (pid, "/")
    log = place.state / "daemon.log"
    assert "starting as serves" in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.state.stat().st_mode) == 0o700
    assert bool(told) == (os.geteuid() == 0)
    again = reach(place.env, tell=told.append)
    assert not again.started
    assert len(place.pids()) == 1


def test_a_stale_socket_is_no_daemon(place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place.socket))
    assert reach(place.env).started


def test_two_at_once_reach_the_same_daemon(place: Place) -> None:
    place.what = "slow"
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(start_personal(place.env).started)
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == [False, False, False, True]
    assert len(place.pids()) == 1


def test_a_daemon_that_refuses_says_why(place: Place) -> None:
    place.what = "refuses"
    with pytest.raises(HostLacks, match="No") as caught:
        reach(place.env)
    assert caught.value.hint == "Buy one."


def test_a_daemon_that_dies_leaves_its_last_words(place: Place) -> None:
    place.what = "dies"
    with pytest.raises(DaemonUnreachable, match="made of cheese") as caught:
        reach(place.env)
    assert "daemon.log" in caught.value.hint


def test_a_daemon_that_never_comes_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "READY_TIMEOUT", 0.2)
    place.what = "sleeps"
    started: list[Any] = []
    real = start.subprocess.Popen

    def popen(*args: Any, **options: Any) -> Any:
        started.append(real(*args, **options))
        return started[-1]

    monkeypatch.setattr(start.subprocess, "Popen", popen)
    with pytest.raises(DeadlineExceeded, match="not ready"):
        reach(place.env)
    started[0].kill()


def test_already_running_but_silent(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr(start, "READY_TIMEOUT", 0.5)
    place.state.mkdir(mode=0o700)
    with (place.state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="already running"):
            reach(place.env)


def test_a_socket_that_is_named_is_meant(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "GUESTHOUSE_SOCKET": str(tmp_path / "far.sock")}
    with pytest.raises(DaemonUnreachable, match=r"far\.sock.*GUESTHOUSE_SOCKET") as caught:
        reach(env)
    assert "unset GUESTHOUSE_SOCKET" in caught.value.hint
    assert not (tmp_path / ".local").exists()


def test_a_state_that_cannot_be_written(place: Place) -> None:
    place.state.write_text("a file in the way")
    with pytest.raises(Forbidden, match=r"daemon\.log"):
        reach(place.env)


def test_a_link_in_the_place_of_the_log_is_not_followed(place: Place, tmp_path: Path) -> None:
    place.state.mkdir(mode=0o700)
    victim = tmp_path / "victim"
    victim.write_text("")
    (place.state / "daemon.log").symlink_to(victim)
    with pytest.raises(Forbidden):
        reach(place.env)
    assert victim.read_text() == ""


def test_a_large_log_makes_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_LOG_LIMIT", 10)
    place.state.mkdir(mode=0o700)
    (place.state / "daemon.log").write_text("old words, many of them")
    reach(place.env)
    assert (place.state / "daemon.log.1").read_text() == "old words, many of them"
    assert "old" not in (place.state / "daemon.log").read_text()


def test_problem_of_the_ready_pipe_is_one_json_line() -> None:
    line = json.dumps({"code": "conflict", "detail": "x"}).encode() + b"\n"
    assert isinstance(start._verdict(line, Path("/nowhere"), 0), Conflict)
    assert start._verdict(b"ok\n", Path("/nowhere"), 0) is None
    assert isinstance(start._verdict(b"", Path("/nowhere"), 0), DaemonUnreachable)
