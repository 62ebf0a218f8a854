"""`guest top`: shares of the CPU, its table, and the terminal while it runs."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import termios

import msgspec
import pytest

from guesthouse.cli.top import compare, table
from guesthouse.errors import Unavailable
from guesthouse.model.states import GuestState
from guesthouse.model.usage import GuestUsage, ProcessUsage

from .cli_room import Room


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guesthouse.cli.top.ONCE", 0.01)


def usage(name: str, *, cpu: float, at: float, pid: int = 1, pss: int | None = 100) -> GuestUsage:
    process = ProcessUsage(
        pid=pid, cpu_seconds=cpu, resident=200 << 20,
        proportional=None if pss is None else pss << 20, measured_at=at,
    )  # fmt: skip
    return GuestUsage(
        id=f"id-{name}",
        name=name,
        state=GuestState.RUNNING,
        cpus=2,
        memory=1 << 30,
        process=process,
    )


def test_shares_come_from_two_looks() -> None:
    before = [usage("a", cpu=10, at=50), usage("b", cpu=1, at=50), usage("c", cpu=7, at=50, pid=7)]
    after = [
        usage("a", cpu=10.5, at=52),
        usage("b", cpu=5, at=52),
        usage("c", cpu=0.1, at=52, pid=8),  # restarted in between
        usage("new", cpu=3, at=52),
    ]
    found = {line.usage.name: line.cpu for line in compare(before, after)}
    assert found == {"b": 200.0, "a": 25.0, "c": None, "new": None}
    assert [line.usage.name for line in compare(before, after)] == ["b", "a", "c", "new"]
    assert {line.cpu for line in compare(after, after)} == {None}  # no time has passed


def test_what_is_taken_is_the_fair_share_where_it_is_known() -> None:
    found = compare([], [usage("a", cpu=1, at=1), usage("b", cpu=1, at=1, pss=None)], "memory")
    assert [(line.usage.name, line.taken >> 20) for line in found] == [("b", 200), ("a", 100)]


def test_a_guest_that_ended_meanwhile_is_left_out() -> None:
    ended = msgspec.structs.replace(usage("a", cpu=1, at=1), process=None)
    assert compare([], [ended, usage("b", cpu=1, at=1)])[0].usage.name == "b"


@pytest.mark.parametrize("width", range(12, 80, 4))
def test_the_table_fits(width: int) -> None:
    lines = compare([usage("a", cpu=1, at=1)], [usage("a", cpu=2, at=2)])
    for line in table(lines, width=width).splitlines():
        assert len(line) <= width
    assert "100.0" in table(lines, width=width)


def test_once(guest: Room) -> None:
    guest.house.add("db")
    guest.house.add("off", GuestState.STOPPED)
    guest.house.busy = {"web": 0.5, "db": 1.5}
    lines = guest("top", "--once").out.splitlines()
    assert lines[0].split() == ["NAME", "CPU%", "TAKEN", "RSS", "MEMORY", "CPU", "TIME", "PID"]
    assert [line.split()[:5] for line in lines[1:]] == [
        ["db", "150.0", "256M", "300M", "2G"],
        ["web", "50.0", "256M", "300M", "2G"],
    ]
    assert guest("top", "--once", "--sort", "name").out.splitlines()[1].startswith("db")
    (web,) = guest.json("top", "--once", "web")
    assert (web["name"], web["cpu_percent"], web["proportional"]) == ("web", 50.0, 256 << 20)
    assert guest("top").out.splitlines()[0] == lines[0]  # no terminal: once
    guest.house.proportional = None
    assert guest.json("top")[0]["proportional"] is None


def test_nobody_to_show(guest: Room) -> None:
    assert guest("top", "nobody").code == 3
    guest.house.guests.clear()
    assert guest("top", "--once").err == "guest: no guest runs\n"
    assert guest.json("top", "--once") == []
    assert guest("top", "--interval", "0").code == 2


def _open(guest: Room, *arguments: str) -> tuple[subprocess.Popen[bytes], int, int]:
    """`guest top` at a terminal of its own: the process, our end, its end."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 60))
    process = guest.process("top", *arguments, stdin=theirs, stdout=theirs)
    return process, ours, theirs


def _until(fd: int, *wanted: bytes) -> bytes:
    seen = b""
    while not all(text in seen for text in wanted):
        seen += os.read(fd, 4096)
    return seen


@pytest.mark.parametrize("leave", [b"q", b"Q", b"\x1b", b"\x03"])
def test_it_goes_on_until_a_key_and_leaves_the_terminal_as_it_was(
    guest: Room, leave: bytes
) -> None:
    guest.house.busy = {"web": 0.5}
    process, ours, theirs = _open(guest, "--interval", "0.2")
    before = termios.tcgetattr(theirs)
    _until(ours, b"\x1b[?1049h", b"web", b"50.0", b"q leaves")
    if leave == b"\x03":
        process.send_signal(signal.SIGINT)
    else:
        os.write(ours, leave)
    _until(ours, b"\x1b[?1049l")
    assert process.wait(30) == 0
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_other_keys_change_nothing_and_sigterm_tidies_up(guest: Room) -> None:
    process, ours, theirs = _open(guest, "--interval", "0.2")
    before = termios.tcgetattr(theirs)
    _until(ours, b"q leaves")
    os.write(ours, b"x\x1b[A")
    _until(ours, b"q leaves", b"web")
    process.terminate()
    _until(ours, b"\x1b[?1049l")
    assert process.wait(30) == 143
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_a_daemon_that_fails_for_a_while_is_waited_for(guest: Room) -> None:
    measure = guest.house.usage

    def failing(_: object) -> None:
        raise Unavailable("It is busy with itself.")

    guest.house.usage = failing  # type: ignore[assignment]  # a double of one method
    process, ours, theirs = _open(guest, "--interval", "0.2")
    _until(ours, b"It is busy with itself.")
    guest.house.usage = measure  # type: ignore[method-assign]  # a double of one method
    _until(ours, b"NAME", b"web")
    os.write(ours, b"q")
    _until(ours, b"\x1b[?1049l")
    assert process.wait(30) == 0
    os.close(ours)
    os.close(theirs)
