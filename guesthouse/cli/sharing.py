"""`guest share add|ls|rm`: folders of this host in guests."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from guesthouse.cli import output
from guesthouse.cli.command import command, guest_argument, json_option
from guesthouse.cli.family import Family
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.session import open_house
from guesthouse.cli.table import colourful, render, show, terminal_width
from guesthouse.client.house import House
from guesthouse.errors import GuesthouseError, NotFound
from guesthouse.model.reports import GuestView
from guesthouse.model.share import Way, parse_share
from guesthouse.model.sharing import ShareRequest, ShareState, ShareView


@click.group(
    "share",
    cls=Family,
    examples=[
        ("guest share add web ./site:/srv/site", ""),
        ("guest share ls web", ""),
        ("guest share rm web /srv/site", ""),
    ],
)
def share() -> None:
    """Shared folders: a folder of this host in a guest."""


@command(
    "add",
    examples=[
        (
            "guest share add web ./site:/srv/site",
            "Both sides may write; a running guest has it now",
        ),
        ("guest share add web /home/ada/music:/mnt/music:ro", "The guest can only read"),
        ("guest share add web ./data:/data --guest-user www-data", "Its files are that user's"),
    ],
)
@guest_argument()
@click.argument("folder", metavar="HOST:GUEST[:ro]")
@click.option("--guest-user", default="", metavar="NAME", help="Owner of the files in the guest.")
@click.option(
    "--way", type=click.Choice([way.value for way in Way]), help="How; else the house chooses."
)
@click.option("--system-folder", is_flag=True, help="Share a folder of the system: you mean it.")
def share_add(
    name: str, folder: str, guest_user: str, way: str | None, system_folder: bool
) -> None:
    """Share a folder of this host with a guest.

    What the guest makes in it is yours. It stays shared until it is removed, whenever the guest
    runs.
    """
    request = msgspec.structs.replace(
        share_request(folder),
        way=Way(way) if way else None,
        guest_user=guest_user,
        system_folder=system_folder,
    )
    house = open_house()
    (job,) = carry_out(house, [Wish(name, lambda: house.share(name, request))])
    output.result(f"Shared {request.source} at {request.target} of {job.target_name or name}")
    if reason := (job.result or {}).get("reason"):
        output.note(str(reason))


@command("ls", examples=[("guest share ls web", ""), ("guest share ls web --json", "")])
@guest_argument()
@json_option
def share_ls(name: str, as_json: bool) -> None:
    """List the shared folders of a guest."""
    house = open_house()
    shares = house.shares(name)
    if as_json:
        from guesthouse.client.house import guest_path

        output.json_result(house.raw(guest_path(name, "shares")))
    elif shares:
        rows = [_row(one) for one in shares]
        headers = ["NAME", "STATE", "HOST", "GUEST", "MODE", "WAY"]
        show(render(headers, rows, width=terminal_width(), drop=("WAY",), colour=colourful()))
        for one in shares:
            if one.message:
                output.warning(f"{one.name}: {one.message}")
            elif one.reason:
                output.note(f"{one.name} goes by {one.reason}")
    else:
        output.note(f"{name} has no shared folders")


@command(
    "rm",
    examples=[
        ("guest share rm web /srv/site", "By its place in the guest"),
        ("guest share rm web site", "By its name"),
        ("guest share rm --force web site", "Also when the guest uses it or does not answer"),
    ],
)
@guest_argument()
@click.argument("which", metavar="GUEST|NAME")
@click.option("--force", is_flag=True, help="Also when it is in use; programs there see errors.")
def share_rm(name: str, which: str, force: bool) -> None:
    """Take a shared folder back. Its files stay on this host."""
    house = open_house()
    found = _named(house.shares(name), which, name)
    carry_out(house, [Wish(name, lambda: house.unshare(name, found.name, force=force))])
    output.result(f"{found.source} is not shared with {name} any more")


def share_request(text: str) -> ShareRequest:
    """`HOST:GUEST[:ro]`, where HOST may be relative to where we are. :raise InvalidInput:"""
    wanted = parse_share(text, at=str(Path.cwd()))
    return ShareRequest(source=wanted.source, target=wanted.target, read_only=wanted.read_only)


def share_rows(house: House, guest: GuestView) -> list[tuple[str, str]]:
    """For `guest info`. Asked for only where there are some; what the daemon cannot tell is left
    out."""
    known: dict[str, ShareView] = {}
    if guest.spec.shares:
        try:
            known = {one.name: one for one in house.shares(guest.id)}
        except GuesthouseError:
            pass
    rows = []
    for at, share in enumerate(guest.spec.shares):
        name = "" if at else ("Share" if len(guest.spec.shares) == 1 else "Shares")
        text = f"{share.source} -> {share.target}{', read-only' if share.read_only else ''}"
        now = known.get(share.name)
        mounted = now is not None and now.state is ShareState.MOUNTED
        state = "" if now is None else f" ({now.way if mounted and now.way else now.state.value})"
        rows.append((name, text + state))
        if now is not None and (now.message or now.reason):
            rows.append(("", now.message or now.reason))
    return rows


def _row(one: ShareView) -> list[str]:
    mode = "ro" if one.read_only else "rw"
    return [one.name, one.state.value, one.source, one.target, mode, (one.way or Way.SFTP).value]


def _named(shares: list[ShareView], which: str, guest: str) -> ShareView:
    """:raise NotFound: none has that name or place."""
    for one in shares:
        if which in (one.name, one.target):
            return one
    listed = ", ".join(one.target for one in shares) or "none"
    raise NotFound(f"{guest} has no share {which}.", hint=f"Its shares: {listed}")


for _command in (share_add, share_ls, share_rm):
    share.add_command(_command)
