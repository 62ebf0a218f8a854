"""The house's verbs on packets of cards: impairing them, and capturing them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from weakref import WeakSet

from guesthouse.errors import Busy, InvalidInput
from guesthouse.jobs.runner import JobRunner
from guesthouse.model.capture import CaptureQuery
from guesthouse.model.device import Nic
from guesthouse.model.impairment import NicImpairment
from guesthouse.model.job import Job
from guesthouse.model.networking import BUILTIN
from guesthouse.model.nics import find_nic
from guesthouse.network.capture import (
    STATISTICS_SIZE,
    Packet,
    Packets,
    header,
    packet_block,
    statistics_block,
)
from guesthouse.operations.impairing import ImpairParams, check_card
from guesthouse.operations.rooms import Rooms
from guesthouse.store.documents import GUESTS

MOST_CAPTURES = 16
"""At once in a house: each may hold some megabytes of packets."""
PIECE = 256 << 10
"""Bytes of packets that are handed on at once."""


class TrafficHouse:
    """Keeps `api.facade.TrafficHouse`."""

    def __init__(self, rooms: Rooms, jobs: JobRunner) -> None:
        self._rooms, self._jobs = rooms, jobs
        # One that nobody ever began to read goes by itself.
        self._captures: WeakSet[Packets] = WeakSet()

    async def impair(self, ref: str, which: str, wanted: NicImpairment, requester: str) -> Job:
        guest = self._rooms.view.guest(ref)
        nic = check_card(guest, which, wanted)
        return await self._jobs.submit(
            "nic.impair",
            ImpairParams(guest=guest.id, nic=nic, impairment=wanted),
            target=GUESTS.key(guest.id),
            target_name=guest.name,
            requester=requester,
        )

    async def capture(self, ref: str, which: str, wanted: CaptureQuery) -> AsyncIterator[bytes]:
        guest = self._rooms.view.guest(ref)
        card = find_nic(guest, which)
        nic = card.index
        if card.network == BUILTIN:
            raise InvalidInput(
                f"Packets of card {nic} of {guest.name!r} cannot be captured: it is on QEMU's "
                "builtin network, and they do not pass through this house.",
                hint=f"Capture them inside: guest exec {guest.name} -- tcpdump -w - > file.pcap",
                field="nic",
            )
        self._rooms.live.require(guest, verb="capture its packets")
        if len(self._captures) >= MOST_CAPTURES:
            raise Busy(
                f"{MOST_CAPTURES} captures run already, and no house has more at once.",
                hint="End one of them.",
            )
        packets = await self._rooms.traffic.capture(guest, nic, snaplen=wanted.snaplen)
        self._captures.add(packets)
        name, about = f"{guest.name}/{nic}", f"card {nic} of guest {guest.name}{self._on(card)}"
        first = header(name, about, card.mac, snaplen=wanted.snaplen)
        return self._written(packets, first, wanted)

    async def _written(
        self, packets: Packets, first: bytes, wanted: CaptureQuery
    ) -> AsyncIterator[bytes]:
        """The file, in pieces, to its bounds or to the end of the card."""
        try:
            yield first
            async for piece in _bounded(packets, len(first), wanted):
                yield piece
        finally:
            packets.close()
            self._captures.discard(packets)

    def _on(self, card: Nic) -> str:
        network = self._rooms.view.networks.get(card.network)
        return f" on network {network.name}" if network else ""


async def _bounded(packets: Packets, size: int, wanted: CaptureQuery) -> AsyncIterator[bytes]:
    """Blocks of packets, and of how many were lost: whenever that grew, and at the end.

    :param size: of what was written already.
    """
    clock = asyncio.get_running_loop().time
    end = None if wanted.seconds is None else clock() + wanted.seconds
    file = _File(size, wanted)
    while not file.full and (end is None or clock() < end):
        try:
            async with asyncio.timeout_at(end):
                batch = await packets.some()
        except TimeoutError:
            break
        if not batch:
            break
        for piece in file.pieces(batch):
            yield piece
        lost = file.statistics(packets, unless=file.lost)
        if lost:
            yield lost
    yield file.statistics(packets)


class _File:
    """:ivar full: a bound is reached. :ivar lost: packets, as far as it was written."""

    def __init__(self, size: int, wanted: CaptureQuery) -> None:
        self._started = time.time_ns()
        self._size, self._wanted = size, wanted
        self._written = self.lost = 0
        self.full = False

    def pieces(self, batch: Sequence[Packet]) -> Iterator[bytes]:
        """As many of the packets as may be written."""
        piece = bytearray()
        for packet in batch:
            block = packet_block(packet)
            self._size += len(block)
            if not self._fits(0):
                self.full = True
                break
            piece += block
            self._written += 1
            if self._written == self._wanted.packets:
                self.full = True
                break
            if len(piece) >= PIECE:
                yield bytes(piece)
                piece.clear()
        if piece:
            yield bytes(piece)

    def statistics(self, packets: Packets, *, unless: int | None = None) -> bytes:
        """:param unless: nothing where so many were lost, or where there is no room."""
        counts = packets.counts()
        if unless is not None and (counts.lost == unless or not self._fits(STATISTICS_SIZE)):
            return b""
        self.lost = counts.lost
        self._size += STATISTICS_SIZE
        return statistics_block(
            counts, started=self._started, now=time.time_ns(), delivered=self._written
        )

    def _fits(self, more: int) -> bool:
        """Whether there is room for so much, and for the statistics at the end."""
        most = self._wanted.size
        return most is None or self._size + more + STATISTICS_SIZE <= most
