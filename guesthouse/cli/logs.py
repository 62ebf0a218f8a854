"""`guest logs`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, guest_argument
from guesthouse.cli.session import open_house
from guesthouse.model.reports import LogSource

BYTES_PER_LINE = 400
"""How much of a log is asked for per wanted line; lines of a console are shorter."""
LEAST = 64 << 10
MOST = 16 << 20

# What a terminal obeys beyond colours: cursor movements, titles, mode switches, answers to queries.
_STEERING = re.compile(
    rb"\x1b\[(?![0-9;:]*m)[0-?]*[ -/]*[@-~]?"  # CSI sequences but SGR (colours), also unfinished
    rb"|\x1b[\]P_X^][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC, DCS, APC, SOS, PM
    rb"|\x1b(?!\[)[ -/]*[0-~]?"  # other escapes
    rb"|\xc2[\x80-\x9f]"  # the C1 controls in UTF-8, which some terminals obey
    rb"|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]"
)


@command(
    "logs",
    examples=[
        ("guest logs web", "What the guest wrote to its serial console"),
        ("guest logs -n 20 -f web", "The last lines, and all that follow; Ctrl-C leaves"),
        ("guest logs --source engine web", "QEMU's own words, when a guest does not start"),
        ("guest logs --source house web", "What the house did with it"),
    ],
)
@guest_argument()
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes.")
@click.option(
    "--source",
    type=click.Choice([one.value for one in LogSource]),
    default="serial",
    show_default=True,
    help="Whose log.",
)
@click.option("--lines", "-n", type=click.IntRange(0), metavar="LINES", help="Only the last LINES.")
def logs(name: str, follow: bool, source: str, lines: int | None) -> None:
    """Show what a guest, its engine or the house logged.

    On a terminal, whatever in the log would steer it is left out, but colours; elsewhere the log
    comes as it is.
    """
    tail = MOST if lines is None else min(max(lines * BYTES_PER_LINE, LEAST), MOST)
    clean = os.isatty(1)
    house = open_house()
    with house.logs(name, LogSource(source), tail=tail, follow=follow) as stream:
        pieces = iter(stream) if lines is None else last_lines(iter(stream), lines, tail)
        try:
            for piece in pieces:
                _write(_STEERING.sub(b"", piece) if clean else piece)
        except KeyboardInterrupt:
            if not follow:
                raise
            return
    if follow:
        output.note("the daemon stopped, and with it this; run it again to follow on")


def last_lines(pieces: Iterator[bytes], lines: int, tail: int) -> Iterator[bytes]:
    """The last `lines` of what was there already, then the rest as it comes.

    The daemon sends at most `tail` bytes of what was there, at once and without a mark where they
    end; a piece that is not full is taken as their end. At worst a few lines too many or too few
    are shown, and none that comes later is lost.
    """
    held = b""
    for piece in pieces:
        held += piece
        if len(held) >= tail or len(piece) < 4096:
            break
    yield tail_of(held, lines)
    yield from pieces


def tail_of(data: bytes, lines: int) -> bytes:
    if lines == 0:
        return b""
    whole = data.removesuffix(b"\n").split(b"\n")
    return data if len(whole) <= lines else data[len(data) - _length(whole[-lines:], data) :]


def _length(lines: list[bytes], data: bytes) -> int:
    return sum(len(line) + 1 for line in lines) - (0 if data.endswith(b"\n") else 1)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
