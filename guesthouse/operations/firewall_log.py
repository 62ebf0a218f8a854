"""Reading the log of packets that rules logged: a JSON object a line, with names of today."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from guesthouse.model.document import encode
from guesthouse.model.firewalling import LoggedPacket
from guesthouse.operations.firewall_names import name_of, owner_of
from guesthouse.operations.logs import read_file
from guesthouse.operations.rooms import Rooms
from guesthouse.store.view import View


async def read_packets(
    rooms: Rooms, *, guest: str = "", tail: int, follow: bool
) -> AsyncIterator[bytes]:
    """:param guest: id; only packets that it sent or was to get, or that its rule decided about."""
    return _lines(rooms.view, rooms.rules.log, guest, tail, follow)


async def _lines(
    view: View, path: Path | None, guest: str, tail: int, follow: bool
) -> AsyncIterator[bytes]:
    if path is None:
        return
    held = b""
    pieces = read_file(path, tail, follow)
    try:
        async for piece in pieces:
            *lines, held = (held + piece).split(b"\n")
            told = b"".join(_told(view, line, guest) for line in lines)
            if told:
                yield told
    finally:
        await pieces.aclose()


def _told(view: View, line: bytes, guest: str) -> bytes:
    try:
        packet = msgspec.json.decode(line, type=LoggedPacket)
    except msgspec.DecodeError:  # the rest of a line whose beginning is not shown
        return b""
    if guest and guest not in (packet.sender, packet.receiver, *packet.rule.split("/")[1:2]):
        return b""
    named = msgspec.structs.replace(
        packet,
        sender_name=name_of(view, "guest", packet.sender),
        receiver_name=name_of(view, "guest", packet.receiver),
        owner=owner_of(view, packet.rule),
    )
    return encode(named) + b"\n"
