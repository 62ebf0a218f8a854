"""Traffic of the fake house: impairments are written down, and captures hold three packets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from guesthouse.errors import HostLacks
from guesthouse.model.guest import Guest
from guesthouse.model.impairment import NicImpairment
from guesthouse.network.capture import Counts, Packet

FRAME = bytes.fromhex("ffffffffffff5267680000010806") + bytes(28)


class FakePackets:
    """:ivar going: more come for ever. :ivar closed: nobody wants more."""

    def __init__(self, count: int, *, going: bool = False) -> None:
        self._next, self._count, self.going = 0, count, going
        self.closed = False

    async def some(self) -> Sequence[Packet]:
        if self.going:
            await asyncio.sleep(0.001)
        elif self._next:
            return ()
        first = self._next
        self._next += self._count
        return [Packet(n, FRAME, len(FRAME), inbound=False) for n in range(first, self._next)]

    def counts(self) -> Counts:
        return Counts(self._next + 5, 5)

    def close(self) -> None:
        self.closed = True


class FakeTraffic:
    """:ivar seen: what was done to which card. :ivar lacks: what the kernel cannot do.

    :ivar opened: captures. :ivar going: those to come have no end of their own.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, NicImpairment]] = []
        self.lacks: HostLacks | None = None
        self.trouble: HostLacks | None = None
        self.opened: list[FakePackets] = []
        self.going = False

    async def check(self, wanted: NicImpairment) -> None:
        if self.lacks is not None:
            raise self.lacks

    async def impair(self, guest: Guest, index: int) -> None:
        self.seen.append((guest.name, index, guest.spec.nics[index].impairment))
        if self.trouble is not None:
            trouble, self.trouble = self.trouble, None
            raise trouble

    async def capture(self, guest: Guest, index: int, *, snaplen: int) -> FakePackets:
        self.opened.append(FakePackets(3, going=self.going))
        return self.opened[-1]
