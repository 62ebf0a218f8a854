"""`guest doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from guesthouse.cli import output
from guesthouse.cli.bundle import write_bundle
from guesthouse.cli.command import command, json_option
from guesthouse.cli.session import open_house
from guesthouse.cli.table import DIM, GREEN, RED, YELLOW, colourful, paint, plain, show
from guesthouse.cli.table import terminal_width as width_of
from guesthouse.model.host import Capability, HostFacts
from guesthouse.model.units import format_size

ESSENTIAL = frozenset({"qemu", "qemu-img"})
"""Without these no guest runs. All else costs speed or a feature."""


@command(
    "doctor",
    examples=[
        ("guest doctor", ""),
        ("guest doctor --json | jq '.capabilities[] | select(.available | not)'", ""),
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

    The exit code is 0 when guests can run here, and 1 when something that matters for that is
    missing. What only makes them slower, or a feature impossible, is shown and does not count.
    """
    if bundle is not None and as_json:
        raise click.UsageError("--bundle and --json exclude each other.")
    house = open_house()
    if bundle is not None:
        write_bundle(house, bundle)
        return 0
    facts = house.probe()
    if as_json:
        import msgspec

        output.json_result(msgspec.to_builtins(facts))
    else:
        _show(facts)
    return 1 if missing(facts) else 0


def missing(facts: HostFacts) -> list[Capability]:
    """What matters and is not there."""
    return [one for one in facts.capabilities if one.name in ESSENTIAL and not one.available]


def _show(facts: HostFacts) -> None:
    output.pairs(
        [
            ("System", f"{facts.os}, Linux {facts.kernel}"),
            ("Host", f"{facts.cpus} CPUs, {format_size(facts.memory)} memory"),
            ("Guests run on", f"{facts.accelerator.upper()}: {facts.accelerator_reason}"),
        ]
    )
    show("\n")
    left = max((len(one.name) for one in facts.capabilities), default=0) + 2
    for one in sorted(facts.capabilities, key=_order):
        _line(one, left)
    gaps = missing(facts)
    if gaps:
        names = ", ".join(one.name for one in gaps)
        show(f"\nGuests cannot run here: {names} missing.\n")
    else:
        lacking = sum(not one.available for one in facts.capabilities)
        things = "1 thing" if lacking == 1 else f"{lacking} things"
        more = f"; {things} would make it better" if lacking else ""
        show(f"\nGuests can run here{more}.\n")


def _order(one: Capability) -> tuple[int, str]:
    """What is missing and matters first, then what is missing, then what is there."""
    return (2 if one.available else 0 if one.name in ESSENTIAL else 1, one.name)


def _line(one: Capability, left: int) -> None:
    if one.available:
        mark, colour = "ok", GREEN
    elif one.name in ESSENTIAL:
        mark, colour = "MISSING", RED
    else:
        mark, colour = "no", YELLOW
    shown = mark.ljust(8)
    head = f"{paint(shown, colour) if colourful() else shown}{one.name.ljust(left)}"
    text = plain(one.reason)
    for line in _wrapped(text, left):
        show(f"{head}{line}\n")
        head = " " * (8 + left)
    if one.cure and not one.available:
        for line in _wrapped(f"cure: {plain(one.cure)}", left):
            show(f"{' ' * (8 + left)}{paint(line, DIM) if colourful() else line}\n")


def _wrapped(text: str, left: int) -> list[str]:
    width = width_of()
    if width is None:
        return [text]
    import textwrap

    return textwrap.wrap(text, max(width - 8 - left, 20), break_on_hyphens=False) or [""]
