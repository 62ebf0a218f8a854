"""Start: ``python3 -I -S …/inside/__main__.py start`` or ``… porter``."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run the program that the first argument names. Returns the exit code."""
    if not __package__:
        # Appended, never first: nothing beside the package may shadow the library.
        folder = os.path.realpath(__file__)
        for _ in range(5):
            folder = os.path.dirname(folder)  # noqa: PTH120 (pathlib would cost a third of the start)
        sys.path.append(folder)
    if sys.argv[1] == "porter":
        from guesthouse.host.namespace.inside import porter

        return porter.main(sys.argv[2:])
    from guesthouse.host.namespace.inside import starter

    return starter.main()


if __name__ == "__main__":
    sys.exit(main())
