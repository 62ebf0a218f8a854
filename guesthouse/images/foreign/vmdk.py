"""VMDK of strangers: only those that hold all of their disk in the one file.

Sources: VMware's "Virtual Disk Format 5.0", and QEMU's block/vmdk.c for what it would open: the
extents that a descriptor names, and the parent whose name stands anywhere near the descriptor.
"""

from __future__ import annotations

import re

from guesthouse.images.foreign.window import SECTOR, Foreign, Window, damaged, refused
from guesthouse.model.image import SourceFormat

KIND = SourceFormat.VMDK
SPARSE, ESX, TEXT = b"KDMV", b"COWD", b"# Disk DescriptorFile"

_HEADER = "<4sIIQQQQIQQQB4sH"
_DESCRIPTOR_AT = SECTOR  # where every writer has it, and where QEMU looks for the parent's name
_PARENT_SEARCH = 20 * SECTOR  # how far (vmdk.c: DESC_SIZE)
_LARGEST_DESCRIPTOR = 1 << 20  # bytes
_AT_END = (1 << 64) - 1  # of gdOffset: the header that counts stands in the footer
_FOOTER = 1024  # bytes before the end
_WHOLE = frozenset({"monolithicSparse", "streamOptimized"})
_NEWLINES = b"\n \r\n"
_PARTS = "Make it whole where its parts are: qemu-img convert -O qcow2 IMAGE WHOLE.qcow2"
_CREATE_TYPE = re.compile(r'^\s*createType\s*=\s*"?([^"\r\n]*)"?', re.MULTILINE)
_PARENT_CID = re.compile(r"^\s*parentCID\s*=\s*([0-9a-fA-F]+)", re.MULTILINE)
_EXTENT = re.compile(r"^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)", re.MULTILINE)


def look(fd: int, most: int) -> Foreign:
    """:raise InvalidInput: it is damaged, too large, or needs other files."""
    file = Window(fd, KIND)
    magic = file.read(0, 4, "its header")
    if magic == ESX:
        raise _parts("it is the data of one snapshot of an ESX server")
    if magic != SPARSE:
        raise _parts("it is a text that names the files in which the disk lies")
    size, gd_at = _header(file, 0, most)
    if gd_at == _AT_END:
        if file.size % SECTOR:  # QEMU, which counts whole sectors, would look elsewhere than we
            raise damaged(KIND, "it does not end with a whole sector")
        file.require(file.size - _FOOTER, _FOOTER, "its footer")
        if file.read(file.size - _FOOTER, 4, "its footer") != SPARSE:
            raise damaged(KIND, "it ends before its footer")
        size, _ = _header(file, file.size - _FOOTER, most)
    _descriptor(file)
    return Foreign(KIND, size)


def _header(file: Window, at: int, most: int) -> tuple[int, int]:
    """(virtual size, where the grain directory is) after the header there."""
    fields = file.unpack(_HEADER, at, "its header")
    _, version, _, capacity, grain, text_at, text_size, per_table, _, gd_at, _, _, eol, _ = fields
    if version not in {1, 2, 3}:
        raise damaged(KIND, f"its version {version} is unknown")
    if eol != _NEWLINES:
        raise damaged(KIND, "it was changed by a transfer as text")
    if not 8 <= grain <= 128 << 11 or grain & (grain - 1):  # sectors; 4 KiB to 128 MiB
        raise damaged(KIND, "its grains have a size that the format does not allow")
    if not 0 < per_table <= 512:
        raise damaged(KIND, "its tables have a size that the format does not allow")
    if capacity == 0 or text_size == 0 or text_at * SECTOR != _DESCRIPTOR_AT:
        # Without a capacity QEMU takes the descriptor's word for where the disk lies.
        raise _parts("it does not say by itself what disk it holds")
    size = file.check_size(capacity * SECTOR, most)
    tables = -(-capacity // (grain * per_table))
    if gd_at != _AT_END:
        file.require(gd_at * SECTOR, tables * 4, "its grain directory")
    return size, gd_at


def _descriptor(file: Window) -> None:
    """:raise InvalidInput: it has a parent, or lies in several files."""
    (sectors,) = file.unpack("<Q", 36, "its header")
    size = min(sectors * SECTOR, _LARGEST_DESCRIPTOR)
    raw = file.read(_DESCRIPTOR_AT, size, "its descriptor")
    near = file.read(
        _DESCRIPTOR_AT, min(_PARENT_SEARCH, file.size - _DESCRIPTOR_AT), "its descriptor"
    )
    text = raw.split(b"\0", 1)[0].decode("utf-8", "replace")
    parent = _PARENT_CID.search(text)
    if b"parentFileNameHint" in near + raw or (parent and parent[1].lower() != "ffffffff"):
        raise refused(
            KIND,
            "it holds only what differs from another disk",
            _PARTS,
            reason="backing-file",
        )
    kind = _CREATE_TYPE.search(text)
    if kind is None:
        raise damaged(KIND, "its descriptor does not say of what kind it is")
    if kind[1] not in _WHOLE:
        raise _parts(f"it is one of several files (kind {kind[1]})")
    if _EXTENT.findall(text) != ["SPARSE"]:
        raise _parts("its descriptor names other files")


def _parts(why: str) -> Exception:
    return refused(KIND, why, _PARTS, reason="other-files")
