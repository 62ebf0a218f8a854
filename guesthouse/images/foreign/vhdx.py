"""VHDX (Hyper-V) of strangers. Source: Microsoft's [MS-VHDX]."""

from __future__ import annotations

import uuid

from guesthouse.images.foreign.window import Foreign, Window, damaged, refused
from guesthouse.model.image import SourceFormat

KIND = SourceFormat.VHDX
MAGIC = b"vhdxfile"
_HEADERS = (64 << 10, 128 << 10)
_REGIONS = (192 << 10, 256 << 10)
_MOST_ENTRIES = 2047  # of a region or metadata table
_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_DISK_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_PARENT = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
_HAS_PARENT = 1 << 1  # of the file parameters' flags
_WHOLE = "Make it whole in Hyper-V: Convert-VHD IMAGE WHOLE.vhdx -VHDType Dynamic"


def look(fd: int, most: int) -> Foreign:
    """:raise InvalidInput: it is damaged, too large, or holds only a difference."""
    file = Window(fd, KIND)
    _log_is_empty(file)
    # Both copies, since QEMU may take either.
    sizes = {_through(file, table, most) for table in _REGIONS}
    if len(sizes) != 1:
        raise damaged(KIND, "its two tables of regions contradict each other")
    return Foreign(KIND, sizes.pop())


def _log_is_empty(file: Window) -> None:
    """The newer of the two headers counts."""
    newest, log = -1, bytes(16)
    for at in _HEADERS:
        signature, _, sequence = file.unpack("<4sIQ", at, "its header")
        if signature == b"head" and sequence > newest:
            newest, log = sequence, file.read(at + 48, 16, "its header")
    if newest < 0:
        raise damaged(KIND, "it has no header")
    if log != bytes(16):
        raise refused(
            KIND,
            "it was not closed properly, and its log holds changes",
            "Start and stop its machine in Hyper-V once, or: qemu-img check -r all IMAGE",
            reason="unclean",
        )


def _through(file: Window, table: int, most: int) -> int:
    """The virtual size, by way of the table of regions at `table`."""
    signature, _, count = file.unpack("<4sII", table, "its table of regions")
    if signature != b"regi" or count > _MOST_ENTRIES:
        raise damaged(KIND, "its table of regions is broken")
    for index in range(count):
        guid, at, size = file.unpack("<16sQI", table + 16 + 32 * index, "its table of regions")
        file.require(at, size, "one of its regions")
        if uuid.UUID(bytes_le=guid) == _METADATA:
            return _metadata(file, at, size, most)
    raise damaged(KIND, "it has no metadata")


def _metadata(file: Window, region: int, length: int, most: int) -> int:
    signature, _, count = file.unpack("<8sHH", region, "its metadata")
    if signature != b"metadata" or count > _MOST_ENTRIES:
        raise damaged(KIND, "its metadata is broken")
    size = 0
    for index in range(count):
        guid, at, extent = file.unpack("<16sII", region + 32 + 32 * index, "its metadata")
        if at + extent > length:
            raise damaged(KIND, "a part of its metadata lies outside of it")
        item = uuid.UUID(bytes_le=guid)
        if item == _PARENT:
            raise _differs()
        if item == _PARAMETERS:
            _, flags = file.unpack("<II", region + at, "its parameters")
            if flags & _HAS_PARENT:
                raise _differs()
        if item == _DISK_SIZE:
            (size,) = file.unpack("<Q", region + at, "its size")
    return file.check_size(size, most)


def _differs() -> Exception:
    return refused(
        KIND, "it holds only what differs from another disk", _WHOLE, reason="backing-file"
    )
