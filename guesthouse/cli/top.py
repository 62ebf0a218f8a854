"""`guest top`: what running guests take of the host, again and again."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, complete_guests, json_option
from guesthouse.cli.rows import span
from guesthouse.cli.session import open_house
from guesthouse.cli.table import colourful, cut, render, show, terminal_width
from guesthouse.client.house import House
from guesthouse.errors import GuesthouseError, NotFound
from guesthouse.model.units import format_size
from guesthouse.model.usage import GuestUsage

PERIOD = 2.0
ONCE = 1.0
"""Seconds between the two looks that a share of the CPU needs."""

HEADERS = ["NAME", "CPU%", "TAKEN", "RSS", "MEMORY", "CPU TIME", "PID"]
DROP = ("PID", "RSS", "CPU TIME", "MEMORY")
SORTS = ("cpu", "memory", "name")

# Terminal control (ECMA-48 and xterm): another screen and back, the cursor, home, what is below.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"


_LEAVING = frozenset({b"q", b"\x1b", b"\x04", b""})
"""q, Escape, Ctrl-D, and a terminal that has gone."""


class Line(NamedTuple):
    """:ivar cpu: share of one CPU in percent since the look before; None at the first look.
    :ivar taken: bytes of the host's memory, shared pages divided where the kernel tells.
    """

    usage: GuestUsage
    cpu: float | None
    taken: int


@command(
    "top",
    examples=[
        ("guest top", "Anew every 2 seconds; q or Ctrl-C leaves"),
        ("guest top web db --interval 5", "Only these, less often"),
        ("guest top --once --sort memory", "One table; in scripts"),
        ("guest top --once --json | jq '.[] | {name, cpu_percent}'", ""),
    ],
)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_guests)
@click.option("--once", is_flag=True, help="Look for a second, print one table and end.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=PERIOD,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
)
@click.option(
    "--sort", type=click.Choice(SORTS), default="cpu", show_default=True, help="What comes first."
)
@json_option
def top(names: tuple[str, ...], once: bool, interval: float, sort: str, as_json: bool) -> None:
    """Show what running guests take of this host.

    CPU% is of one CPU: a guest with 4 can take 400. TAKEN is the host's memory that its process
    occupies, with what it shares with others divided among them (PSS); RSS counts that fully.
    Where standard output is no terminal, and with --json, it looks once.
    """
    house = open_house()
    _require(house, names)
    if once or as_json or not os.isatty(1):
        before = _look(house, names)
        time.sleep(ONCE)
        lines = compare(before, _look(house, names), sort)
        if as_json:
            output.json_result([_json(line) for line in lines])
        elif lines:
            show(table(lines, width=terminal_width()))
        else:
            output.note("no guest runs")
        return
    _live(house, names, interval, sort)


def _require(house: House, names: Sequence[str]) -> None:
    """:raise NotFound: no guest of that name, running or not."""
    known = {guest["name"] for guest in house.raw("/v1/guests")} if names else set()
    for name in names:
        if name not in known:
            raise NotFound(f"There is no guest {name!r}.", hint="See what there is: guest ls")


def _look(house: House, names: Sequence[str]) -> list[GuestUsage]:
    return [one for one in house.usage_of_running() if not names or one.name in names]


def compare(
    before: Sequence[GuestUsage], after: Sequence[GuestUsage], sort: str = "cpu"
) -> list[Line]:
    """Lines of the guests in `after`; `before` is the look of a while ago."""
    earlier = {one.id: one for one in before}
    lines = [_line(earlier.get(one.id), one) for one in after if one.process is not None]
    lines.sort(key=lambda line: line.usage.name)
    if sort == "cpu":
        lines.sort(key=lambda line: -(line.cpu or 0.0))
    elif sort == "memory":
        lines.sort(key=lambda line: -line.taken)
    return lines


def _line(before: GuestUsage | None, now: GuestUsage) -> Line:
    process = now.process
    assert process is not None  # the caller left the others out
    taken = process.resident if process.proportional is None else process.proportional
    then = before.process if before is not None else None
    cpu = None
    # Another process of the same guest has a count of its own.
    if then is not None and then.pid == process.pid and process.measured_at > then.measured_at:
        took = process.cpu_seconds - then.cpu_seconds
        cpu = max(took, 0.0) / (process.measured_at - then.measured_at) * 100
    return Line(now, cpu, taken)


def _json(line: Line) -> dict[str, Any]:
    usage, process = line.usage, line.usage.process
    assert process is not None  # see `compare`
    return {
        "name": usage.name,
        "id": usage.id,
        "state": usage.state.value,
        "cpu_percent": None if line.cpu is None else round(line.cpu, 1),
        "cpus": usage.cpus,
        "cpu_seconds": process.cpu_seconds,
        "memory": usage.memory,
        "resident": process.resident,
        "proportional": process.proportional,
        "pid": process.pid,
    }


def table(lines: Sequence[Line], *, width: int | None = None) -> str:
    rows = []
    for line in lines:
        process = line.usage.process
        assert process is not None  # see `compare`
        rows.append(
            [
                line.usage.name,
                "-" if line.cpu is None else f"{line.cpu:.1f}",
                _mebibytes(line.taken),
                _mebibytes(process.resident),
                format_size(line.usage.memory),
                span(process.cpu_seconds),
                str(process.pid),
            ]
        )
    return render(HEADERS, rows, width=width, drop=DROP, colour=colourful())


def _mebibytes(size: int) -> str:
    return format_size(size >> 20 << 20) if size >= 1 << 20 else format_size(size)


def _live(house: House, names: Sequence[str], interval: float, sort: str) -> None:
    """Until q or Ctrl-C. A daemon that is away for a while does not end it."""
    before: list[GuestUsage] = []
    pause = min(interval, ONCE)  # the first look knows no shares yet: the second comes soon
    with _screen() as pressed:
        while True:
            try:
                after = _look(house, names)
                lines = compare(before, after, sort)
                text = table(lines, width=terminal_width()) if lines else "no guest runs\n"
                before = after
            except GuesthouseError as error:
                text = f"{error.message}\n"
            _draw(f"{_head(interval)}\n\n{text}")
            if pressed(pause):
                return
            pause = interval


def _head(interval: float) -> str:
    return f"{time.strftime('%H:%M:%S')}  every {interval:g} s; q leaves"


def _draw(text: str) -> None:
    """Over what was there, without clearing first: that would flicker."""
    rows = _rows()
    width = terminal_width()
    lines = text.splitlines()[: max(rows - 1, 1)]
    shown = [line if width is None or "\x1b" in line else cut(line, width) for line in lines]
    show(_HOME + "".join(f"{line}{_REST_OF_LINE}\n" for line in shown) + _REST)


def _rows() -> int:
    try:
        return os.get_terminal_size(1).lines or 24
    except OSError:
        return 24


@contextmanager
def _screen() -> Iterator[Callable[[float], bool]]:
    """The terminal's other screen. Yields a wait of so many seconds: whether to leave.

    A new size of the terminal ends a wait early.
    """
    import select
    import termios
    import tty

    keys = os.isatty(0)
    former = termios.tcgetattr(0) if keys else None
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signals: Mapping[signal.Signals, Any] = {
        signal.SIGWINCH: signal.signal(signal.SIGWINCH, lambda *_: os.write(wake, b".")),
        signal.SIGTERM: signal.signal(signal.SIGTERM, _terminated),
    }

    def pressed(seconds: float) -> bool:
        ready, _, _ = select.select([woken, *([0] if keys else [])], [], [], seconds)
        if woken in ready:
            os.read(woken, 64)
        return 0 in ready and os.read(0, 64).lower() in _LEAVING

    try:
        if keys:
            tty.setcbreak(0, termios.TCSANOW)
        show(_ENTER)
        yield pressed
    except KeyboardInterrupt:
        pass
    finally:
        if former is not None:
            termios.tcsetattr(0, termios.TCSANOW, former)
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        for number, handler in signals.items():
            signal.signal(number, handler)
        os.close(woken)
        os.close(wake)


def _terminated(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)
