"""Tables at every width, and text that must not steer a terminal."""

from __future__ import annotations

import os
import pty

import pytest

from guesthouse.cli.rows import guest_table, port_texts, span, state_text
from guesthouse.cli.table import colourful, columns_of, cut, plain, render, terminal_width

HEADERS = ["NAME", "STATE", "ABOUT"]
ROWS = [["web", "running", "x" * 20], ["long-name", "failed (panic)", ""]]


def test_columns_line_up_and_nothing_trails() -> None:
    lines = render(HEADERS, ROWS).splitlines()
    assert lines == [
        "NAME       STATE           ABOUT",
        "web        running         " + "x" * 20,
        "long-name  failed (panic)",
    ]


@pytest.mark.parametrize("width", range(1, 60))
def test_it_fits_every_width(width: int) -> None:
    for line in render(HEADERS, ROWS, width=width, drop=("ABOUT",)).splitlines():
        assert columns_of(line) <= width


def test_the_last_column_is_cut_while_that_makes_sense() -> None:
    assert render(HEADERS, ROWS, width=43, drop=("ABOUT",)).splitlines()[1] == (
        "web        running         " + "x" * 15 + "…"
    )
    assert "ABOUT" not in render(HEADERS, ROWS, width=42, drop=("ABOUT",))


def test_columns_go_in_order() -> None:
    assert "ABOUT" in render(HEADERS, ROWS, width=60, drop=("ABOUT", "STATE")).splitlines()[0]
    assert render(HEADERS, ROWS, width=30, drop=("ABOUT", "STATE")).splitlines()[0].split() == [
        "NAME",
        "STATE",
    ]
    assert render(HEADERS, ROWS, width=15, drop=("ABOUT", "STATE")).splitlines()[0] == "NAME"


def test_colour_of_states() -> None:
    painted = render(HEADERS, ROWS, colour=True)
    assert "\x1b[32mrunning\x1b[0m" in painted
    assert "\x1b[31mfailed (panic)\x1b[0m" in painted
    assert render(HEADERS, [], colour=False) == "NAME  STATE  ABOUT\n"


def test_wide_and_combining_letters_count_right() -> None:
    assert columns_of("日本") == 4
    assert columns_of("e\N{COMBINING ACUTE ACCENT}") == 1
    assert cut("日本語", 5) == "日本…"
    assert cut("abc", 0) == ""
    assert render(["A", "B"], [["日本", "x"]]).splitlines()[1] == "日本  x"


def test_hostile_cells_are_tamed() -> None:
    assert plain("\x1b[31mé\n\x9b") == "�[31mé��"
    assert "\x1b" not in render(["A"], [["\x1b]0;x\x07"]])


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert colourful(theirs)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colourful(theirs)
    monkeypatch.setenv("NO_COLOR", "")  # no-color.org: set and not empty
    assert colourful(theirs)
    monkeypatch.setenv("TERM", "dumb")
    assert not colourful(theirs)
    reading, writing = os.pipe()
    assert not colourful(writing)
    assert terminal_width(writing) is None
    assert terminal_width(theirs) == 80  # a new terminal has no size
    for fd in (ours, theirs, reading, writing):
        os.close(fd)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m"), (3599, "59m"), (86399, "23h"), (1e6, "11d")],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("status", "waiting", "text"),
    [
        ({"state": "running", "reason": "user"}, None, "running"),
        ({"state": "running"}, "ssh", "running (booting)"),
        ({"state": "paused", "reason": "io-error"}, None, "paused (io-error)"),
        ({"state": "stopped", "reason": "guest-shutdown"}, None, "stopped"),
        ({"state": "stopped", "reason": "killed"}, None, "stopped (killed)"),
    ],
)
def test_states(status: dict[str, str], waiting: str | None, text: str) -> None:
    assert state_text({"status": status, "readiness": {"waiting": waiting}}) == text


def test_ports_are_short() -> None:
    ports = [
        {"host_port": 80, "guest_port": 8080},
        {"host_ip": "0.0.0.0", "host_port": 53, "guest_port": 53, "protocol": "udp"},
        {"host_ip": "::1", "host_port": 1, "guest_port": 2},
    ]
    found = port_texts({"spec": {"nics": [{"ports": ports}]}})
    assert found == ["80->8080", "0.0.0.0:53->53/udp", "[::1]:1->2"]


def test_a_guest_of_a_newer_daemon_is_listed_all_the_same() -> None:
    guest = {"name": "x", "status": {"state": "dreaming", "since": 0}, "spec": {}, "new": 1}
    assert guest_table([guest]).splitlines()[1].split()[:2] == ["x", "dreaming"]
