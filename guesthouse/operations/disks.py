"""The disks of a new guest: over an image or beside a disc to boot from, and one for cloud-init."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from guesthouse.errors import InvalidInput, NotFound
from guesthouse.guestos import nocloud
from guesthouse.guestos.nocloud import CloudInit
from guesthouse.model.device import Disk, DiskDevice
from guesthouse.model.image import Image, ImageKind
from guesthouse.model.units import format_size
from guesthouse.model.volume import Volume, VolumeFormat
from guesthouse.operations.nvram import create_nvram, nvram_disk
from guesthouse.operations.rooms import Rooms

EMPTY_DISK = 20 << 30
"""Bytes of the empty disk beside a disc, if the launch names none."""
_GRANULE = 1 << 16  # bytes; disks are whole clusters


@dataclass
class Disks:
    """:ivar volumes: new ones, whose documents are yet to be written."""

    disks: list[Disk] = field(default_factory=list)
    volumes: list[Volume] = field(default_factory=list)

    def add(self, name: str, volume: Volume, *, read_only: bool = False) -> None:
        """A new volume, as a disk of that name."""
        self.volumes.append(volume)
        self.disks.append(
            Disk(name=name, volume=volume.id, size=volume.size, serial=name, read_only=read_only)
        )


def root_volume(image: Image, volume_id: str, size: int | None, guest: str) -> Volume | None:
    """The disk that a guest writes: over the image's, or empty beside a disc; None for an image
    that lives in its initrd. Nothing is made yet.

    :param size: bytes that the launch asks for. :param guest: its name.
    :raise InvalidInput: a disk smaller than the image's, or a disk for an image without one.
    """
    if image.kind is ImageKind.ISO:
        return Volume(
            id=volume_id,
            size=_whole(size or EMPTY_DISK),
            created_at=time.time(),
            note=f"root disk of {guest}",
        )
    if not image.volume:
        if size is not None:
            raise InvalidInput(
                f"The image {image.name} has no disk, so {format_size(size)} cannot be set.",
                hint="Leave --disk away, or launch another image.",
                field="disk",
            )
        return None
    wanted = size or image.virtual_size
    if wanted < image.virtual_size:
        raise InvalidInput(
            f"A disk of {format_size(wanted)} is smaller than the image's"
            f" {format_size(image.virtual_size)}.",
            hint=f"Use at least {format_size(image.virtual_size)}.",
            field="disk",
        )
    return Volume(
        id=volume_id,
        parent=image.volume,
        size=_whole(wanted),
        created_at=time.time(),
        note=f"root disk of {guest}",
    )


def _whole(size: int) -> int:
    return -(-size // _GRANULE) * _GRANULE


async def add_root(rooms: Rooms, disks: Disks, image: Image, root: Volume | None) -> None:
    """Make the root disk; safe to run again. A disc to boot from comes beside it."""
    if root is not None:
        if root.parent:
            parent = rooms.pool.path(rooms.view.volumes[root.parent])
            await rooms.pool.create_overlay(root, parent, root.size)
        else:
            await rooms.pool.create_empty(root)
        disks.add("root", root)
    if image.kind is ImageKind.ISO:
        disks.disks.append(
            Disk(
                name="cdrom",
                volume=image.volume,
                size=image.virtual_size,
                read_only=True,
                device=DiskDevice.CDROM,
            )
        )


async def add_nvram(rooms: Rooms, disks: Disks, volume_id: str, guest: str) -> None:
    """Make the volume of a UEFI guest's firmware; safe to run again."""
    volume = await create_nvram(rooms, volume_id, guest)
    disks.volumes.append(volume)
    disks.disks.append(nvram_disk(volume))


async def add_seed(
    rooms: Rooms, disks: Disks, volume_id: str, guest: str, name: str, keys: tuple[str, ...]
) -> None:
    """Make the disc for cloud-init from what is kept for it; safe to run again.

    :param guest: its id. :param keys: public ssh keys.
    """

    def content() -> bytes:
        try:
            kept = nocloud.kept(rooms.secrets, guest)
        except NotFound:
            kept = CloudInit()
        return nocloud.disc(guest, name, keys, kept)

    data = await asyncio.to_thread(content)
    # Not frozen: a frozen file may be read by everybody who reaches it.
    volume = Volume(
        id=volume_id,
        format=VolumeFormat.RAW,
        size=len(data),
        created_at=time.time(),
        note=f"cloud-init disc of {name}",
    )
    await rooms.pool.create_raw(volume, data)
    disks.add("seed", volume, read_only=True)
