"""What a file is, told from its first and last bytes, and whether this house takes it.

Nothing but our own reading decides: a tool that probes formats lets the content of a raw disk say
that it is a qcow2 over /etc/shadow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from guesthouse.errors import InvalidInput
from guesthouse.images.foreign import iso, qcow2, vdi, vhdx, vmdk, vpc
from guesthouse.images.foreign.window import SECTOR, Foreign, Window, refused
from guesthouse.model.image import SourceFormat
from guesthouse.storage.qcow2 import MAGIC as QCOW2_MAGIC

F = SourceFormat
_BEGINNING = iso.MAGIC_AT + len(iso.MAGIC)
_LOOKS: dict[SourceFormat, Callable[[int, int], Foreign]] = {
    F.QCOW2: qcow2.look,
    F.VMDK: vmdk.look,
    F.VDI: vdi.look,
    F.VHDX: vhdx.look,
    F.VPC: vpc.look,
    F.ISO: iso.look,
}
_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"7z\xbc\xaf\x27\x1c": ("7z", "7z x"),
}
_TAR_AT, _TAR = 257, b"ustar"
_KNOWN = ", ".join(kind.value for kind in F)
_SAY = "If it is a raw disk all the same, say so: --format raw"


def look(fd: int, wanted: SourceFormat | None, most: int) -> Foreign:
    """Look at an open file that nobody writes. Blocks shortly.

    :param wanted: the format that the user named; it must be that. :param most: bytes of its disk.
    :raise InvalidInput: not a format that we take, or refused; `detail["reason"]` says which.
    """
    found = recognise(fd)
    if wanted is F.RAW:  # whatever its bytes say, they are the disk's
        return _raw(fd, most)
    if found is None:
        raise _unknown(fd)
    if wanted is not None and wanted is not found:
        raise InvalidInput(
            f"The file is not {wanted.value}: it looks like {found.value}.",
            hint=f"Leave --format away, or name {found.value}.",
            field="format",
            format=found.value,
            reason="another-format",
        )
    return _raw(fd, most) if found is F.RAW else _LOOKS[found](fd, most)


def recognise(fd: int) -> SourceFormat | None:
    """By magic numbers; a raw disk by its partition table. None for anything else."""
    start = os.pread(fd, _BEGINNING, 0)
    end = os.pread(fd, vpc.FOOTER, max(0, os.fstat(fd).st_size - vpc.FOOTER))
    marks = (
        (F.QCOW2, start.startswith(QCOW2_MAGIC)),
        (F.VMDK, start.startswith((vmdk.SPARSE, vmdk.ESX, vmdk.TEXT))),
        (F.VHDX, start.startswith(vhdx.MAGIC)),
        (F.VPC, start.startswith(vpc.MAGIC)),
        (F.VDI, start[vdi.SIGNATURE_AT :].startswith(vdi.SIGNATURE)),
        (F.ISO, start[iso.MAGIC_AT :] == iso.MAGIC),
        (F.VPC, end.startswith(vpc.MAGIC)),
        (F.RAW, start[510:512] == b"\x55\xaa" or start[SECTOR:].startswith(b"EFI PART")),
    )
    return next((kind for kind, fits in marks if fits), None)


def _raw(fd: int, most: int) -> Foreign:
    file = Window(fd, F.RAW)
    file.check_size(file.size, most)
    if file.size < SECTOR:
        raise refused(F.RAW, "it is smaller than a sector", "Check the file.", reason="damaged")
    return Foreign(F.RAW, -(-file.size // SECTOR) * SECTOR)


def _unknown(fd: int) -> InvalidInput:
    start = os.pread(fd, SECTOR, 0)
    if not start:
        return InvalidInput("The file is empty.", field="file", reason="unknown-format")
    for mark, (packed, tool) in _PACKED.items():
        if start.startswith(mark):
            return InvalidInput(
                f"The file is packed by {packed}.",
                hint=f"Unpack it first: {tool} FILE",
                field="file",
                reason="packed",
            )
    if start[_TAR_AT:].startswith(_TAR):
        return InvalidInput(
            "The file is a tar archive, perhaps an OVA.",
            hint="Unpack it, and import the disk that is in it: tar xf FILE",
            field="file",
            reason="packed",
        )
    what = "a text" if re.fullmatch(rb"[\t\n\r -~]{64,}", start) else "nothing that boots"
    return InvalidInput(
        f"The file is no disk image that this house knows: it looks like {what}.",
        hint=f"Known are {_KNOWN}. {_SAY}",
        field="file",
        reason="unknown-format",
    )
