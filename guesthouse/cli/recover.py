"""`guest recover`."""

from __future__ import annotations

import os

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, json_option, yes_option
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.session import open_house
from guesthouse.cli.table import colourful, plain, render, show, terminal_width
from guesthouse.client.aside import set_aside
from guesthouse.client.house import House
from guesthouse.errors import CorruptStore
from guesthouse.model.folders import resolve
from guesthouse.model.reports import Finding, FindingKind, RecoverySurvey

_PLURALS = {
    FindingKind.GUEST: "guests",
    FindingKind.IMAGE: "images",
    FindingKind.VOLUME: "disks",
    FindingKind.NETWORK: "networks",
    FindingKind.LEASE: "leases",
    FindingKind.GROUP: "security groups",
    FindingKind.SET: "address sets",
}
_SELDOM = (FindingKind.VOLUME, FindingKind.LEASE)
"""Of these only those that have a problem are shown."""


@command(
    "recover",
    examples=[
        ("guest recover --dry-run", "What would come back"),
        ("guest recover", "Shows that, asks, and brings it back"),
        ("guest recover --yes", "For scripts"),
    ],
)
@yes_option
@click.option("--dry-run", "-n", is_flag=True, help="Only show what would come back.")
@json_option
def recover(yes: bool, dry_run: bool, as_json: bool) -> None:
    """Rebuild a lost or damaged database.

    Beside the disks lie copies of all documents. From these come back guests, images and the
    trash; guests that run are taken up as they are. A damaged database is moved aside, never
    deleted. What is in the database already stays as it is, so this can be run at any time.

    With --json, what was found, as one object.
    """
    house = _house(yes=yes, dry_run=dry_run)
    survey = house.survey()
    if as_json:
        import msgspec

        output.json_result(msgspec.to_builtins(survey))
    else:
        _show(survey)
    back = [finding for finding in survey.findings if finding.back]
    if dry_run or not back:
        return
    question = f"Bring back {_counted(back)}?"
    why = "This changes the database"
    if not output.confirm(question, yes=yes, retry="guest recover --yes", why=why):
        output.note("nothing recovered")
        raise click.exceptions.Exit(1)
    (job,) = carry_out(house, [Wish("recover", house.recover)])
    result = job.result or {}
    for before, after in result.get("renamed", {}).items():
        output.warning(f"{before} is another guest by now; the recovered one is called {after}.")
    if not as_json:
        output.result(f"Recovered {_counted(back)}")


def _house(*, yes: bool, dry_run: bool) -> House:
    """The house, with a new database if its own is damaged and the user agrees."""
    try:
        return open_house(recovering=True)
    except CorruptStore as error:
        folders = resolve(os.environ, uid=os.geteuid())
        if dry_run or error.detail.get("path") != str(folders.database):
            raise
        output.note(error.message)
    question = "Move it aside, and begin a new one from the copies beside the disks?"
    why = "The database is damaged"
    if not output.confirm(question, yes=yes, retry="guest recover --yes", why=why):
        output.note("nothing changed")
        raise click.exceptions.Exit(1)
    output.note(f"the damaged database is now {set_aside(folders)}")
    return open_house(recovering=True)


def _show(survey: RecoverySurvey) -> None:
    if not survey.findings:
        output.note("nothing to recover: the database knows all that lies beside the disks")
        return
    shown = [one for one in survey.findings if one.kind not in _SELDOM or one.problem]
    rows = [[one.kind.value, one.name or one.id, _outcome(one), plain(one.problem)]
            for one in shown]  # fmt: skip
    headers = ["WHAT", "NAME", "COMES BACK", "NOTE"]
    show(render(headers, rows, width=terminal_width(), drop=(), colour=colourful()))


def _outcome(finding: Finding) -> str:
    if not finding.back:
        return "no"
    return {"": "yes", "trash": "in the trash"}.get(finding.state, finding.state)


def _counted(back: list[Finding]) -> str:
    """`3 guests, 1 image and 4 disks`."""
    parts = []
    for kind, plural in _PLURALS.items():
        count = sum(finding.kind is kind for finding in back)
        if count:
            parts.append(f"{count} {plural.removesuffix('s') if count == 1 else plural}")
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if parts[1:] else "".join(parts)
