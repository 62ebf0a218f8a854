"""What is in use, computed from documents and never counted. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from guesthouse.model.guest import Guest
from guesthouse.model.image import Image
from guesthouse.model.states import GuestState
from guesthouse.model.volume import Volume

DOOMED = "deleting"
"""Note of a volume whose owner is gone: the next collection deletes it if nobody uses it."""


class Holder(NamedTuple):
    """Anything that holds layers beside guests and images, such as a snapshot.

    :ivar label: for people: `snapshot before-upgrade of guest web`.
    :ivar volumes: ids of the layers that it holds directly.
    """

    label: str
    volumes: tuple[str, ...]


def doom(volume: Volume) -> Volume:
    """Mark a volume for deletion."""
    return msgspec.structs.replace(volume, note=DOOMED)


def lineage(volumes: Mapping[str, Volume], top: str) -> list[str]:
    """Ids from `top` down to its base. Ends at an id without a document, and before a loop."""
    found: list[str] = []
    seen: set[str] = set()
    current = top
    while current and current not in seen:
        seen.add(current)
        found.append(current)
        volume = volumes.get(current)
        current = volume.parent if volume else ""
    return found


def layers_in_use(
    guests: Iterable[Guest],
    images: Iterable[Image],
    volumes: Iterable[Volume],
    snapshots: Iterable[Holder] = (),
) -> set[str]:
    """Ids of all layers that somebody holds, directly or below a layer that is held.

    Ids that have no document are in it too: what is referred to is never touched.
    """
    by_id = _by_id(volumes)
    used: set[str] = set()
    for _, top in _held(guests, images, snapshots):
        current = top
        while current and current not in used:
            used.add(current)
            volume = by_id.get(current)
            current = volume.parent if volume else ""
    return used


def unused(
    guests: Iterable[Guest],
    images: Iterable[Image],
    volumes: Iterable[Volume],
    snapshots: Iterable[Holder] = (),
) -> list[Volume]:
    """Volumes that nobody holds, children before their parents."""
    by_id = _by_id(volumes)
    used = layers_in_use(guests, images, by_id.values(), snapshots)
    idle = [volume for volume in by_id.values() if volume.id not in used]
    return sorted(idle, key=lambda volume: (-len(lineage(by_id, volume.id)), volume.id))


def users_of(
    volume_id: str,
    guests: Iterable[Guest],
    images: Iterable[Image],
    volumes: Iterable[Volume],
    snapshots: Iterable[Holder] = (),
) -> list[str]:
    """Who holds this layer, directly or through layers above it, as people call them."""
    by_id = _by_id(volumes)
    return list(
        dict.fromkeys(
            label
            for label, top in _held(guests, images, snapshots)
            if volume_id in lineage(by_id, top)
        )
    )


def tops_of(guest: Guest) -> list[str]:
    """Ids of the top layers of its disks; a live guest may have open what its spec has dropped."""
    live = guest.launch if guest.state is not GuestState.STOPPED else None
    disks = (*guest.spec.disks, *(live.spec.disks if live else ()))
    return list(dict.fromkeys(disk.volume for disk in disks))


def _by_id(volumes: Iterable[Volume]) -> dict[str, Volume]:
    return {volume.id: volume for volume in volumes}


def _held(
    guests: Iterable[Guest], images: Iterable[Image], snapshots: Iterable[Holder]
) -> Iterable[tuple[str, str]]:
    """(label, id of a layer held directly)."""
    for guest in guests:
        for top in tops_of(guest):
            yield f"guest {guest.name}", top
    for image in images:
        if image.volume:
            yield f"image {image.name}", image.volume
    for holder in snapshots:
        for volume in holder.volumes:
            yield holder.label, volume
