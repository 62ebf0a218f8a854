"""Commands that list and show guests."""

from __future__ import annotations

import json
import os
import pty
import termios
from typing import Any

import msgspec
import pytest

from guesthouse.cli.rows import sorted_guests
from guesthouse.errors import NotFound
from guesthouse.model.guest import BootPath, LaunchRecord
from guesthouse.model.reports import Readiness
from guesthouse.model.states import GuestState

from .cli_room import Room, read_all


def at_width(guest: Room, columns: int, *arguments: str, env: dict[str, str] | None = None) -> str:
    """What `guest` prints on a terminal that wide."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    process = guest.process(*arguments, stdout=theirs, env=env or dict(os.environ))
    os.close(theirs)
    seen = read_all(ours).replace("\r\n", "\n")
    os.close(ours)
    assert process.wait(30) == 0
    return seen


# --- ls and info ---


@pytest.mark.parametrize("options", [[], ["-q"], ["--quiet"], ["--json"]])
def test_short_and_long_way_of_ls_say_the_same(
    guest: Room, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.house.add("db", GuestState.PAUSED)
    short = guest("ls", *options)
    assert guest.house.seen == [("GET", "/v1/guests", None)]
    monkeypatch.setattr("guesthouse.cli.fast.list_guests", lambda _: False)
    long = guest("ls", *options)
    assert guest.house.seen[1:] == [("GET", "/v1", None), ("GET", "/v1/guests", None)]
    assert (short.code, short.err) == (long.code, long.err) == (0, "")
    if options == ["--json"]:
        assert json.loads(short.out) == json.loads(long.out)
        assert [one["name"] for one in json.loads(short.out)] == ["web", "db"]
    else:
        assert short.out == long.out


def test_ls_as_people_see_it(guest: Room) -> None:
    guest.house.add("db", GuestState.STOPPED, memory=1536 << 20, nics=())
    lines = guest("ls").out.splitlines()
    assert lines[0].split() == [
        "NAME",
        "STATE",
        "CPUS",
        "MEMORY",
        "IMAGE",
        "ADDRESS",
        "PORTS",
        "SINCE",
    ]
    assert lines[1].split() == ["db", "stopped", "2", "1.5G", "debian/12", "10.0.2.15", "1h"]
    assert lines[2].split()[1:3] == ["running", "2"]
    assert "8080->80" in lines[2]
    assert guest("ls", "-q").out == "db\nweb\n"


@pytest.fixture
def village(guest: Room) -> Room:
    """`web` and five more, of all kinds."""
    web = next(iter(guest.house.guests.values()))
    for name, state, image, memory, age in (
        ("web-old", GuestState.STOPPED, "debian/12", 1, 10),
        ("db", GuestState.RUNNING, "debian/13", 8, 20),
        ("tiny", GuestState.PAUSED, "micro", 1, 30),
        ("bad", GuestState.FAILED, "micro", 4, 5000),
        ("weave", GuestState.STOPPED, "debian/13", 2, 40),
    ):
        made = guest.house.add(name, state, image=image, memory=memory << 30)
        status = msgspec.structs.replace(made.status, since=web.status.since + 4000 - age)
        guest.house.guests[made.id] = msgspec.structs.replace(made, status=status)
    return guest


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], "bad db tiny weave web web-old"),
        (["--state", "running"], "db web"),
        (["--state", "paused", "--state", "failed"], "bad tiny"),
        (["--image", "debian/13"], "db weave"),
        (["--image", "debian/*"], "db weave web web-old"),
        (["--image", "micro", "--image", "debian/12"], "bad tiny web web-old"),
        (["web*"], "web web-old"),
        (["w?b", "db"], "db web"),
        (["[bd]*"], "bad db"),
        (["we*", "--state", "stopped", "--image", "debian/13"], "weave"),
        (["nothing*"], ""),
        (["--sort", "memory"], "db bad weave web tiny web-old"),
        (["--sort", "since"], "web-old db tiny weave web bad"),
        (["--sort", "state"], "db web tiny bad weave web-old"),
        (["--sort", "name", "--reverse"], "web-old web weave tiny db bad"),
        (["--sort", "memory", "-r"], "web-old tiny web weave bad db"),
    ],
)
def test_ls_filters_and_sorts(village: Room, arguments: list[str], names: str) -> None:
    assert village("ls", "-q", *arguments).out.split() == names.split()
    listed = village.json("ls", *arguments)
    assert sorted(one["name"] for one in listed) == sorted(names.split())
    if "--sort" in arguments:
        assert [one["name"] for one in listed] == names.split()
    table = village("ls", *arguments)
    assert [line.split()[0] for line in table.out.splitlines()[1:]] == names.split()
    assert ("no guest is like that" in table.err) == (not names)


def test_ls_of_one_that_is_written_out(village: Room) -> None:
    (web,) = village.json("ls", "web")
    assert village("ls", "-q", web["id"]).out == "web\n"
    said = village("ls", "web", "wob")
    assert (said.code, said.out) == (3, "")
    assert "There is no guest 'wob'." in said.err
    assert village("ls", "--state", "dreaming").code == 2
    assert village("ls", "--trash", "web").code == 2


def test_ls_by_state_puts_unknown_states_last() -> None:
    guests = [
        {"name": name, "status": {"state": state, "since": 0}, "spec": {}}
        for name, state in (("a", "dreaming"), ("b", "stopped"), ("c", "running"))
    ]
    assert [one["name"] for one in sorted_guests(guests, "state")] == ["c", "b", "a"]


@pytest.mark.parametrize("columns", [20, 50, 80])
def test_ls_fits_the_terminal(village: Room, columns: int) -> None:
    lines = at_width(village, columns, "ls").splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[0].startswith("NAME")
    assert "STATE" in lines[0]
    assert ("PORTS" in lines[0]) == (columns >= 80)


def test_ls_of_an_empty_house(guest: Room) -> None:
    guest.house.guests.clear()
    said = guest("ls")
    assert (said.code, said.out) == (0, "")
    assert "guest launch" in said.err
    assert guest.json("ls") == []


def test_ls_without_a_daemon_falls_through(guest: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUESTHOUSE_SOCKET", "/nowhere/at/all")
    said = guest("ls")
    assert said.code == 6
    assert "GUESTHOUSE_SOCKET" in said.err


def test_info(guest: Room) -> None:
    data = guest.json("info", "web")
    assert (data["status"]["state"], data["status"]["pid"]) == ("running", 4242)
    guest.house.pending = ("memory",)
    out = guest("info", "web").out
    for text in ("Name:", "web", "running for 1h", "127.0.0.1:8080 -> 80/tcp",
                 "memory (guest restart web)", "10.0.2.15", "guest shell web", "1m of CPU time",
                 "Memory:    2G, 256M of the host's", "Disk root: 20G, 412M of the host's",
                 "Ready:     yes", "clients on 127.0.0.1 and on IPv6 are 10.0.2.2"):  # fmt: skip
        assert text in out
    assert guest("info", "web", "--json", "--argv").code == 2


def test_info_tells_of_a_clock_that_is_wrong(guest: Room) -> None:
    assert "Clock" not in guest("info", "web").out
    guest.house.wrong_clock = "not set after it stood still: hwclock failed"
    out = guest("info", "web").out
    assert "Clock:     not set after it stood still: hwclock failed" in out


def test_info_has_no_empty_labels_at_any_width(guest: Room) -> None:
    guest.house.add("off", GuestState.STOPPED, nics=(), disks=())
    for name in ("web", "off"):
        for columns in (30, 50, 80):
            out = at_width(guest, columns, "info", name)
            for line in out.splitlines():
                assert len(line) <= max(columns, 40), line
                assert not line.endswith(":"), line
            assert out.count("\n\n\n") == 0
            assert not out.endswith("\n\n")


def test_info_paints_the_state_alone(guest: Room) -> None:
    env = {**os.environ, "TERM": "xterm", "NO_COLOR": ""}
    out = at_width(guest, 80, "info", "web", env=env)
    assert out.count("\x1b[") == 2
    assert "\x1b[32mrunning\x1b[0m for 1h" in out
    assert "\x1b[" not in at_width(guest, 80, "info", "web", env={**env, "NO_COLOR": "1"})


@pytest.mark.parametrize(
    ("state", "status", "says"),
    [
        (
            GuestState.STOPPED,
            {"reason": "guest-shutdown", "message": "The guest switched itself off."},
            ["State:     stopped for 1h\n", "The guest switched itself off.", "guest start web"],
        ),
        (
            GuestState.FAILED,
            {"reason": "crash", "message": "The engine ended with exit code 1."},
            ["failed (crash) for 1h", "exit code 1.", "guest logs --source engine web"],
        ),
        (GuestState.PAUSED, {"reason": "io-error"}, ["paused (io-error)", "guest resume web"]),
        (
            GuestState.RUNNING,
            {"reason": "user", "message": "started", "ready": ("process", "kernel")},
            ["State:     running for 1h\n", "Ready:     yes", "guest console web"],
        ),
    ],
)
def test_info_says_why_and_what_next(
    guest: Room, state: GuestState, status: dict[str, Any], says: list[str]
) -> None:
    (web,) = guest.house.guests.values()
    changed = msgspec.structs.replace(web.status, state=state, **status)
    guest.house.guests[web.id] = msgspec.structs.replace(web, status=changed)
    out = guest("info", "web").out
    for text in says:
        assert text in out
    assert "started" not in out


def test_info_of_a_guest_that_is_not_ready_yet(guest: Room) -> None:
    readiness = Readiness(passed=("process",), waiting="kernel", hint="See: guest console web")
    view = guest.house.view
    guest.house.view = lambda one: msgspec.structs.replace(view(one), readiness=readiness)  # type: ignore[method-assign]  # a double of one method
    out = guest("info", "web").out
    assert "Ready:     not yet: waiting for kernel (process passed)" in out
    assert "           See: guest console web" in out


def test_info_of_an_older_daemon_that_measures_nothing(guest: Room) -> None:
    def unknown(_: object) -> None:
        raise NotFound("There is nothing at that path.")

    guest.house.usage = unknown  # type: ignore[method-assign]  # a double of one method
    said = guest("info", "web")
    assert said.code == 0
    assert "Disk root: 20G\n" in said.out


def test_info_argv(guest: Room) -> None:
    said = guest("info", "web", "--argv")
    assert said.code == 5
    assert "never been started" in said.err
    (web,) = guest.house.guests.values()
    record = LaunchRecord(
        incarnation=1, argv=("qemu", "-name", "a b"), machine="q35", cpu="max", accelerator="tcg",
        engine="QEMU 7.2", boot=BootPath.DISK, spec=web.spec, pid=1, pid_start=1, boot_id="b",
        launched_at=0.0,
    )  # fmt: skip
    guest.house.guests[web.id] = msgspec.structs.replace(web, launch=record)
    assert guest("info", "web", "--argv").out == "qemu -name 'a b'\n"
    assert "QEMU 7.2" in guest("info", "web").out
