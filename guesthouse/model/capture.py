"""Capturing a card's packets: what may be asked, and blocks of the pcapng that comes."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Annotated, NamedTuple

from msgspec import Meta

from guesthouse.errors import Internal
from guesthouse.model.document import Noun

PACKET, INTERFACE_STATISTICS = 6, 5
"""Types of blocks: draft-ietf-opsawg-pcapng, section 11.1."""
LEAST_SIZE = 4096
_LOST = 7
_LARGEST_BLOCK = 1 << 20


Seconds = Annotated[float, Meta(gt=0, le=604800)]
Count = Annotated[int, Meta(ge=1)]
Size = Annotated[int, Meta(ge=LEAST_SIZE)]


class CaptureQuery(Noun, kw_only=True, frozen=True):
    """When it ends by itself; None: it goes on until the client has enough."""

    seconds: Annotated[Seconds | None, Meta(description="End after so long.")] = None
    packets: Annotated[Count | None, Meta(description="End after so many packets.")] = None
    size: Annotated[Size | None, Meta(description="End before it has more bytes.")] = None
    snaplen: Annotated[
        int, Meta(ge=16, le=262144, description="How many bytes of each packet at most.")
    ] = 262144


class Block(NamedTuple):
    """A whole block of a pcapng file. :ivar kind: its type. :ivar data: with its head and tail."""

    kind: int
    data: bytes

    @property
    def lost(self) -> int:
        """Of interface statistics: how many packets were lost (isb_osdrop)."""
        at = 20
        while at + 4 <= len(self.data) - 4:
            code, length = struct.unpack_from("<HH", self.data, at)
            if code == _LOST and length == 8:
                return int(struct.unpack_from("<Q", self.data, at + 4)[0])
            at += 4 + length + -length % 4
        return 0


def whole_blocks(pieces: Iterable[bytes]) -> Iterator[Block]:
    """The blocks of a little-endian pcapng stream, each when it is whole; a rest is left out.

    :raise Internal: what comes is no such stream.
    """
    rest = bytearray()
    for piece in pieces:
        rest += piece
        while len(rest) >= 12:
            kind, length = struct.unpack_from("<II", rest)
            if length < 12 or length % 4 or length > _LARGEST_BLOCK:
                raise Internal("The daemon sent something that is not a capture.")
            if len(rest) < length:
                break
            yield Block(kind, bytes(rest[:length]))
            del rest[:length]
