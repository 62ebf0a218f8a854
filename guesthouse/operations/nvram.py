"""The volume in which a UEFI guest's firmware keeps its variables (boot entries and the like)."""

from __future__ import annotations

import time

from guesthouse.drivers.base import NVRAM
from guesthouse.errors import HostLacks
from guesthouse.host.firmware import Ovmf, find_ovmf
from guesthouse.model.device import Disk
from guesthouse.model.guest import GuestSpec
from guesthouse.model.volume import Volume
from guesthouse.operations.rooms import Rooms


def has_nvram(spec: GuestSpec) -> bool:
    return any(disk.name == NVRAM for disk in spec.disks)


async def create_nvram(rooms: Rooms, volume_id: str, guest_name: str) -> Volume:
    """A volume with the firmware's pristine variables; safe to run again.

    :raise HostLacks: this host has no UEFI firmware.
    """
    variables = _firmware().variables
    volume = Volume(
        id=volume_id,
        size=variables.stat().st_size,
        created_at=time.time(),
        note=f"UEFI variables of {guest_name}",
    )
    await rooms.pool.create_filled(volume, variables)
    return volume


def nvram_disk(volume: Volume) -> Disk:
    return Disk(name=NVRAM, volume=volume.id, size=volume.size)


def _firmware() -> Ovmf:
    found = find_ovmf()
    if found is None:
        raise HostLacks(
            "This host has no UEFI firmware.", hint="apt install ovmf", capability="ovmf"
        )
    return found
