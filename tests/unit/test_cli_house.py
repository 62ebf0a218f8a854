"""Logs, pictures, images, jobs, the daemon, the doctor, completion."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guesthouse import __version__
from guesthouse.cli.logs import _STEERING, last_lines, tail_of
from guesthouse.errors import NotReady
from guesthouse.model.ids import new_id
from guesthouse.model.image import Image

from .cli_room import Room

# --- logs ---


def test_logs(guest: Room) -> None:
    assert guest("logs", "web").out == "first\nsecond\nthird\n"
    assert guest("logs", "-n", "2", "web").out == "second\nthird\n"
    assert guest("logs", "-n", "0", "web").out == ""
    guest("logs", "--source", "engine", "web")
    assert "source=engine" in guest.house.seen[-1][1]
    assert guest("logs", "--source", "rumours", "web").code == 2
    assert guest("logs", "nobody").code == 3


def test_logs_are_followed(guest: Room) -> None:
    process = guest.process("logs", "-f", "-n", "1", "web")
    assert process.stdout is not None
    assert process.stdout.readline() == b"third\n"
    guest.house.log_more.set()
    assert process.stdout.readline() == b"fourth\n"
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert b"run it again to follow on" in err


def test_ctrl_c_ends_following_in_peace(guest: Room) -> None:
    process = guest.process("logs", "-f", "web")
    assert process.stdout is not None
    assert process.stdout.readline() == b"first\n"
    process.send_signal(2)
    assert process.wait(30) == 0


def test_logs_as_they_are_or_fit_for_a_terminal(guest: Room) -> None:
    guest.house.logs = b"\x1b[2J\x1b[31mred\x1b[0m\x1b]0;title\x07\x08\r\n"
    process = guest.process("logs", "web")
    assert process.communicate(timeout=30)[0] == guest.house.logs
    ours, theirs = pty.openpty()
    process = guest.process("logs", "web", stdout=theirs)
    os.close(theirs)
    assert process.wait(30) == 0
    assert os.read(ours, 4096).replace(b"\r", b"") == b"\x1b[31mred\x1b[0m\n"
    os.close(ours)


@pytest.mark.parametrize(
    "text",
    [b"\x1b[6n", b"\x1b[?1049h", b"\x1bc", b"\x1b(0", b"\x1b[>4;2m", b"\x1b]52;c;ZXZpbA==\x07",
     b"\x1bP+q544e\x1b\\", b"\x1b[", b"\x1b", b"\xc2\x9b31m"[:2], b"\x00\x07\x08\x7f", b"\x1b]0;x"],
)  # fmt: skip
def test_steering_is_left_out(text: bytes) -> None:
    assert _STEERING.sub(b"", b"a" + text) == b"a"


@pytest.mark.parametrize(
    "text", [b"plain\ttext\r\n", b"\x1b[1;31mred\x1b[0m", b"\x1b[m", b"\x1b[38:5:1m", "é→".encode()]
)
def test_text_and_colours_stay(text: bytes) -> None:
    assert _STEERING.sub(b"", text) == text


@pytest.mark.parametrize(
    ("data", "lines", "tail"),
    [
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\n\nc\n", 2, b"\nc\n"),
        (b"a\n", 5, b"a\n"),
        (b"", 5, b""),
        (b"a\nb\n", 0, b""),
    ],
)
def test_tails(data: bytes, lines: int, tail: bytes) -> None:
    assert tail_of(data, lines) == tail


def test_a_tail_in_pieces_loses_nothing_that_comes_later() -> None:
    old = b"".join(b"line %d\n" % number for number in range(2000))
    pieces = iter([old[:8000], old[8000:16000], old[16000:], b"new\n"])
    assert b"".join(last_lines(pieces, 2, 1 << 20)) == b"line 1998\nline 1999\nnew\n"


# --- screenshot ---


def test_screenshot(guest: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "p.png"
    assert guest("screenshot", "web", "-o", str(picture)).out == f"Saved {picture}\n"
    assert picture.read_bytes() == b"\x89PNG picture"
    process = guest.process("screenshot", "web", "-o", "-")
    assert process.communicate(timeout=30)[0] == b"\x89PNG picture"
    monkeypatch.chdir(tmp_path)
    assert guest("screenshot", "web").code == 0
    (made,) = tmp_path.glob("web-*.png")
    assert made.read_bytes() == b"\x89PNG picture"
    assert guest("screenshot", "web", "-o", "/nowhere/p.png").code == 4


# --- images ---


def _image(name: str, created_at: float) -> Image:
    return Image(
        id=new_id(), name=name, digest="d" * 64, size=300 << 20, virtual_size=2 << 30,
        os={"ID": "debian"}, created_at=created_at,
    )  # fmt: skip


def test_images(guest: Room) -> None:
    guest.house.images = [_image("debian/12", time.time() - 7200)]
    lines = guest("image", "ls").out.splitlines()
    assert lines[0].split() == ["NAME", "SIZE", "AGE", "USED", "BY", "ABOUT"]
    assert lines[1].split() == ["debian/12", "300M", "2h", "web"]
    assert lines[2].split() == ["micro", "-", "not", "built", "tiny"]
    assert [one["name"] for one in guest.json("image", "ls")] == ["debian/12"]
    assert guest.json("image", "info", "debian/12")["size"] == 300 << 20
    assert "2G" in guest("image", "info", "debian/12").out
    assert guest("image", "info", "micro").code == 3
    said = guest("image", "build", "debian/12", "--rebuild")
    assert said.out == "debian/12 is built (300M)\n"
    assert guest.bodies("POST", "/v1/images") == [{"name": "debian/12", "rebuild": True}]
    assert guest("image", "rm", "debian/12").code == 2
    assert guest("image", "rm", "-y", "debian/12") == (0, "Removed debian/12\n", "")
    assert guest.house.seen[-2][:2] == ("DELETE", "/v1/images/debian/12")


# --- jobs ---


def test_jobs(guest: Room) -> None:
    assert "no jobs" in guest("job", "ls").err
    guest("stop", "web")
    (job,) = guest.house.jobs.values()
    lines = guest("job", "ls", "--active", "--guest", "web", "-n", "5").out.splitlines()
    assert lines[1].split()[:4] == [job.id, "done", "guest.stop", "web"]
    assert guest.house.seen[-1][1] == "/v1/jobs?limit=5&active=true&guest=web"
    assert guest.json("job", "ls")[0]["id"] == job.id
    assert guest.json("job", "show", job.id[:25])["kind"] == "guest.stop"
    assert guest("job", "log", job.id).out == "log of guest.stop\n"
    assert "has ended already" in guest("job", "cancel", job.id).err
    assert guest("job", "show", "01X").code == 3
    guest.house.finish(job.id, NotReady("It sleeps.", hint="Wake it."))
    out = guest("job", "show", job.id).out
    assert "It sleeps." in out
    assert "Wake it." in out


def test_job_cancel(guest: Room) -> None:
    job = guest.house.submit("image.build", None)
    assert guest("job", "cancel", job.id).out == f"Cancelling {job.id} (image.build)\n"
    assert guest.house.jobs[job.id].state.value == "cancelled"


# --- daemon ---


def test_daemon_status(guest: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    data = guest.json("daemon", "status")
    assert (data["running"], data["pid"], data["mode"]) == (True, os.getpid(), "personal")
    out = guest("daemon", "status").out
    for text in ("personal", str(os.getpid()), str(guest.house.path), __version__, "daemon.log"):
        assert text in out
    assert "runs already" in guest("daemon", "start").out
    monkeypatch.setenv("GUESTHOUSE_SOCKET", "/nowhere/s")
    said = guest("daemon", "status")
    assert said.code == 6
    assert "guest daemon start" in said.err
    said = guest("daemon", "status", "--json")
    assert (said.code, said.out) == (6, '{"running": false}\n')
    assert guest("daemon", "stop").out == "No daemon runs\n"


def test_daemon_stop_waits_for_its_end(guest: Room) -> None:
    """The fake house says it is this test's process; a process of its own stands for it."""
    daemon = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    from guesthouse.cli import daemon as module

    assert not module._gone(daemon.pid)
    daemon.kill()
    deadline = time.monotonic() + 30
    while not module._gone(daemon.pid):  # a zombie until `wait` below
        assert time.monotonic() < deadline
    daemon.wait()
    assert module._gone(daemon.pid)


