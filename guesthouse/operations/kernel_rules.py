"""The rules that the kernel has, for operations: told of changes, and asked what they say."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from guesthouse.errors import GuesthouseError, HostLacks
from guesthouse.model.host import Capability
from guesthouse.network.house.backend import HouseNetwork
from guesthouse.network.house.hostside import look
from guesthouse.network.rules.ruleset import PRIVATE, Ruleset
from guesthouse.network.rules.text import Count
from guesthouse.operations.networks import StoreRecords
from guesthouse.store.view import View

LOG = "firewall.log"
"""File of logged packets in the state folder."""


@dataclass(kw_only=True)
class KernelRules:
    """:ivar network: None in a house without networks.

    :ivar log: file of logged packets. :ivar change: held while rules come to name something, and
        while something that they could name goes.
    """

    network: HouseNetwork | None = None
    records: StoreRecords | None = None
    log: Path | None = None
    change: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def reload(self, view: View) -> None:
        """Bring about what the documents say, at once and as a whole. Raises as
        `HouseNetwork.reload`; then the kernel has what it had."""
        if self.network is not None:
            guests = view.guests.values()
            await self.network.reload({guest.id: guest.spec.firewall for guest in guests})

    async def counters(self) -> dict[str, Count]:
        """By key; none while nothing is loaded."""
        if self.network is None or not self.network.is_open:
            return {}
        try:
            return await self.network.counters()
        except GuesthouseError:  # it is being made whole
            return {}

    def holds(self, guest: str) -> bool:
        return self.network is not None and self.network.holds(guest)

    async def ruleset(self, view: View) -> Ruleset:
        """Of every guest that was ever started on a network, whether it runs or not."""
        if self.network is None or self.records is None:
            return Ruleset(networks=tuple(view.networks.values()))
        if self.network.is_open:
            known = await self.network.ruleset()
        else:
            host = await look()
            known = Ruleset(host=host.addresses, lan=(*PRIVATE, *host.networks))
        # Of cards that are attached more may be known: what they say of their addresses.
        attached = {card.tap: card for card in known.cards}
        guests = (guest for guest in view.guests.values() if not guest.in_trash)
        seats = (seat for seat in self.records.seats(guests) if seat.network in view.networks)
        return msgspec.structs.replace(
            known,
            networks=tuple(view.networks.values()),
            cards=tuple(attached.get(seat.tap, seat.card) for seat in seats),
            groups=tuple(self.records.groups()),
            sets=tuple(self.records.sets()),
        )

    def lack(self, capability: str) -> Capability | None:
        """What the kernel lacks, if that is known by now."""
        known = self.network.kernel_capabilities if self.network is not None else ()
        found = (one for one in known if one.name == capability and not one.available)
        return next(found, None)

    def require_log(self) -> None:
        """:raise HostLacks: packets cannot be logged here."""
        if lack := self.lack("nft-log"):
            raise HostLacks(
                f"No rule can log here: {lack.reason}", hint=lack.cure, capability=lack.name
            )
