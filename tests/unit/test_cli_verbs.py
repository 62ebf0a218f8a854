"""Commands that make, change and remove guests, one or several."""

from __future__ import annotations

import os
import pty
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from guesthouse.cli import following
from guesthouse.cli.change import parse_change
from guesthouse.cli.ports import find_port
from guesthouse.errors import GuesthouseError, InvalidInput, NotFound, UnknownImage
from guesthouse.model.device import Protocol, Publish

from .cli_room import Room, read_all

# --- launch ---


def test_launch_sends_what_was_asked(guest: Room) -> None:
    said = guest(
        "launch", "micro", "db", "--cpus", "2", "--memory", "2G", "--disk", "20G", "-p", "8081:80",
        "-p", "0.0.0.0:5353:53/udp", "--firmware", "uefi", "--accelerator", "tcg", "--no-display",
        "--user", "jo", "--description", "mine", "--timeout", "9",
    )  # fmt: skip
    assert said.code == 0
    assert said.out.splitlines()[0] == "Launched db (debian/12)"
    (body,) = guest.bodies("POST", "/v1/guests")
    assert body == {
        "image": "micro",
        "name": "db",
        "cpus": 2,
        "memory": 2 << 30,
        "disk": 20 << 30,
        "publish": [
            {"host_ip": "", "host_port": 8081, "guest_port": 80, "protocol": "tcp"},
            {"host_ip": "0.0.0.0", "host_port": 5353, "guest_port": 53, "protocol": "udp"},
        ],
        "firmware": "uefi",
        "accelerator": "tcg",
        "display": False,
        "user": "jo",
        "description": "mine",
        "start": True,
        "wait_ready": True,
        "ready_timeout": 9.0,
        "cpu": "",
        "on_panic": "stop",
        "ssh_keys": [],
        "user_data": "",
        "network_config": "",
        "shares": [],
        "networks": [],
        "nics": [],
        "groups": [],
    }


def test_launch_with_shared_folders(
    guest: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    guest("launch", "micro", "x", "--share", "site:/srv/site", "--share", "/a:/b:ro")
    (body,) = guest.bodies("POST", "/v1/guests")
    shares = [(one["source"], one["target"], one["read_only"]) for one in body["shares"]]
    assert shares == [(f"{tmp_path}/site", "/srv/site", False), ("/a", "/b", True)]
    assert guest("launch", "micro", "y", "--share", "/a:/etc").code == 2


def test_launch_by_default(guest: Room) -> None:
    assert guest.json("launch")["name"] == "merry-pilgrim"
    (body,) = guest.bodies("POST", "/v1/guests")
    assert (body["image"], body["name"], body["memory"]) == ("debian/12", None, None)
    assert "Created" in guest("launch", "micro", "x", "--no-start").out
    assert guest.bodies("POST", "/v1/guests")[1]["start"] is False
    guest("launch", "micro", "y", "--no-wait")
    last = guest.bodies("POST", "/v1/guests")[2]
    assert (last["start"], last["wait_ready"]) == (True, False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["micro", "Bad_Name"], "lower-case"),
        (["Micro!"], "image"),
        (["micro", "x", "--memory", "lots"], "512M"),
        (["micro", "x", "-p", "eighty"], "8080:80"),
        (["micro", "x", "--firmware", "coreboot"], "bios"),
        (["micro", "x", "--timeout", "-1"], "negative"),
        (["micro", "x", "--memory", "10M"], "at least 64M."),
        (["micro", "x", "--memory", "2"], "Write its unit, such as 512M or 2G."),
        (["micro", "x", "--cpus", "0"], "Use 1 to 512."),
        (["micro", "x", "-p", "80"], "which port of the host"),
    ],
)
def test_launch_refuses_before_it_asks_anybody(
    guest: Room, arguments: list[str], says: str
) -> None:
    said = guest("launch", *arguments)
    assert said.code == 2
    assert says in said.err
    assert guest.house.seen == []


def test_launch_with_one_word_that_is_no_image(guest: Room) -> None:
    guest.house.fail["guest.launch"] = UnknownImage("There is no image 'web' here.", hint="Build.")
    said = guest("launch", "web")
    assert said.code == 3
    assert "hint: Build. The name comes after it: guest launch debian/12 web" in said.err
    assert "The name comes after it" not in guest("launch", "suse", "web").err


# --- verbs on several ---


