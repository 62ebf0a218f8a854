"""`guest ls`, the full way; the short one for the usual case is in `cli.fast`."""

from __future__ import annotations

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, json_option
from guesthouse.cli.rows import guest_table
from guesthouse.cli.session import open_house
from guesthouse.cli.table import colourful, show, terminal_width


@command(
    "ls",
    examples=[
        ("guest ls", ""),
        ("guest stop $(guest ls -q)", "All names, for other commands"),
        ("guest ls --json | jq -r '.[] | select(.status.state==\"running\") | .name'", ""),
    ],
)
@click.option("--quiet", "-q", is_flag=True, help="Names only.")
@click.option("--trash", is_flag=True, help="Those that were removed, see 'guest trash'.")
@json_option
def ls(quiet: bool, trash: bool, as_json: bool) -> None:
    """List the guests.

    A column that does not fit the terminal is left out; 'guest info' shows everything.
    """
    if trash:
        from guesthouse.cli.trash import list_trash

        list_trash(as_json, quiet=quiet)
        return
    house = open_house()
    guests = house.raw("/v1/guests")
    if as_json:
        output.json_result(guests)
    elif quiet:
        for name in sorted(guest["name"] for guest in guests):
            output.result(name)
    elif guests:
        show(guest_table(guests, width=terminal_width(), colour=colourful()))
    else:
        output.note("no guests yet; make one with: guest launch debian/12 web")
