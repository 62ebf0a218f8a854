"""Tables on a terminal. Imports nothing, so that `guest ls` starts fast."""

from __future__ import annotations

import os
import sys

GAP = "  "
READABLE = 16
"""Columns below which a cut text says nothing."""
GREEN, YELLOW, RED, DIM, BOLD = "32", "33", "31", "2", "1"

STATE_COLOURS = {
    "running": GREEN,
    "done": GREEN,
    "paused": YELLOW,
    "starting": YELLOW,
    "stopping": YELLOW,
    "creating": YELLOW,
    "recovering": YELLOW,
    "unobserved": YELLOW,
    "failed": RED,
    "stopped": DIM,
    "cancelled": DIM,
    "deleting": DIM,
}


def colourful(fd: int = 1) -> bool:
    """Whether colour is welcome on `fd`: a terminal, and no NO_COLOR (no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and os.isatty(fd)


def paint(text: str, colour: str) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if colour else text


def terminal_width(fd: int = 1) -> int | None:
    """Columns of the terminal at `fd`; None when it is none and lines may be of any length."""
    if not os.isatty(fd):
        return None
    try:
        return os.get_terminal_size(fd).columns or 80
    except OSError:
        return 80


def plain(text: str) -> str:
    """`text` without characters that a terminal would obey: guests and images are not trusted."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def columns_of(text: str) -> int:
    """Columns that `text` takes on a terminal."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(
        0 if combining(letter) else 2 if east_asian_width(letter) in "WF" else 1 for letter in text
    )


def render(
    headers: list[str],
    rows: list[list[str]],
    *,
    width: int | None = None,
    drop: tuple[str, ...] = (),
    colour: bool = False,
) -> str:
    """The table as lines, each ended.

    :param width: columns that there are. When they do not suffice, the last column is cut, but not
        below `READABLE`; rather the columns named in `drop` go, one after another.
    :param colour: paint the header, and the column STATE by its first word.
    """
    cells = [[plain(cell) for cell in row] for row in rows]
    shown = list(range(len(headers)))
    widths = [
        max(columns_of(headers[at]), *(columns_of(row[at]) for row in cells), 0) for at in shown
    ]
    for name in drop:
        least = min(widths[shown[-1]], READABLE)
        if width is None or _total(widths, shown[:-1]) + len(GAP) + least <= width:
            break
        shown.remove(headers.index(name))
    lines = [_line([headers[at] for at in shown], [widths[at] for at in shown], width)]
    if colour:
        lines[0] = paint(lines[0], BOLD)
    for row in cells:
        line = _line([row[at] for at in shown], [widths[at] for at in shown], width)
        if colour and "STATE" in headers:
            line = _paint_state(line, row[headers.index("STATE")])
        lines.append(line)
    return "".join(f"{line}\n" for line in lines)


def _total(widths: list[int], shown: list[int]) -> int:
    return sum(widths[at] for at in shown) + len(GAP) * (len(shown) - 1)


def _line(cells: list[str], widths: list[int], width: int | None) -> str:
    padded = [
        cell + " " * (size - columns_of(cell)) for cell, size in zip(cells, widths, strict=True)
    ]
    line = GAP.join(padded).rstrip()
    return line if width is None else cut(line, width)


def cut(text: str, width: int) -> str:
    """`text` in at most `width` columns, with an ellipsis where something is missing."""
    if columns_of(text) <= width:
        return text
    while text and columns_of(text) > max(width - 1, 0):
        text = text[:-1]
    return f"{text}…" if width > 0 else ""


def _paint_state(line: str, state: str) -> str:
    colour = STATE_COLOURS.get(state.split(" ", 1)[0], "")
    before, found, after = line.partition(state)
    return before + paint(found, colour) + after if found else line


def show(text: str) -> None:
    """Write to standard output at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