def test_verbs_send_their_requests(guest: Room) -> None:
    calls: dict[tuple[str, ...], tuple[str, object, str]] = {
        ("start", "--paused", "web"): (
            "start",
            {"paused": True, "wait_ready": False, "ready_timeout": 300.0},
            "Started, paused: web\n",
        ),
        ("start", "--wait", "--timeout", "5", "web"): (
            "start",
            {"paused": False, "wait_ready": True, "ready_timeout": 5.0},
            "Started web\n",
        ),
        ("stop", "--timeout", "5", "web"): (
            "stop",
            {"force": False, "timeout": 5.0},
            "Stopped web\n",
        ),
        ("stop", "-f", "web"): ("stop", {"force": True, "timeout": 60.0}, "Stopped web\n"),
        ("restart", "web"): ("restart", {"force": False, "timeout": 60.0}, "Restarted web\n"),
        ("pause", "web"): ("pause", {}, "Paused web\n"),
        ("resume", "web"): ("resume", {}, "Resumed web\n"),
        ("reset", "web"): ("reset", {}, "Reset web\n"),
    }
    for arguments, (verb, body, says) in calls.items():
        assert guest(*arguments) == (0, says, "")
        assert guest.bodies("POST", f"/v1/guests/web/{verb}")[-1] == body
    assert guest("start", "--paused", "--wait", "web").code == 2


def test_several_at_once_and_one_fails(guest: Room) -> None:
    guest.house.add("db")
    said = guest("stop", "web", "nobody", "db", "web")
    assert said.code == 3
    assert "nobody: There is no guest" in said.err
    assert len(guest.bodies("POST", "/v1/guests/web/stop")) == 1
    assert len(guest.bodies("POST", "/v1/guests/db/stop")) == 1
    assert guest("stop", "web", "db").out == "Stopped web\nStopped db\n"


def test_progress_in_lines_where_there_is_no_terminal(
    guest: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "BAR_AFTER", 0.01)
    guest.house.hold = True

    def play() -> None:
        job = guest.house.only_job()
        guest.house.tick(job.id, 0.75, "nearly \x1b[2Jthere")
        threading.Timer(0.5, lambda: guest.house.finish(job.id)).start()

    threading.Thread(target=play, daemon=True).start()
    said = guest("start", "web")
    assert (said.code, said.out) == (0, "Started web\n")
    assert "guest: web: " in said.err
    assert "\x1b" not in said.err


