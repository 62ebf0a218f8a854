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
    if arguments[:1] == ["ls"] and "_GUEST_COMPLETE" not in os.environ:
        from guesthouse.cli.fast import list_guests

        if list_guests(arguments[1:]):
            return 0
    from guesthouse.cli.app import run

    return run(arguments)
