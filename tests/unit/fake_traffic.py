"""Impairments and captures of the fake house."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from guesthouse.model.device import Nic
from guesthouse.model.impairment import NicImpairment
from guesthouse.network.capture import Counts, Packet, header, packet_block, statistics_block

if TYPE_CHECKING:
    from .fake_house import FakeHouse

FRAME = bytes.fromhex("ffffffffffff5267680000010806") + bytes(28)


def impaired(nic: Nic, body: Any) -> Nic:
    return msgspec.structs.replace(nic, impairment=msgspec.convert(body, NicImpairment))


def capture(house: FakeHouse, chunk: Callable[[bytes], None], *, bounded: bool) -> None:
    """Two packets, of which more were lost; without bounds it goes on until the house stops.

    The pieces end anywhere.
    """
    made = header("web/0", "card 0 of guest web", "52:67:68:00:00:01", snaplen=262144)
    for number in range(2):
        made += packet_block(Packet(time.time_ns(), FRAME, len(FRAME), inbound=bool(number)))
    made += statistics_block(
        Counts(2 + house.lost_packets, house.lost_packets), started=0, now=0, delivered=2
    )
    chunk(made[:50])
    chunk(made[50:])
    if not bounded:
        chunk(packet_block(Packet(0, FRAME, len(FRAME), inbound=True))[:21])
        house.stopped.wait(60)
    chunk(b"")