def test_a_job_that_tells_much_is_shown_too(guest: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its news never leave a pause."""
    monkeypatch.setattr(following, "BAR_AFTER", 0.4)
    guest.house.hold = True

    def play() -> None:
        job = guest.house.only_job()
        for percent in range(60):
            guest.house.tick(job.id, percent / 100, "converting")
            time.sleep(0.02)
        guest.house.finish(job.id)

    threading.Thread(target=play, daemon=True).start()
    assert "guest: web: converting (" in guest("start", "web").err


def test_bars_on_a_terminal(guest: Room) -> None:
    guest.house.hold = True
    ours, theirs = pty.openpty()
    process = guest.process("start", "web", stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    job = guest.house.only_job()
    guest.house.tick(job.id, 0.42, "warming up")
    timer = threading.Timer(1.5, lambda: guest.house.finish(job.id))
    timer.start()
    seen = read_all(ours)
    assert process.wait(30) == 0
    assert "42%" in seen
    assert "warming up" in seen
    assert seen.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in seen  # the cursor is back


def test_ctrl_c_cancels_and_says_so(guest: Room) -> None:
    guest.house.hold = True
    process = guest.process("stop", "web")
    job = guest.house.only_job()
    _wait_for_events(guest)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 10
    assert out == b""
    assert b"cancelling guest.stop" in err
    assert b"The job was cancelled." in err
    assert f"was undone; see: guest job show {job.id}".encode() in err
    assert any(path.endswith("/cancel") for _, path, _ in guest.house.seen)


def test_ctrl_c_twice_leaves_what_cannot_be_cancelled(guest: Room) -> None:
    guest.house.hold = True
    submit = guest.house.submit
    guest.house.submit = lambda kind, target: submit(kind, target, may_cancel=False)  # type: ignore[method-assign]  # a double of one method
    process = guest.process("stop", "web")
    job = guest.house.only_job()
    _wait_for_events(guest)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    said = iter(process.stderr.readline, b"")  # on a slow host its progress comes first
    first = next(line for line in said if b"cannot be cancelled" in line)
    assert job.id.encode() in first
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"guest job show {job.id}".encode() in err
    assert not guest.house.jobs[job.id].ended


def _wait_for_events(guest: Room) -> None:
    import time

    deadline = time.monotonic() + 30
    while not any(path.endswith("/events") for _, path, _ in guest.house.seen):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)  # the main thread reaches its wait


# --- rm ---


def test_rm_needs_an_answer(guest: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    said = guest("rm", "web")
    assert said.code == 2
    assert "guest rm --yes web" in said.err
    assert guest.house.guests
    assert guest("rm", "nobody").code == 3
    assert guest("rm", "--yes", "--force", "web") == (0, "Removed web\n", "")
    assert guest.house.seen[-2][:2] == ("DELETE", "/v1/guests/web?force=true")
    assert not guest.house.guests


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 1), (b"\n", 1), (b"\x04", 1)])
def test_rm_asks_at_a_terminal(guest: Room, answer: bytes, code: int) -> None:
    ours, theirs = pty.openpty()
    process = guest.process("rm", "web", stdin=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while b"[y/N]" not in seen:
        seen += os.read(ours, 4096)
    assert b"Move web (running) to the trash?" in seen
    os.write(ours, answer)
    assert process.wait(30) == code
    assert bool(guest.house.guests) == bool(code)
    os.close(ours)


# --- rename, set ---


def test_rename(guest: Room) -> None:
    assert guest("rename", "web", "Bad Name").code == 2
    assert guest("rename", "web", "www") == (0, "Renamed web to www\n", "")
    assert guest.bodies("POST", "/v1/guests/web/rename") == [{"name": "www"}]


def test_set_says_what_is_pending(guest: Room) -> None:
    guest.house.pending = ("memory", "on_panic")
    said = guest("set", "web", "memory=4G", "disk=30G", "on-panic=pause")
    assert said.out.splitlines() == [
        "web: memory=4G (pending: takes effect with 'guest restart web')",
        "web: disk=30G (applied)",
        "web: on-panic=pause (pending: takes effect with 'guest restart web')",
    ]
    assert guest.bodies("PATCH", "/v1/guests/web") == [
        {"memory": 4 << 30, "disk": 30 << 30, "on_panic": "pause"}
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("cpus=4", ("cpus", 4)),
        ("memory=1.5G", ("memory", 1536 << 20)),
        ("display=off", ("display", False)),
        ("display=Yes", ("display", True)),
        ("description=a=b", ("description", "a=b")),
        ("cpu=", ("cpu", "")),
        ("firmware=uefi", ("firmware", "uefi")),
    ],
)
def test_changes(text: str, value: object) -> None:
    assert parse_change(text) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cpus=zero", "a number"),
        ("cpus=0", "Use 1 to 512."),
        ("memory=10M", "at least 64M."),
        ("memory=2", "such as 512M or 2G"),
        ("memory=big", "size"),
        ("memroy=4G", "memory=…"),
        ("memory", "KEY=VALUE"),
        ("firmware=coreboot", "bios or uefi"),
        ("display=maybe", "on or off"),
        ("accelerator=fpga", "kvm"),
    ],
)
def test_changes_that_cannot_be(text: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_change(text)
    assert says in f"{caught.value.message} {caught.value.hint}"


# --- ports ---


def test_publish_and_unpublish(guest: Room) -> None:
    said = guest("publish", "web", "0:22")
    assert said.out == "Published 127.0.0.1:40123:22/tcp of web\n"
    assert guest.bodies("POST", "/v1/guests/web/ports")[0]["host_port"] == 0
    assert guest("unpublish", "web", "8080").out == "Closed 127.0.0.1:8080:80/tcp of web\n"
    assert guest.house.seen[-2][:2] == ("DELETE", "/v1/guests/web/ports/tcp/127.0.0.1/8080")
    said = guest("unpublish", "web", "9999")
    assert said.code == 3
    assert "127.0.0.1:8080:80/tcp" in said.err


PORTS = [
    Publish(host_port=80, guest_port=8080),
    Publish(host_ip="0.0.0.0", host_port=53, guest_port=53, protocol=Protocol.UDP),
    Publish(host_ip="0.0.0.0", host_port=53, guest_port=53),
    Publish(host_ip="::1", host_port=90, guest_port=9090),
]


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("80", 0),
        ("80:8080", 0),
        ("127.0.0.1:80", 0),
        ("127.0.0.1:80:8080/tcp", 0),
        ("53/udp", 1),
        ("0.0.0.0:53/tcp", 2),
        ("[::1]:90", 3),
        ("90", 3),
    ],
)
def test_ports_are_found(text: str, at: int) -> None:
    assert find_port(text, PORTS, "web") == PORTS[at]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("53", NotFound),
        ("81", NotFound),
        ("0.0.0.0:80", NotFound),
        ("80/udp", NotFound),
        ("eighty", InvalidInput),
        ("", InvalidInput),
        ("1:2:3", InvalidInput),
    ],
)
def test_ports_that_are_not(text: str, kind: type[GuesthouseError]) -> None:
    with pytest.raises(kind):
        find_port(text, PORTS, "web")


def test_a_job_survives_its_daemon(guest: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection breaks twice while a job is followed; the command goes on and succeeds."""
    guest.house.hold, guest.house.cut_events = True, 2
    opened: list[None] = []
    real: Callable[..., object] = following.reconnect

    def reconnect() -> object:
        opened.append(None)
        guest.house.finish(guest.house.only_job().id)
        return real()

    monkeypatch.setattr(following, "reconnect", reconnect)
    assert guest("stop", "web")[:2] == (0, "Stopped web\n")
    assert opened
