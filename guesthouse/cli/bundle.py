"""`guest doctor --bundle`: the file for support."""

from __future__ import annotations

import os
from pathlib import Path

from guesthouse.cli import output
from guesthouse.client.house import House
from guesthouse.errors import Conflict, InvalidInput
from guesthouse.model.units import format_size


def write_bundle(house: House, path: Path) -> None:
    """Write the house's support bundle to a new file, for its owner only; whole or not at all.

    :raise Conflict: there is a file of that name. :raise InvalidInput: it cannot be written there.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Conflict(
            f"There is already a file {path}.", hint="Choose another name, or remove it first."
        ) from None
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be written: {error.strerror}.", hint="Choose another place."
        ) from error
    try:
        with os.fdopen(fd, "wb") as file, house.support_bundle() as stream:
            for piece in stream:
                file.write(piece)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    output.result(f"Wrote {path} ({format_size(path.stat().st_size)})")
    output.note("it holds no keys and no consoles of guests; look through it before you send it")
