"""`guest ls`, the full way; the short one for the usual case is in `cli.fast`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, complete_guests, complete_images, json_option
from guesthouse.cli.rows import SORTS, guest_table, sorted_guests
from guesthouse.cli.session import open_house
from guesthouse.cli.table import colourful, show, terminal_width
from guesthouse.errors import NotFound
from guesthouse.model.states import GuestState

GuestJson = Mapping[str, Any]

_GLOB = frozenset("*?[")


@command(
    "ls",
    examples=[
        ("guest ls", ""),
        ("guest ls 'web*' --state running", "Those that run, of those whose names begin with web"),
        ("guest ls --image 'debian/*' --sort memory", "The largest first"),
        ("guest stop $(guest ls -q --state running)", "All names, for other commands"),
        ("guest ls --json | jq -r '.[] | select(.spec.memory > 2e9) | .name'", ""),
    ],
)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_guests)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([one.value for one in GuestState]),
    help="Only guests in this state; may be repeated.",
)
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="IMAGE",
    shell_complete=complete_images,
    help="Only guests made from this image, or from any that matches; may be repeated.",
)
@click.option(
    "--sort",
    type=click.Choice([*SORTS]),
    default="name",
    show_default=True,
    help="'memory' has the largest first, 'since' the latest change, 'state' what runs.",
)
@click.option("--reverse", "-r", is_flag=True, help="The other way round.")
@click.option("--quiet", "-q", is_flag=True, help="Names only.")
@click.option("--trash", is_flag=True, help="Those that were removed, see 'guest trash'.")
@json_option
def ls(
    names: tuple[str, ...],
    states: tuple[str, ...],
    images: tuple[str, ...],
    sort: str,
    reverse: bool,
    quiet: bool,
    trash: bool,
    as_json: bool,
) -> None:
    """List the guests.

    NAME may contain the wildcards * and ?, in quotes to keep them from the shell. A column that
    does not fit the terminal is left out; 'guest info' shows everything.
    """
    if trash:
        if names or states or images:
            raise click.UsageError("--trash shows all of the trash; it cannot be filtered.")
        from guesthouse.cli.trash import list_trash

        list_trash(as_json, quiet=quiet)
        return
    house = open_house()
    every = house.raw("/v1/guests")
    _require(every, names)
    found = [one for one in every if chosen(one, names=names, states=states, images=images)]
    plain = sort == "name" and not reverse
    ordered = found if as_json and plain else sorted_guests(found, sort, reverse=reverse)
    if as_json:
        output.json_result(ordered)
    elif quiet:
        for guest in ordered:
            output.result(guest["name"])
    elif ordered:
        show(guest_table(ordered, width=terminal_width(), colour=colourful()))
    elif every:
        output.note("no guest is like that; see all with: guest ls")
    else:
        output.note("no guests yet; make one with: guest launch debian/12 web")


def chosen(
    guest: GuestJson, *, names: Sequence[str], states: Sequence[str], images: Sequence[str]
) -> bool:
    """Whether a guest passes the filters; an empty one lets all pass."""
    image = str(guest.get("image") or guest["spec"].get("image", ""))
    return (
        (not names or any(_is(guest, name) for name in names))
        and (not states or guest["status"]["state"] in states)
        and (not images or any(fnmatchcase(image, wanted) for wanted in images))
    )


def _is(guest: GuestJson, name: str) -> bool:
    return guest["id"] == name or fnmatchcase(str(guest["name"]), name)


def _require(guests: Sequence[GuestJson], names: Sequence[str]) -> None:
    """A pattern may match nothing; a name that is written out is meant. :raise NotFound:"""
    for name in names:
        if not _GLOB & set(name) and not any(_is(guest, name) for guest in guests):
            raise NotFound(f"There is no guest {name!r}.", hint="See what there is: guest ls")
