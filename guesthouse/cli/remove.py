"""`guest rm`."""

from __future__ import annotations

from functools import partial

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, guests_argument, yes_option
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.session import open_house


@command(
    "rm",
    examples=[
        ("guest rm web", "Asks first"),
        ("guest rm --yes web db", "For scripts"),
        ("guest rm --yes --force web", "Also if it runs"),
    ],
)
@guests_argument()
@yes_option
@click.option("--force", "-f", is_flag=True, help="Kill guests that run.")
def rm(names: tuple[str, ...], yes: bool, force: bool) -> None:
    """Remove guests and their disks. This cannot be taken back."""
    house = open_house()
    names = tuple(dict.fromkeys(names))
    if not yes:
        found = [house.guest(name) for name in names]
        listed = ", ".join(f"{guest.name} ({guest.state.value})" for guest in found)
        retry = f"guest rm --yes {'--force ' if force else ''}{' '.join(names)}"
        if not output.confirm(f"Remove {listed} and all disks?", yes=yes, retry=retry):
            output.note("nothing removed")
            raise click.exceptions.Exit(1)
    wishes = [Wish(name, partial(house.delete_guest, name, force=force)) for name in names]
    for job in carry_out(house, wishes):
        output.result(f"Removed {job.target_name or job.target}")
