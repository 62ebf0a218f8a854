"""The header of a qcow2 file, read without any tool: what it claims, and whether that is sound.

Source: QEMU's docs/interop/qcow2.txt. A header is untrusted input: a backing or data file named in
it is a path that QEMU would open. Ours name only a file in the same folder.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from guesthouse.errors import EngineError
from guesthouse.model.document import Noun

MAGIC = b"QFI\xfb"
_END, _BACKING_FORMAT, _DATA_FILE = 0, 0xE2792ACA, 0x44415441
_INCOMPATIBLE_DATA_FILE = 1 << 2
_INCOMPATIBLE_CORRUPT = 1 << 1
_LONGEST_NAME = 1023  # bytes; the format's own limit for a backing file's name
_HEADER_V2 = 72


class Header(Noun, kw_only=True, frozen=True):
    """:ivar size: virtual size in bytes. :ivar backing: name of the layer below, as written.

    :ivar data_file: whether the data lies in another file.
    :ivar corrupt: QEMU marked the file as damaged.
    """

    size: int
    cluster_size: int
    backing: str = ""
    backing_format: str = ""
    data_file: bool = False
    corrupt: bool = False


def read_header(source: Path | int) -> Header:
    """:raise EngineError: it is no qcow2 file, or its header is damaged."""
    if isinstance(source, int):
        return parse_header(os.pread(source, 1 << 16, 0), f"file descriptor {source}")
    with open(source, "rb") as file:
        return parse_header(file.read(1 << 16), str(source))


def parse_header(data: bytes, what: str) -> Header:
    """Parse the first 64 KiB of a file. :raise EngineError: see `read_header`."""
    if len(data) < _HEADER_V2 or not data.startswith(MAGIC):
        raise _damaged(what, "it does not begin like one")
    version, name_at, name_size, cluster_bits, size = struct.unpack_from(">IQIIQ", data, 4)
    if version not in {2, 3} or not 9 <= cluster_bits <= 21:
        raise _damaged(what, "its version or cluster size is unknown")
    incompatible, header_size = 0, _HEADER_V2
    if version == 3:
        if len(data) < 104:
            raise _damaged(what, "it is too short")
        incompatible, header_size = _version_3(data)
    backing = ""
    if name_at:
        if not 0 < name_size <= _LONGEST_NAME or name_at + name_size > len(data):
            raise _damaged(what, "the name of its backing file lies outside the header")
        backing = data[name_at : name_at + name_size].decode(errors="replace")
    extensions = _extensions(data, header_size, name_at or len(data), what)
    return Header(
        size=size,
        cluster_size=1 << cluster_bits,
        backing=backing,
        backing_format=extensions.get(_BACKING_FORMAT, b"").decode(errors="replace"),
        data_file=bool(incompatible & _INCOMPATIBLE_DATA_FILE) or _DATA_FILE in extensions,
        corrupt=bool(incompatible & _INCOMPATIBLE_CORRUPT),
    )


def _version_3(data: bytes) -> tuple[int, int]:
    (incompatible,) = struct.unpack_from(">Q", data, 72)
    (header_size,) = struct.unpack_from(">I", data, 100)
    return incompatible, max(header_size, 104)


def _extensions(data: bytes, start: int, end: int, what: str) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = start
    while at + 8 <= min(end, len(data)):
        kind, size = struct.unpack_from(">II", data, at)
        if kind == _END:
            return found
        if at + 8 + size > len(data):
            raise _damaged(what, "a header extension lies outside the header")
        found[kind] = data[at + 8 : at + 8 + size]
        at += 8 + (size + 7) // 8 * 8
    return found


def assert_sound_header(path: Path, *, parent: str = "", parent_format: str = "") -> Header:
    """Check that the file is of our making: its parent is the one expected, in the same folder.

    No header may name a file descriptor set (`fdset`, which means nothing to another process), an
    absolute path, a protocol or another folder, nor a separate data file.

    :param parent: file name of the layer below, empty when there must be none.
    :raise EngineError: it is not sound; the message says what was found.
    """
    header = read_header(path)
    if header.backing != parent:
        raise _unsound(path, header.backing, parent)
    if parent and parent_format and header.backing_format != parent_format:
        raise EngineError(
            f"{path.name} takes its parent for {header.backing_format or 'any format'}, "
            f"which is {parent_format}.",
            path=str(path),
        )
    if not plain_name(header.backing):
        raise _unsound(path, header.backing, parent)
    if header.data_file:
        raise EngineError(
            f"{path.name} keeps its data in another file, which no disk of a pool may do.",
            path=str(path),
        )
    return header


def plain_name(name: str) -> bool:
    """Whether `name` can only mean a file in the same folder (or nothing, when empty)."""
    return (
        "/" not in name
        and ":" not in name  # a protocol such as nbd: or json:
        and "fdset" not in name
        and "\0" not in name
        and name not in {".", ".."}
    )


def _unsound(path: Path, found: str, wanted: str) -> EngineError:
    return EngineError(
        f"{path.name} names {found or 'nothing'!r} as the layer below, "
        f"which should be {wanted or 'nothing'!r}.",
        hint="The file was not written by this house, or was changed behind its back; "
        "it is left untouched.",
        path=str(path),
        backing=found,
    )


def _damaged(what: str, why: str) -> EngineError:
    return EngineError(
        f"{what} is not a whole qcow2 file: {why}.",
        hint="Check where the file comes from; it is left untouched.",
    )
