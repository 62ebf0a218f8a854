"""Start: ``python3 -I -S …/server/__main__.py CONFIG-AS-JSON``; see entry.py."""

from __future__ import annotations

import sys
from pathlib import Path


def start() -> int:
    """Make this folder importable as a package of its own, then run. Returns the exit code."""
    global __package__
    if not __package__:
        # Appended, never first: the neighbours in guesthouse/shares must not shadow the library.
        sys.path.append(str(Path(__file__).resolve().parent.parent))
        __package__ = "server"
    from .entry import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(start())
