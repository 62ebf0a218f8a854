"""The layers of a disk, from its top down to its base. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from guesthouse.errors import EngineError, NotFound
from guesthouse.model.volume import Volume


def resolve(volumes: Mapping[str, Volume], top: str) -> list[Volume]:
    """The layers of the disk whose top is `top`, top first.

    :raise NotFound: a layer has no document. :raise EngineError: the layers form a loop, or one
        that lies below another is not immutable.
    """
    found: list[Volume] = []
    seen: set[str] = set()
    current = top
    while current:
        if current in seen:
            raise EngineError(
                f"The layers of disk {top} form a loop at {current}.",
                hint="Its documents are damaged; the files are left untouched.",
            )
        seen.add(current)
        volume = volumes.get(current)
        if volume is None:
            below = f", which lies below {found[-1].id}" if found else ""
            raise NotFound(
                f"There is no disk {current}{below}.",
                hint="`guest doctor` tells what is missing.",
            )
        if found and not volume.immutable:
            raise EngineError(
                f"Disk {volume.id} lies below {found[-1].id} but may still be written.",
                hint="Its documents are damaged; the files are left untouched.",
            )
        found.append(volume)
        current = volume.parent
    return found
