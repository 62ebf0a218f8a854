"""Partition tables written as bytes: GPT with its protective MBR, and GRUB's first sectors in it.

UEFI Specification 2.10, chapter 5 (GPT); GRUB's util/setup.c (what grub-bios-setup patches).
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

SECTOR = 512
MIB = 1 << 20

BIOS_BOOT = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
EFI_SYSTEM = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX_ROOT_X86_64 = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")

_ENTRIES, _ENTRY_BYTES = 128, 128
_TABLE_SECTORS = _ENTRIES * _ENTRY_BYTES // SECTOR

# Places in GRUB's boot.img and diskboot.img (include/grub/i386/pc/boot.h).
_BOOT_KERNEL_SECTOR = 0x5C
_BOOT_DRIVE_CHECK = 0x66
_BOOT_CODE_END = 440
_DISKBOOT_BLOCKLIST = SECTOR - 12
_CORE_SEGMENT = 0x820


@dataclass(frozen=True)
class Partition:
    """`start` and `size` in bytes, multiples of a sector."""

    number: int
    kind: uuid.UUID
    label: str
    start: int
    size: int


def write_table(disk: BinaryIO, size: int, partitions: Sequence[Partition], mbr: bytes) -> None:
    """Writes the protective MBR with the code of `mbr`, and both copies of the GPT.

    `size` is that of the disk in bytes.
    """
    total = size // SECTOR
    table = bytearray(_ENTRIES * _ENTRY_BYTES)
    for one in partitions:
        first = one.start // SECTOR
        entry = one.kind.bytes_le + uuid.uuid4().bytes_le
        entry += struct.pack("<QQQ", first, first + one.size // SECTOR - 1, 0)
        entry += one.label.encode("utf-16-le").ljust(72, b"\0")
        place = (one.number - 1) * _ENTRY_BYTES
        table[place : place + _ENTRY_BYTES] = entry
    disk_id = uuid.uuid4()
    disk.seek(0)
    disk.write(_protective_mbr(mbr, total))
    disk.write(_header(disk_id, table, total=total, here=1, other=total - 1, entries=2))
    disk.write(table)
    disk.seek((total - 1 - _TABLE_SECTORS) * SECTOR)
    disk.write(table)
    entries = total - 1 - _TABLE_SECTORS
    disk.write(_header(disk_id, table, total=total, here=total - 1, other=1, entries=entries))


def boot_sector(boot_image: bytes, core_start: int) -> bytes:
    """GRUB's boot.img told where its core begins (bytes), for a disk and not a floppy."""
    code = bytearray(boot_image[:SECTOR])
    struct.pack_into("<Q", code, _BOOT_KERNEL_SECTOR, core_start // SECTOR)
    code[_BOOT_DRIVE_CHECK : _BOOT_DRIVE_CHECK + 2] = b"\x90\x90"  # nop: trust the BIOS's drive
    return bytes(code[:_BOOT_CODE_END])


def embedded_core(core_image: bytes, start: int) -> bytes:
    """GRUB's core.img told where the rest of it lies when it is written at `start` (bytes)."""
    core = bytearray(core_image + b"\0" * (-len(core_image) % SECTOR))
    sectors = len(core) // SECTOR - 1
    blocks = struct.pack("<QHH", start // SECTOR + 1, sectors, _CORE_SEGMENT)
    core[_DISKBOOT_BLOCKLIST:SECTOR] = blocks
    return bytes(core)


def _protective_mbr(code: bytes, total: int) -> bytes:
    entry = struct.pack("<8BII", 0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, min(total - 1, 0xFFFFFFFF))
    return code[:_BOOT_CODE_END].ljust(446, b"\0") + entry + bytes(48) + b"\x55\xaa"


def _header(
    disk_id: uuid.UUID, table: bytes | bytearray, *, total: int, here: int, other: int, entries: int
) -> bytes:
    usable = (2 + _TABLE_SECTORS, total - 2 - _TABLE_SECTORS)
    places = (here, other, *usable, disk_id.bytes_le, entries)
    sizes = (_ENTRIES, _ENTRY_BYTES, zlib.crc32(table))

    def packed(checksum: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, checksum, 0, *places, *sizes
        )

    return packed(zlib.crc32(packed(0))).ljust(SECTOR, b"\0")
