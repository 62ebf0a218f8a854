"""`guest cp`: files between this host and a guest, as a tar stream through `exec`.

This process opens the files of the host itself; the daemon sees bytes only.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import NamedTuple

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, complete_paths
from guesthouse.cli.session import open_house
from guesthouse.cli.transfer import (
    Counter,
    Pipe,
    fetch_contents,
    fetch_tree,
    probe,
    send_contents,
    send_tree,
)
from guesthouse.errors import InvalidInput, NotFound

STREAM = "-"


class Place(NamedTuple):
    """One side of a copy. :ivar guest: empty for this host."""

    guest: str
    path: str

    @property
    def stream(self) -> bool:
        return not self.guest and self.path == STREAM


@command(
    "cp",
    examples=[
        ("guest cp site.conf web:/etc/nginx/conf.d/", "Into a folder of the guest"),
        ("guest cp -r ./site web:/srv/www", "A folder; as /srv/www/site if /srv/www exists"),
        ("guest cp web:/var/log/syslog .", "Out of the guest"),
        ("guest cp web:/etc/os-release -", "To standard output"),
        ("pg_dump shop | guest cp - db:/root/shop.sql", "From standard input"),
    ],
)
@click.option("--recursive", "-r", is_flag=True, help="Copy folders and all below them.")
@click.option("--user", "-u", default="root", show_default=True, help="As whom in the guest.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@click.argument("source", metavar="SOURCE", shell_complete=complete_paths)
@click.argument("target", metavar="TARGET", shell_complete=complete_paths)
def cp(source: str, target: str, recursive: bool, user: str, quiet: bool) -> int:
    """Copy files to or from a guest.

    One of SOURCE and TARGET is NAME:PATH; a relative PATH starts at the user's home. If TARGET is
    a folder, the copy goes into it under its own name (SOURCE/. copies the contents alone), else it
    gets the name of TARGET. Modes and times are kept. '-' is the contents of a single file on
    standard input or output.
    """
    here, there = place(source), place(target)
    if bool(here.guest) == bool(there.guest):
        raise InvalidInput(
            "Exactly one side must be a guest's: NAME:PATH.",
            hint="To copy between guests, copy to this host first, or pipe: "
            "guest cp a:/file - | guest cp - b:/file",
            field="target",
        )
    house = open_house()
    counter = Counter(quiet=quiet or here.stream or there.stream)
    with counter:
        if here.guest:
            _out(Pipe(house.transport, here.guest, user), here, there, recursive, counter)
        else:
            _into(Pipe(house.transport, there.guest, user), here, there, recursive, counter)
    for path, why in counter.left_out:
        output.warning(f"left out {path}: {why}")
    return 1 if counter.left_out else 0


def place(text: str) -> Place:
    """`NAME:PATH` or a path of this host; `./a:b` is a path, as with scp.

    :raise InvalidInput: an empty path.
    """
    name, colon, path = text.partition(":")
    if not colon or "/" in name or not name or name.startswith("."):
        if not text:
            raise InvalidInput("A path must not be empty.", field="path")
        return Place("", text)
    # The command that opens it starts at the user's home, so `~` is the empty beginning.
    path = path.removeprefix("~/") if path != "~" else "."
    return Place(name, f"./{path}" if path.startswith("-") else path or ".")


def _into(pipe: Pipe, here: Place, there: Place, recursive: bool, counter: Counter) -> None:
    found = probe(pipe, there.path)
    if here.stream:
        if found.kind == "folder":
            raise InvalidInput(
                f"{there.path} is a folder in {there.guest}; standard input needs a file's name.",
                hint=f"Write {there.guest}:{there.path.rstrip('/')}/NAME.",
                field="target",
            )
        send_contents(pipe, there.path)
        return
    source = Path(here.path)
    if not os.path.lexists(source):
        raise NotFound(f"There is no {here.path} on this host.", hint="Check the path.")
    if source.is_dir():
        _need_recursive(here.path, recursive)
    folder, name = _landing(
        there, found.kind, found.parent, _own_name(here.path) or source.resolve().name
    )
    if found.kind == "file" and source.is_dir():
        raise InvalidInput(
            f"{there.path} is a file in {there.guest}, and {here.path} is a folder.",
            hint="Choose another target.",
            field="target",
        )
    send_tree(pipe, source, folder, name, counter)


def _out(pipe: Pipe, here: Place, there: Place, recursive: bool, counter: Counter) -> None:
    found = probe(pipe, here.path)
    if found.kind in {"none", "no-parent"}:
        raise NotFound(
            f"There is no {here.path} in {here.guest}.",
            hint=f"Look around with: guest exec {here.guest} -- ls {posixpath.dirname(here.path)}",
        )
    if found.kind == "folder":
        if there.stream:
            raise InvalidInput(
                f"{here.path} is a folder; '-' takes a single file.",
                hint=f"Use: guest exec {here.guest} -- tar c {here.path} | tar x",
                field="target",
            )
        _need_recursive(here.path, recursive)
    if there.stream:
        fetch_contents(pipe, here.path)
        return
    target = Path(there.path)
    kind = "folder" if target.is_dir() else "file" if os.path.lexists(target) else "none"
    own = _own_name(here.path) or posixpath.basename(found.real) or here.guest
    folder, name = _landing(there, kind, target.parent.is_dir(), own)
    if kind == "file" and found.kind == "folder":
        raise InvalidInput(
            f"{there.path} is a file, and {here.path} is a folder.",
            hint="Choose another target.",
            field="target",
        )
    fetch_tree(pipe, found.real, Path(folder), name, counter)


def _landing(there: Place, kind: str, parent: bool, own: str) -> tuple[str, str]:
    """(folder, name) under which the copy arrives.

    :raise NotFound: the folder that is to hold it is not there.
    """
    where = there.guest or "this host"
    if kind == "folder":
        return there.path, own
    if there.path.endswith("/") or not parent:
        missing = there.path if there.path.endswith("/") else posixpath.dirname(there.path)
        command = f"guest exec {there.guest} -- mkdir" if there.guest else "mkdir"
        raise NotFound(
            f"There is no folder {missing} {'in' if there.guest else 'on'} {where}.",
            hint=f"Make it first: {command} -p {missing}",
        )
    return posixpath.dirname(there.path) or ".", posixpath.basename(there.path)


def _own_name(path: str) -> str:
    """What a copy of `path` is called in a folder: `.` (its contents alone) if `path` ends in `.`,
    empty if it says nothing (`..`, `/`)."""
    if path == "." or path.endswith("/."):
        return "."
    name = posixpath.basename(posixpath.normpath(path))
    return "" if name == ".." else name


def _need_recursive(path: str, recursive: bool) -> None:
    if not recursive:
        raise InvalidInput(
            f"{path} is a folder.", hint="Copy it with all below it: guest cp -r …", field="source"
        )
