"""Where the command `guest` begins.

`guest ls` is typed more often than all others and is held to three times the start of a bare
interpreter, so it takes a short way that imports neither click nor msgspec nor an HTTP library.
Whatever is not plain there falls through to the full program, which does the same and explains.
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run `guest` with the arguments of the process; returns its exit code."""
    arguments = sys.argv[1:]
    if short(arguments):
        # Everything is written. Taking the interpreter apart would cost a fifth of the whole time.
        os._exit(0)
    return full(arguments)


def short(arguments: list[str]) -> bool:
    """Do it the short way if there is one; whether it is done."""
    if arguments[:1] != ["ls"] or "_GUEST_COMPLETE" in os.environ:
        return False
    from guesthouse.cli.fast import list_guests

    return list_guests(arguments[1:])


def full(arguments: list[str]) -> int:
    """The exit code of the full program."""
    from guesthouse.cli.app import run

    return run(arguments)
