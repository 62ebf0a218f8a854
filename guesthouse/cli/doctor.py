"""`guest doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from guesthouse.cli import output
from guesthouse.cli.bundle import write_bundle
from guesthouse.cli.command import command, json_option
from guesthouse.cli.session import open_house
from guesthouse.cli.table import DIM, GREEN, RED, YELLOW, colourful, paint, plain, show
from guesthouse.cli.table import terminal_width as width_of
from guesthouse.model.checkup import Check, Checkup, Health
from guesthouse.model.host import Capability, HostFacts
from guesthouse.model.units import format_size

ESSENTIAL = frozenset({"qemu", "qemu-img"})
"""Without these no guest runs. All else costs speed or a feature."""


@command(
    "doctor",
    examples=[
        ("guest doctor", ""),
        ("guest doctor --json | jq '.capabilities[] | select(.available | not)'", ""),
        ("guest doctor --json | jq '.checks[] | select(.health == \"trouble\")'", ""),
        ("guest doctor || exit 1", "In scripts: stop when guests cannot run here"),
        ("guest doctor --bundle help.tar.gz", "For whoever helps you: versions, logs, no secrets"),
    ],
)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write versions, settings, documents and logs to a .tar.gz, without secrets.",
)
@json_option
def doctor(as_json: bool, bundle: Path | None) -> int:
    """Say what this host can do, and how to cure the rest.

    The house itself is looked at too: its documents, its disks, the room that is left, the
    processes of its guests.

    The exit code is 0 when guests can run here and the house is well, and 1 when something that
    matters is missing or broken. What only makes guests slower, or a feature impossible, is shown
    and does not count.
    """
    if bundle is not None and as_json:
        raise click.UsageError("--bundle and --json exclude each other.")
    house = open_house()
    if bundle is not None:
        write_bundle(house, bundle)
        return 0
    facts, checkup = house.probe(), house.check_up()
    healthy = not missing(facts) and not troubles(checkup)
    if as_json:
        import msgspec

        whole = {"healthy": healthy, **msgspec.to_builtins(facts), **msgspec.to_builtins(checkup)}
        output.json_result(whole)
    else:
        _show(facts, checkup)
    return 0 if healthy else 1


def missing(facts: HostFacts) -> list[Capability]:
    """What matters and is not there."""
    return [one for one in facts.capabilities if one.name in ESSENTIAL and not one.available]


def troubles(checkup: Checkup) -> list[Check]:
    return [one for one in checkup.checks if one.health is Health.TROUBLE]


class Line(NamedTuple):
    """:ivar rank: 0 for what is wrong and matters; these come first."""

    rank: int
    mark: str
    name: str
    text: str
    cure: str


_COLOURS = (RED, YELLOW, GREEN)


def _show(facts: HostFacts, checkup: Checkup) -> None:
    by = "KVM" if facts.accelerator == "kvm" else "emulation (TCG), many times slower; see kvm"
    output.pairs(
        [
            ("System", f"{facts.os}, Linux {facts.kernel}"),
            ("Host", f"{facts.cpus} CPUs, {format_size(facts.memory)} memory"),
            ("Guests run by", by),
        ]
    )
    host = [_of_capability(one) for one in facts.capabilities]
    house = [_of_check(one) for one in checkup.checks]
    left = max(len(line.name) for line in [*host, *house]) + 2
    _section("What this host can do", sorted(host, key=lambda line: (line.rank, line.name)), left)
    _section("How the house is", sorted(house, key=lambda line: line.rank), left)
    show(f"\n{_sum(facts, checkup)}\n")


def _sum(facts: HostFacts, checkup: Checkup) -> str:
    gaps, trouble = missing(facts), troubles(checkup)
    words = []
    if gaps:
        words.append(f"Guests cannot run here: {', '.join(one.name for one in gaps)} missing.")
    else:
        lacking = sum(not one.available for one in facts.capabilities)
        things = "1 thing" if lacking == 1 else f"{lacking} things"
        more = f"; {things} would make it better" if lacking else ""
        words.append(f"Guests can run here{more}.")
    if trouble:
        words.append(f"The house has trouble: {', '.join({one.name: 0 for one in trouble})}.")
    return " ".join(words)


def _of_capability(one: Capability) -> Line:
    if one.available:
        return Line(2, "ok", one.name, one.reason, "")
    if one.name in ESSENTIAL:
        return Line(0, "MISSING", one.name, one.reason, one.cure)
    return Line(1, "no", one.name, one.reason, one.cure)


def _of_check(one: Check) -> Line:
    rank, mark = {
        Health.TROUBLE: (0, "TROUBLE"),
        Health.NOTICE: (1, "note"),
        Health.FINE: (2, "ok"),
    }[one.health]
    return Line(rank, mark, one.name, one.message, one.cure)


def _section(title: str, lines: Sequence[Line], left: int) -> None:
    show(f"\n{title}\n")
    for line in lines:
        _write(line, left)


def _write(line: Line, left: int) -> None:
    """The cure is printed as one piece where there is room, so that it can be copied."""
    shown = line.mark.ljust(8)
    head = f"{paint(shown, _COLOURS[line.rank]) if colourful() else shown}{line.name.ljust(left)}"
    for text in _wrapped(plain(line.text), left):
        show(f"{head}{text}\n")
        head = " " * (8 + left)
    if line.cure:
        for text in _wrapped(f"cure: {plain(line.cure)}", left):
            show(f"{' ' * (8 + left)}{paint(text, DIM) if colourful() else text}\n")


def _wrapped(text: str, left: int) -> list[str]:
    width = width_of()
    if width is None:
        return [text]
    import textwrap

    return textwrap.wrap(text, max(width - 8 - left, 20), break_on_hyphens=False) or [""]
