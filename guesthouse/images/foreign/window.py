"""Reading an untrusted file: every read is bounded, and what lies outside is an error."""

from __future__ import annotations

import os
import struct
from typing import Any, NamedTuple

from guesthouse.errors import InvalidInput
from guesthouse.model.image import SourceFormat
from guesthouse.model.units import format_size

SECTOR = 512


class Foreign(NamedTuple):
    """What a file turned out to be.

    :ivar size: bytes that a guest would see; 0 where only the conversion tells.
    :ivar notes: what of it is not taken, for people.
    """

    format: SourceFormat
    size: int = 0
    notes: tuple[str, ...] = ()


def refused(kind: SourceFormat, why: str, hint: str, *, reason: str) -> InvalidInput:
    """:param why: completes "The vmdk image is refused: …". :param reason: for programs."""
    return InvalidInput(
        f"The {kind.value} image is refused: {why}.",
        hint=hint,
        field="file",
        format=kind.value,
        reason=reason,
    )


def damaged(kind: SourceFormat, why: str) -> InvalidInput:
    """Its header contradicts itself, the file, or the format."""
    return refused(kind, why, "The file is damaged or was cut off; get it again.", reason="damaged")


class Window:
    """An open file of a certain size, looked at as `kind`."""

    def __init__(self, fd: int, kind: SourceFormat) -> None:
        self.fd = fd
        self.kind = kind
        self.size = os.fstat(fd).st_size

    def read(self, at: int, count: int, what: str) -> bytes:
        """:raise InvalidInput: not all of it lies in the file."""
        if at < 0 or at + count > self.size:
            raise damaged(self.kind, f"{what} lies outside the file")
        data = os.pread(self.fd, count, at)
        if len(data) != count:
            raise damaged(self.kind, f"{what} lies outside the file")
        return data

    def unpack(self, form: str, at: int, what: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.read(at, struct.calcsize(form), what))

    def require(self, at: int, count: int, what: str) -> None:
        """:raise InvalidInput: that range does not lie in the file."""
        if at < 0 or count < 0 or at + count > self.size:
            raise damaged(self.kind, f"{what} lies outside the file")

    def check_size(self, size: int, most: int) -> int:
        """The virtual size. :raise InvalidInput: none, or more than `most` bytes."""
        if size <= 0:
            raise damaged(self.kind, "it holds a disk of no size")
        if size > most:
            raise too_large(self.kind, size, most)
        return size


def too_large(kind: SourceFormat, size: int, most: int) -> InvalidInput:
    return refused(
        kind,
        f"its disk has {format_size(size)}, and this house takes at most {format_size(most)}",
        "If you mean it, set max_image_size in the house's settings.toml.",
        reason="too-large",
    )
