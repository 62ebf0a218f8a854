"""The command `guest`: which commands there are, and how their errors reach the user.

A command's module is imported when it is used. The summaries stand here so that `guest --help` need
not import them all; a test compares them with the commands' own.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import click
from click.shell_completion import shell_complete

from guesthouse import __version__
from guesthouse.cli import output
from guesthouse.cli.codes import INTERRUPTED, PIPE_CLOSED
from guesthouse.cli.command import write_examples
from guesthouse.errors import GuesthouseError, Internal, InvalidInput, Shortage

COMPLETE = "_GUEST_COMPLETE"
"""The variable by which a shell's completion script asks us, click's way."""


class Place(NamedTuple):
    """Where a command lives: module below `guesthouse.cli`, object in it, one line of help."""

    module: str
    attribute: str
    summary: str


SECTIONS: dict[str, dict[str, Place]] = {
    "Guests": {
        "launch": Place("launch", "launch", "Create a guest, start it and wait until it is ready."),
        "ls": Place("ls", "ls", "List the guests."),
        "info": Place("info", "info", "Show everything about a guest."),
        "top": Place("top", "top", "Show what running guests take of this host."),
        "start": Place("guests", "start", "Start guests."),
        "stop": Place("guests", "stop", "Shut guests down."),
        "restart": Place("guests", "restart", "Shut guests down and start them again."),
        "pause": Place("guests", "pause", "Stop the CPUs of guests where they are."),
        "resume": Place("guests", "resume", "Let paused guests go on."),
        "reset": Place("guests", "reset", "Press the reset button of guests."),
        "rm": Place("remove", "rm", "Remove guests and their disks."),
        "undelete": Place("trash", "undelete", "Bring a removed guest back from the trash."),
        "trash": Place("trash", "trash", "The trash: removed guests that can be brought back."),
        "rename": Place("change", "rename", "Give a guest another name."),
        "set": Place("change", "set_guest", "Change what a guest has: cpus, memory, disk, …"),
    },
    "Inside a guest": {
        "exec": Place("execute", "execute", "Run a command in a guest."),
        "shell": Place("execute", "shell", "Open a login shell in a guest."),
        "console": Place("console", "console", "Attach to a guest's serial console."),
        "cp": Place("copy", "cp", "Copy files to or from a guest."),
        "share": Place("sharing", "share", "Shared folders: a folder of this host in a guest."),
        "logs": Place("logs", "logs", "Show what a guest, its engine or the house logged."),
        "screenshot": Place("screenshot", "screenshot", "Save a picture of a guest's screen."),
    },
    "Network": {
        "network": Place(
            "networks",
            "network",
            "Networks: which guests reach each other, and how they reach the world.",
        ),
        "nic": Place(
            "nics", "nic", "Network cards of a guest: they come, change and go while it runs."
        ),
        "firewall": Place("firewall", "firewall", "Firewalls: who may send what to which guest."),
        "publish": Place("ports", "publish", "Lead a port of this host into a guest."),
        "unpublish": Place("ports", "unpublish", "Close a published port."),
    },
    "The house": {
        "image": Place("image", "image", "Images: what guests are made from."),
        "job": Place("jobs", "job", "Jobs: everything that changes the house."),
        "daemon": Place("daemon", "daemon", "The daemon: status, start, stop, restart."),
        "recover": Place("recover", "recover", "Rebuild a lost or damaged database."),
        "doctor": Place("doctor", "doctor", "Say what this host can do, and how to cure the rest."),
        "completion": Place("completion", "completion", "Print the completion script of a shell."),
        "version": Place("version", "version", "Print the versions of program and daemon."),
    },
}

COMMANDS: dict[str, Place] = {
    name: place for section in SECTIONS.values() for name, place in section.items()
}

ELSEWHERE = {
    "create": "launch", "run": "launch", "new": "launch", "list": "ls", "ps": "ls",
    "status": "ls", "show": "info", "inspect": "info", "get": "info", "delete": "rm",
    "remove": "rm", "destroy": "rm", "kill": "stop --force", "poweroff": "stop",
    "shutdown": "stop", "reboot": "restart", "unpause": "resume", "continue": "resume",
    "mv": "rename", "update": "set", "config": "set", "ssh": "shell", "attach": "console",
    "copy": "cp", "push": "cp", "pull": "cp", "transfer": "cp", "log": "logs", "port": "publish",
    "expose": "publish", "images": "image ls", "build": "image build",
    "import": "image import", "jobs": "job ls",
    "networks": "network ls", "net": "network ls", "nics": "nic ls", "cards": "nic ls",
    "capture": "nic capture",
    "fw": "firewall", "ufw": "firewall", "rules": "firewall ls",
    "stats": "top", "restore": "undelete", "purge": "trash empty",
}  # fmt: skip
"""What other programs call our commands."""

EXAMPLES = (
    ("guest launch debian/12 web --publish 8080:80", "A machine in one line"),
    ("guest exec web -- apt-get install -y nginx", ""),
    ("guest shell web", ""),
    ("guest ls", ""),
    ("guest rm web", ""),
)


class App(click.Group):
    """The top of the command line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        found = getattr(importlib.import_module(f"guesthouse.cli.{place.module}"), place.attribute)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            raise unknown_command(name, list(COMMANDS), ELSEWHERE)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, place.summary) for name, place in commands.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, EXAMPLES)


