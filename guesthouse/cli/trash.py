"""`guest undelete` and `guest trash ls|empty`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, complete_trash, json_option, yes_option
from guesthouse.cli.family import Family
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.rows import span
from guesthouse.cli.session import open_house
from guesthouse.cli.table import colourful, render, show, terminal_width
from guesthouse.errors import NotFound
from guesthouse.model.names import check_name
from guesthouse.model.reports import GuestView


@command(
    "undelete",
    examples=[
        ("guest undelete web", "The one of that name that was removed last"),
        ("guest undelete web --name web-old", "When the name belongs to another guest by now"),
        ("guest undelete 01JDF6", "By the beginning of its id, see: guest trash ls"),
    ],
)
@click.argument("name", shell_complete=complete_trash)
@click.option("--name", "new_name", metavar="NEW", help="Give it another name than it had.")
def undelete(name: str, new_name: str | None) -> None:
    """Bring a removed guest back from the trash.

    It comes back as it was, and does not run. NAME is its name, its id or a unique beginning of
    that.
    """
    if new_name is not None:
        check_name(new_name, field="name")
    house = open_house()
    (job,) = carry_out(house, [Wish(name, partial(house.undelete, name, name=new_name))])
    back = job.result or {}
    output.result(f"Brought {back.get('name') or job.target_name} back")
    for port in back.get("unpublished", ()):
        output.warning(f"port {port} belongs to another guest by now and is published no more.")


@click.group(
    "trash",
    cls=Family,
    examples=[
        ("guest trash ls", ""),
        ("guest undelete web", "Brings one back"),
        ("guest trash empty", "Deletes all for good"),
    ],
)
def trash() -> None:
    """The trash: removed guests that can be brought back.

    They keep their disks, and their time is over after 7 days (the setting trash_days).
    """


@command("ls", examples=[("guest trash ls", ""), ("guest trash ls --json | jq -r '.[].id'", "")])
@json_option
def trash_ls(as_json: bool) -> None:
    """List the guests in the trash, the last one removed first."""
    list_trash(as_json)


def list_trash(as_json: bool, *, quiet: bool = False) -> None:
    """:param quiet: names only."""
    house = open_house()
    if as_json:
        output.json_result(house.raw("/v1/trash"))
        return
    guests = house.trash()
    if quiet:
        for guest in guests:
            output.result(guest.name)
    elif guests:
        show(trash_table(guests, width=terminal_width()))
    else:
        output.note("the trash is empty")


def trash_table(guests: Sequence[GuestView], *, width: int | None = None) -> str:
    now = time.time()
    rows = [
        [guest.name, guest.id, guest.image, f"{span(now - (guest.deleted_at or now))} ago",
         # Rounded up to the hour: what was removed just now has its whole 7 days.
         f"in {span((guest.expires_at or now) - now + 3599)}"]
        for guest in guests
    ]  # fmt: skip
    headers = ["NAME", "ID", "IMAGE", "REMOVED", "GONE"]
    return render(headers, rows, width=width, drop=("IMAGE", "REMOVED"), colour=colourful())


@command(
    "empty",
    examples=[
        ("guest trash empty", "Asks first"),
        ("guest trash empty --yes web", "Only this one"),
    ],
)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_trash)
@yes_option
def trash_empty(names: tuple[str, ...], yes: bool) -> None:
    """Delete the guests in the trash for good, or only those named."""
    house = open_house()
    there = house.trash()
    chosen = {guest.id: guest for name in names for guest in [_named(there, name)]}
    guests = list(chosen.values()) if names else there
    if not guests:
        output.note("the trash is empty")
        return
    listed = ", ".join(guest.name for guest in guests)
    retry = " ".join(["guest trash empty --yes", *names])
    if not output.confirm(f"Delete {listed} and all disks for good?", yes=yes, retry=retry):
        output.note("nothing deleted")
        raise click.exceptions.Exit(1)
    wishes = [Wish(guest.name, partial(house.purge, guest.id)) for guest in guests]
    carry_out(house, wishes, lambda job: f"Deleted {job.target_name or job.target}")


def _named(guests: Sequence[GuestView], ref: str) -> GuestView:
    """By name (the last one removed), id, or beginning of an id. :raise NotFound:"""
    for guest in guests:
        if ref == guest.name or (len(ref) >= 6 and guest.id.startswith(ref.upper())):
            return guest
    raise NotFound(f"The trash holds no guest {ref!r}.", hint="See its content: guest trash ls")


for _command in (trash_ls, trash_empty):
    trash.add_command(_command)
