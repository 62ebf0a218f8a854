"""`guest rm`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, guests_argument, yes_option
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.session import open_house
from guesthouse.client.house import House
from guesthouse.errors import NotFound
from guesthouse.model.job import Job


@command(
    "rm",
    examples=[
        ("guest rm web", "Asks first"),
        ("guest rm --yes web db", "For scripts"),
        ("guest rm --yes --force web", "Also if it runs"),
        ("guest rm --now web", "For good, with all its disks"),
        ("guest undelete web", "Takes a removal back"),
    ],
)
@guests_argument()
@yes_option
@click.option("--force", "-f", is_flag=True, help="Kill guests that run.")
@click.option("--now", is_flag=True, help="Delete them for good: do not keep them in the trash.")
def rm(names: tuple[str, ...], yes: bool, force: bool, now: bool) -> None:
    """Remove guests and their disks.

    They go to the trash, from where 'guest undelete' brings them back for 7 days (the setting
    trash_days). Their names are free at once; their disks take space until then.

    When one of the names is unknown, nothing is removed.
    """
    house = open_house()
    names = tuple(dict.fromkeys(names))
    if yes:
        require_all(names, house.guest)
    days = 0 if now else house.info().trash_days
    if not yes and not _asked(house, names, force=force, now=now, days=days):
        output.note("nothing removed")
        raise click.exceptions.Exit(1)
    wishes = [Wish(name, partial(house.delete_guest, name, force=force, now=now)) for name in names]
    carry_out(house, wishes, lambda job: _done(job, days))


def require_all(names: Sequence[str], find: Callable[[str], object]) -> None:
    """Before several are removed. :raise NotFound: one is not there."""
    if len(names) < 2:
        return  # the removal itself says so
    try:
        for name in names:
            find(name)
    except NotFound as error:
        error.hint = f"Nothing was removed. {error.hint}".strip()
        raise


def _asked(house: House, names: tuple[str, ...], *, force: bool, now: bool, days: int) -> bool:
    found = [house.guest(name) for name in names]
    listed = ", ".join(f"{guest.name} ({guest.state.value})" for guest in found)
    options = "".join([" --force" if force else "", " --now" if now else ""])
    retry = f"guest rm --yes{options} {' '.join(names)}"
    if days:
        return output.confirm(
            f"Move {listed} to the trash?", yes=False, retry=retry, why="This removes guests"
        )
    return output.confirm(f"Remove {listed} and all disks for good?", yes=False, retry=retry)


def _done(job: Job, days: int) -> str:
    name = job.target_name or job.target
    if not (job.result or {}).get("trashed"):
        return f"Removed {name}"
    period = "1 day" if days == 1 else f"{days} days"
    return f"Removed {name}; for {period} it can be brought back: guest undelete {name}"
