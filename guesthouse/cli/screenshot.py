"""`guest screenshot`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, guest_argument
from guesthouse.cli.session import open_house
from guesthouse.errors import Forbidden, InvalidInput


@command(
    "screenshot",
    examples=[
        ("guest screenshot web", "To web-<date>.png in this folder"),
        ("guest screenshot web -o screen.png", ""),
        ("guest screenshot web -o - | feh -", ""),
    ],
)
@guest_argument()
@click.option(
    "--output",
    "-o",
    "target",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="The PNG file to write; - is standard output.",
)
def screenshot(name: str, target: str | None) -> None:
    """Save a picture of a guest's screen."""
    if target == "-" and os.isatty(1):
        raise InvalidInput(
            "A picture on a terminal is no use.", hint="Redirect it, or give a file with -o."
        )
    house = open_house()
    picture = house.screenshot(name)
    if target == "-":
        view = memoryview(picture)
        while view:
            view = view[os.write(1, view) :]
        return
    path = Path(target or f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.png")
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise Forbidden(
            f"{path} cannot be written: {error.strerror}.", hint="Give another file with -o."
        ) from error
    output.result(f"Saved {path}")
