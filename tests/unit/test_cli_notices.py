"""What a house wants every user to know is said once, on standard error, also by `guest ls`."""

from __future__ import annotations

from typing import Any

import pytest

from .cli_room import Room

BROKEN = {"guests/1": "It is newer.", "images/2": "It is newer."}


@pytest.mark.parametrize(
    ("notices", "line"),
    [
        (
            {"quarantined": BROKEN},
            "2 documents are set aside, which this version cannot read; not all is shown. "
            "See why: guest daemon status",
        ),
        (
            {"quarantined": {"guests/1": "no"}, "read_only": "It needs version 2."},
            "1 document is set aside, which this version cannot read; not all is shown, "
            "and the house refuses every change. See why: guest daemon status",
        ),
        (
            {"read_only": "The database needs version 2."},
            "the house refuses every change. The database needs version 2.",
        ),
        (
            {"code_changed": True},
            "Guesthouse was upgraded, and the daemon still runs what it was before. "
            "Restart it (guests run on): guest daemon restart",
        ),
    ],
)
def test_a_line_beside_the_list(guest: Room, notices: dict[str, Any], line: str) -> None:
    plain = guest("ls")
    assert plain.err == ""
    guest.house.notices = notices
    for options in ([], ["--json"], ["-q"], ["--state", "running"]):
        said = guest("ls", *options)
        assert (said.code, said.err) == (0, f"guest: warning: {line}\n"), options
    assert guest("ls").out == plain.out
    assert line in guest("doctor").err


def test_status_says_that_it_was_upgraded(guest: Room) -> None:
    assert "Upgraded" not in guest("daemon", "status").out
    guest.house.notices = {"code_changed": True}
    said = guest("daemon", "status")
    assert "Upgraded" in said.out
    assert "guest daemon restart" in said.out
