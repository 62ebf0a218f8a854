"""VHD (Virtual PC, older Hyper-V) of strangers. Source: Microsoft's "Virtual Hard Disk Image
Format Specification", October 2006; QEMU calls the format `vpc`."""

from __future__ import annotations

import struct

from guesthouse.images.foreign.window import Foreign, Window, damaged, refused
from guesthouse.model.image import SourceFormat

KIND = SourceFormat.VPC
MAGIC = b"conectix"
FOOTER = 512  # bytes: at the end, and of a dynamic disk also at the beginning
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_DYNAMIC_MAGIC = b"cxsparse"
_LARGEST_BLOCK = 256 << 20  # bytes; many times what anybody writes


def look(fd: int, most: int) -> Foreign:
    """:raise InvalidInput: it is damaged, too large, or holds only a difference."""
    file = Window(fd, KIND)
    footer = file.read(0, FOOTER, "its footer")
    if not footer.startswith(MAGIC):
        footer = file.read(file.size - FOOTER, FOOTER, "its footer")
    if _checksum(footer, 64) != struct.unpack_from(">I", footer, 64)[0]:
        raise damaged(KIND, "the checksum of its footer is wrong")
    (dynamic_at,) = struct.unpack_from(">Q", footer, 16)
    (size,) = struct.unpack_from(">Q", footer, 48)
    (kind,) = struct.unpack_from(">I", footer, 60)
    file.check_size(size, most)
    if kind == _DIFFERENCING:
        raise _differs()
    if kind == _FIXED:
        file.require(0, size, "the end of its disk")
    elif kind == _DYNAMIC:
        _dynamic(file, dynamic_at, size)
    else:
        raise damaged(KIND, f"it is of a kind ({kind}) that the format does not know")
    return Foreign(KIND, size)


def _dynamic(file: Window, at: int, size: int) -> None:
    header = file.read(at, 1024, "its header")
    if not header.startswith(_DYNAMIC_MAGIC):
        raise damaged(KIND, "its second header is not where the first says")
    if _checksum(header, 36) != struct.unpack_from(">I", header, 36)[0]:
        raise damaged(KIND, "the checksum of its header is wrong")
    table_at, _, entries, block = struct.unpack_from(">QIII", header, 16)
    if header[40:56] != bytes(16):
        raise _differs()
    if not 512 <= block <= _LARGEST_BLOCK or block & (block - 1) or entries * block < size:
        raise damaged(KIND, "its table does not fit its size")
    file.require(table_at, entries * 4, "its table of blocks")


def _checksum(data: bytes, at: int) -> int:
    """One's complement of the sum of all bytes without those of the checksum at `at`."""
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF


def _differs() -> Exception:
    return refused(
        KIND,
        "it holds only what differs from another disk",
        "Make it whole in Hyper-V: Convert-VHD IMAGE WHOLE.vhdx -VHDType Dynamic",
        reason="backing-file",
    )
