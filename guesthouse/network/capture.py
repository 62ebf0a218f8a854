"""Captured packets as pcapng. Pure.

Format: draft-ietf-opsawg-pcapng (section header, interface description, enhanced packet and
interface statistics blocks, version 1.0). Everything is little-endian, whatever the host is, and
times are in nanoseconds. What a guest gets is `inbound`, what it sends `outbound`: as seen by its
card.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from guesthouse import __version__
from guesthouse.model.capture import INTERFACE_STATISTICS, PACKET

LONGEST = 262_144
"""Bytes of a packet at most, as with tcpdump; a card gives up to 64 KiB."""

_SECTION, _INTERFACE = 0x0A0D0D0A, 1
_BYTE_ORDER, _ETHERNET = 0x1A2B3C4D, 1
_UNKNOWN_LENGTH = 0xFFFF_FFFF_FFFF_FFFF
_END = 0
_USER_APPLICATION = 4
_NAME, _DESCRIPTION, _MAC, _RESOLUTION = 2, 3, 6, 9
_FLAGS, _INBOUND, _OUTBOUND = 2, 1, 2
_STARTED, _ENDED, _RECEIVED, _DROPPED, _DELIVERED = 2, 3, 4, 7, 8
_NANOSECONDS = 9


class Packet(NamedTuple):
    """:ivar when: nanoseconds since the epoch. :ivar length: of the whole packet, of which `data`
    may be the beginning. :ivar inbound: the guest gets it.
    """

    when: int
    data: bytes
    length: int
    inbound: bool


class Counts(NamedTuple):
    """:ivar received: packets that came by since the beginning, lost ones too.

    :ivar lost: those for which there was no room.
    """

    received: int
    lost: int


class Packets(Protocol):
    """The packets of a card as they come, until it is closed or its card is gone."""

    async def some(self) -> Sequence[Packet]:
        """Those that came since the last call, at least one; none when there will be no more."""
        ...

    def counts(self) -> Counts: ...

    def close(self) -> None: ...


def header(name: str, description: str, mac: str, *, snaplen: int) -> bytes:
    """What a file begins with. :param name: of the card, as readers show it."""
    program = _options((_USER_APPLICATION, f"Guesthouse {__version__}".encode()))
    section = struct.pack("<IHHQ", _BYTE_ORDER, 1, 0, _UNKNOWN_LENGTH)
    options = _options(
        (_NAME, name.encode()),
        (_DESCRIPTION, description.encode()),
        (_MAC, bytes.fromhex(mac.replace(":", ""))),
        (_RESOLUTION, bytes([_NANOSECONDS])),
    )
    card = struct.pack("<HHI", _ETHERNET, 0, snaplen)
    return _block(_SECTION, section + program) + _block(_INTERFACE, card + options)


def packet_block(packet: Packet) -> bytes:
    fixed = struct.pack("<I", 0) + _time(packet.when)
    fixed += struct.pack("<II", len(packet.data), packet.length)
    flags = struct.pack("<I", _INBOUND if packet.inbound else _OUTBOUND)
    return _block(PACKET, fixed + _padded(packet.data) + _options((_FLAGS, flags)))


def statistics_block(counts: Counts, *, started: int, now: int, delivered: int) -> bytes:
    """How many there were and how many were lost; the last such block of a file counts.

    :param started: and `now`: nanoseconds since the epoch. :param delivered: packets written.
    """
    options = _options(
        (_STARTED, _time(started)),
        (_ENDED, _time(now)),
        (_RECEIVED, struct.pack("<Q", counts.received)),
        (_DROPPED, struct.pack("<Q", counts.lost)),
        (_DELIVERED, struct.pack("<Q", delivered)),
    )
    return _block(INTERFACE_STATISTICS, struct.pack("<I", 0) + _time(now) + options)


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


def _options(*options: tuple[int, bytes]) -> bytes:
    written = (struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options)
    return b"".join(written) + struct.pack("<HH", _END, 0)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _time(nanoseconds: int) -> bytes:
    """The upper half comes first, in either byte order."""
    return struct.pack("<II", nanoseconds >> 32, nanoseconds & 0xFFFF_FFFF)


STATISTICS_SIZE = len(statistics_block(Counts(0, 0), started=0, now=0, delivered=0))
"""Bytes of one such block, which are always as many."""
