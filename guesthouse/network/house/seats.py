"""What the network has to know about each card, and who tells it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Protocol

from guesthouse.model.device import Nic, Publish
from guesthouse.model.document import Noun
from guesthouse.model.firewall import AddressSet, Firewall, SecurityGroup
from guesthouse.model.impairment import NicImpairment
from guesthouse.model.network import Network
from guesthouse.network.rules.ruleset import Card

Key = tuple[str, int]
"""A card: the guest's id, and the card's number."""


class Seat(Noun, kw_only=True, frozen=True):
    """A card on a network of the house.

    :ivar guest: id. :ivar name: the guest's, by which others find it.
    :ivar number: of the guest, which no other of its house has. :ivar network: id.
    :ivar addresses: at most one IPv4 and one IPv6, which the card keeps. None on a bridged network,
        whose own servers give them out: `any_address`.
    :ivar ports: published ones, each with its real host port.
    :ivar impairment: what is done to its packets on purpose.
    """

    guest: str
    index: int
    name: str
    number: int
    mac: str
    network: str
    addresses: tuple[str, ...] = ()
    any_address: bool = False
    firewall: Firewall = Firewall()
    ports: tuple[Publish, ...] = ()
    impairment: NicImpairment = NicImpairment()

    @property
    def key(self) -> Key:
        return self.guest, self.index

    @property
    def tap(self) -> str:
        return f"t{self.number}-{self.index}"

    @property
    def card(self) -> Card:
        """As the rules see it."""
        return Card(
            guest=self.guest,
            name=self.name,
            tap=self.tap,
            mac=self.mac,
            network=self.network,
            addresses=self.addresses,
            any_address=self.any_address,
            firewall=self.firewall,
        )

    def address(self, version: int) -> str:
        """Empty if it has none of that version."""
        found = (a for a in self.addresses if ipaddress.ip_address(a).version == version)
        return next(found, "")


class Records(Protocol):
    """What is written down about networks; the store, behind whoever keeps it."""

    def networks(self) -> Sequence[Network]: ...

    def groups(self) -> Sequence[SecurityGroup]: ...

    def sets(self) -> Sequence[AddressSet]: ...

    async def seat(self, guest: str, nic: Nic, index: int, *, hostname: str) -> Seat:
        """The seat of a card that is about to be used: number and addresses are chosen and written
        down where it has none yet.

        :raise InvalidInput: there is no such network. :raise Conflict: no address is left.
        """
        ...
