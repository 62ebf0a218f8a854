"""VDI (VirtualBox) of strangers. Source: VirtualBox's VDICore.h, QEMU's block/vdi.c."""

from __future__ import annotations

from guesthouse.images.foreign.window import SECTOR, Foreign, Window, damaged, refused
from guesthouse.model.image import SourceFormat

KIND = SourceFormat.VDI
SIGNATURE_AT, SIGNATURE = 0x40, b"\x7f\x10\xda\xbe"
_DYNAMIC, _FIXED = 1, 2
_BLOCK = 1 << 20  # bytes; the only size that QEMU reads
_NOBODY = bytes(16)


def look(fd: int, most: int) -> Foreign:
    """:raise InvalidInput: it is damaged, too large, or holds only a difference."""
    file = Window(fd, KIND)
    version, _, kind = file.unpack("<III", 0x44, "its header")
    if version != 0x00010001:
        raise damaged(KIND, f"its version {version >> 16}.{version & 0xFFFF} is unknown")
    link, parent = file.read(0x1A8, 16, "its header"), file.read(0x1B8, 16, "its header")
    if kind not in {_DYNAMIC, _FIXED} or link != _NOBODY or parent != _NOBODY:
        raise refused(
            KIND,
            "it holds only what differs from another disk",
            "Make it whole in VirtualBox: VBoxManage clonemedium IMAGE WHOLE.vdi",
            reason="backing-file",
        )
    map_at, data_at = file.unpack("<II", 0x154, "its header")
    (sector,) = file.unpack("<I", 0x168, "its header")
    size, block, extra, blocks, allocated = file.unpack("<QIIII", 0x170, "its header")
    file.check_size(size, most)
    if sector != SECTOR or block != _BLOCK or extra:
        raise damaged(KIND, "its blocks have a size that the format does not allow")
    if map_at % SECTOR or data_at % SECTOR or blocks * block < size or allocated > blocks:
        raise damaged(KIND, "its header contradicts itself")
    file.require(map_at, blocks * 4, "its map of blocks")
    file.require(data_at, allocated * block, "the last of its blocks")
    return Foreign(KIND, size)
