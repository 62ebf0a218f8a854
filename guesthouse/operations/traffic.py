"""Packets of guests' cards: spoilt on purpose, and captured."""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from guesthouse.errors import HostLacks, NotFound
from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.model.guest import Guest
from guesthouse.model.impairment import NicImpairment
from guesthouse.network.capture import Packets
from guesthouse.network.house.backend import HouseNetwork
from guesthouse.network.house.sniffing import sniff
from guesthouse.operations.networks import StoreRecords


class Traffic(Protocol):
    """What the house's network can do with the packets of cards that are on it."""

    async def check(self, wanted: NicImpairment) -> None:
        """:raise HostLacks: this kernel cannot impair a card so; names what it lacks."""
        ...

    async def impair(self, guest: Guest, index: int) -> None:
        """As the guest's document says, at once; nothing happens where the card is not attached.

        :raise HostLacks: as `check`. :raise ToolFailed:
        """
        ...

    async def capture(self, guest: Guest, index: int, *, snaplen: int) -> Packets:
        """:raise NotFound: the card is not attached."""
        ...


class NoTraffic:
    """Where there is no network of a house."""

    async def check(self, wanted: NicImpairment) -> None:
        """Nobody has cards that could be impaired."""

    async def impair(self, guest: Guest, index: int) -> None:
        """Nor is one attached."""

    async def capture(self, guest: Guest, index: int, *, snaplen: int) -> Packets:
        raise HostLacks("This house has no network of its own.", capability="networks")


class HouseTraffic:
    """On the house's network."""

    def __init__(
        self, network: HouseNetwork, records: StoreRecords, namespace: HouseNamespace
    ) -> None:
        self._network, self._records, self._namespace = network, records, namespace

    async def check(self, wanted: NicImpairment) -> None:
        await self._network.impairing.check(wanted)

    async def impair(self, guest: Guest, index: int) -> None:
        for seat in self._records.seats([guest]):
            if seat.index == index:
                with suppress(NotFound):  # its next start attaches it
                    await self._network.update(seat)

    async def capture(self, guest: Guest, index: int, *, snaplen: int) -> Packets:
        for seat in self._records.seats([guest]):
            if seat.index == index:
                return await sniff(self._namespace, seat.tap, snaplen=snaplen)
        raise NotFound(f"Card {index} of {guest.name} is not attached.")