# --- completion ---


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_our_variable(guest: Room, shell: str) -> None:
    said = guest("completion", shell)
    assert said.code == 0
    assert "_GUEST_COMPLETE" in said.out
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=said.out.encode(), check=False)
        assert checked.returncode == 0


def _complete(guest: Room, monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    words = line.split(" ")
    monkeypatch.setenv("_GUEST_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    said = guest()
    monkeypatch.delenv("_GUEST_COMPLETE")
    assert (said.code, said.err) == (0, "")
    return [entry.partition(",")[2] for entry in said.out.split()]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("guest st", ["start", "stop"]),
        ("guest stop ", ["db", "web", "worker"]),
        ("guest stop w", ["web", "worker"]),
        ("guest stop web w", ["worker"]),
        ("guest shell d", ["db"]),
        ("guest cp w", ["w", "web:", "worker:"]),
        ("guest launch deb", ["debian/12"]),
        ("guest image bu", ["build"]),
        ("guest image rm m", ["micro"]),
        ("guest stop --fo", ["--force"]),
        ("guest launch --firmware u", ["uefi"]),
    ],
)
def test_completion_knows_what_there_is(
    guest: Room, monkeypatch: pytest.MonkeyPatch, line: str, found: list[str]
) -> None:
    guest.house.add("worker")
    guest.house.add("db")
    guest.house.images = [_image("debian/12", 0.0)]
    assert sorted(_complete(guest, monkeypatch, line)) == found


def test_completion_of_the_trash(guest: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("db", "mail"):
        guest.house.remove(guest.house.add(name), now=False)
    assert sorted(_complete(guest, monkeypatch, "guest undelete ")) == ["db", "mail"]
    assert _complete(guest, monkeypatch, "guest trash empty m") == ["mail"]


def test_completion_of_jobs(guest: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    job = guest.house.submit("image.build", None)
    assert _complete(guest, monkeypatch, "guest job show 0") == [job.id]


def test_completion_starts_no_daemon(guest: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUESTHOUSE_SOCKET", "/nowhere/s")
    assert _complete(guest, monkeypatch, "guest stop ") == []
