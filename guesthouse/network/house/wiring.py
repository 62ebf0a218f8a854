"""Bridges and taps of the house, as they are on the kernel."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Sequence
from contextlib import suppress

from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.model.network import Network
from guesthouse.network.house import links
from guesthouse.network.house.seats import Key, Seat


class Wiring:
    """Knows what links there are, and holds the open taps."""

    def __init__(self, namespace: HouseNamespace) -> None:
        self._namespace = namespace
        self._taps: dict[Key, int] = {}
        self._links: links.Links = {}

    @property
    def taps(self) -> tuple[str, ...]:
        """As of the last look, and those made since."""
        return tuple(name for name in self._links if links.is_ours(name) and name[0] == "t")

    async def look(self) -> None:
        """What is there is asked of the kernel."""
        listed = await self._namespace.run(links.LIST)
        self._links = links.read_links(listed.out)

    async def settle(self, networks: Sequence[Network], seats: Collection[Seat]) -> None:
        """Links become what these networks and seats want, in one batch."""
        there = {network.id for network in networks}
        # A tap that is gone with its namespace is no seat's any more until its next start.
        wired = [s for s in seats if s.network in there and s.tap in self._links]
        ipv6 = "ipv6" not in self._namespace.facts.lacks
        reached = [n for n in networks if not n.port or n.port in self._links]
        wired = [s for s in wired if any(s.network == n.id for n in reached)]
        wanted = links.wanted_links(reached, wired, ipv6=ipv6)
        lines = links.changes(self._links, wanted, ipv6=ipv6)
        if any(seat.network not in there for seat in seats):
            # A document that does not parse is no reason to cut its guests off.
            lines = [line for line in lines if not line.startswith("link delete")]
        if not lines:
            return
        try:
            await self._namespace.run(links.BATCH, input="\n".join([*lines, ""]).encode())
        except BaseException:
            # What is there now is not known any more.
            await asyncio.shield(self.look())
            raise
        for network in reached:
            if network.port and network.bridge not in self._links:
                await self._namespace.settings(links.mute_settings(network, ipv6=ipv6))
        foreign = {name: link for name, link in self._links.items() if not links.is_ours(name)}
        self._links = {**foreign, **wanted}

    def has(self, name: str) -> bool:
        return name in self._links

    def came(self, name: str) -> None:
        """An interface was put in here from outside."""
        self._links[name] = links.Link()

    async def tap(self, seat: Seat) -> int:
        """Open, or what is left of its last incarnation: without the frames that nobody took."""
        fd = self._taps.get(seat.key)
        if fd is None:
            fd = self._taps[seat.key] = await self._namespace.tap(seat.tap)
            self._links.setdefault(seat.tap, links.Link())
        else:
            await asyncio.to_thread(_drain, fd)
        return fd

    def drop(self, key: Key) -> None:
        """Nobody here holds the card's tap any more."""
        fd = self._taps.pop(key, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        for key in list(self._taps):
            self.drop(key)


def _drain(fd: int) -> None:
    os.set_blocking(fd, False)
    with suppress(BlockingIOError, OSError):
        for _ in range(10_000):
            os.read(fd, 65536)