def unknown_command(
    name: str, known: Sequence[str], elsewhere: dict[str, str], *, above: str = "guest"
) -> InvalidInput:
    """The error for a command that there is not, with the one that was likely meant."""
    from difflib import get_close_matches

    near = [elsewhere[name]] if name in elsewhere else get_close_matches(name, known, n=2)
    meant = " or ".join(f"'{above} {one}'" for one in near)
    return InvalidInput(
        f"There is no command '{above} {name}'.",
        hint=f"Did you mean {meant}?" if meant else f"See what there is with: {above} --help",
        field="command",
    )


@click.group(
    cls=App,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="guest")
def app() -> None:
    """Guesthouse: virtual machines on this Linux host.

    Say 'guest COMMAND --help' for a command's options and examples.
    """


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns its exit code (docs/reference/exit-codes.md)."""
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        code = PIPE_CLOSED
    except OSError as error:
        output.error(
            Shortage(
                f"The result cannot be written: {error.strerror}.",
                hint="Look at where standard output leads.",
            )
        )
        code = Shortage.exit_code
    # Python would complain again when it flushes at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def _dispatch(arguments: Sequence[str]) -> int:
    try:
        if COMPLETE in os.environ:
            return shell_complete(app, {}, "guest", COMPLETE, os.environ[COMPLETE])
        if arguments[:1] == ["help"]:  # as git and apt have it
            arguments = [*arguments[1:], "--help"]
        with app.make_context("guest", list(arguments)) as context:
            done: Any = app.invoke(context)
        return done if isinstance(done, int) else 0
    except click.exceptions.Exit as left:
        return left.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
            raise
        if os.environ.get("GUESTHOUSE_DEBUG"):
            raise
        problem, code = _explained(error)
        output.error(problem)
        return code


def _explained(error: Exception) -> tuple[GuesthouseError, int]:
    """The error as we say it, and the exit code."""
    if isinstance(error, GuesthouseError):
        return error, error.exit_code
    if isinstance(error, click.UsageError):
        return _usage(error), InvalidInput.exit_code
    if isinstance(error, click.ClickException):
        return InvalidInput(error.format_message()), InvalidInput.exit_code
    defect = Internal(
        f"This is a defect of guest itself: {type(error).__name__}: {error}.",
        hint="Run it again with GUESTHOUSE_DEBUG=1 and report what it prints.",
    )
    return defect, defect.exit_code


def _usage(error: click.UsageError) -> InvalidInput:
    context = error.ctx
    # click lists choices below each other, by tabs.
    message = " ".join(error.format_message().split())
    path = context.command_path if context is not None else "guest"
    if isinstance(error, click.exceptions.NoSuchOption) and error.possibilities:
        message = f"No such option: {error.option_name}"
        hint = f"Did you mean {' or '.join(sorted(error.possibilities))}?"
    else:
        hint = f"See: {path} --help"
    return InvalidInput(message, hint=hint)
