"""Discs to boot from: ISO 9660 (ECMA-119) with an El Torito boot record."""

from __future__ import annotations

from guesthouse.images.foreign.window import Foreign, Window, damaged, refused
from guesthouse.model.image import SourceFormat

KIND = SourceFormat.ISO
BLOCK = 2048
MAGIC_AT, MAGIC = 16 * BLOCK + 1, b"CD001"
_PRIMARY, _BOOT, _END = 1, 0, 255  # types of volume descriptors
_EL_TORITO = b"EL TORITO SPECIFICATION"
_MOST = 64  # descriptors that anybody has


def look(fd: int, most: int) -> Foreign:
    """:raise InvalidInput: it is damaged, too large, or nothing boots from it."""
    file = Window(fd, KIND)
    claimed, bootable = 0, False
    for number in range(16, 16 + _MOST):
        data = file.read(number * BLOCK, BLOCK, "one of its volume descriptors")
        if data[1:6] != MAGIC:
            raise damaged(KIND, "its volume descriptors do not end")
        if data[0] == _END:
            break
        if data[0] == _PRIMARY:
            claimed = int.from_bytes(data[80:84], "little") * BLOCK
        bootable |= data[0] == _BOOT and data[7:].startswith(_EL_TORITO)
    else:
        raise damaged(KIND, "its volume descriptors do not end")
    file.check_size(claimed, most)
    file.check_size(file.size, most)
    file.require(0, claimed, "the end of its volume")
    if not bootable:
        raise refused(
            KIND,
            "nothing boots from it: it has no El Torito boot record",
            "Copy its files into a guest instead: guest cp",
            reason="not-bootable",
        )
    return Foreign(KIND, -(-file.size // BLOCK) * BLOCK)
