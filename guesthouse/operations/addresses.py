"""Addresses of cards: which are free, whose one is, and what a card has on a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from guesthouse.errors import Conflict, InvalidInput
from guesthouse.model.device import Nic
from guesthouse.model.guest import Guest
from guesthouse.model.network import (
    Lease,
    Network,
    check_lease,
    free_address4,
    free_address6,
)
from guesthouse.model.networking import BUILTIN
from guesthouse.store.view import View

Card = tuple[str, int]
"""Id of a guest, and number of its card."""


class Owner(NamedTuple):
    """:ivar guest: name."""

    guest: str
    nic: int
    trashed: bool

    def __str__(self) -> str:
        return f"card {self.nic} of guest {self.guest!r}{', in the trash' * self.trashed}"


def check_cards(view: View, guest_id: str, nics: Iterable[Nic]) -> None:
    """Whether a guest may have these cards, as far as others are concerned. One without a MAC
    gets one that nobody has.

    :raise InvalidInput: a fixed address is none of its network.
    :raise Conflict: an address or a MAC is another card's, which is named.
    """
    nics = tuple(nics)
    for nic in nics:
        _check_mac(view, guest_id, nic, nics)
        if nic.network == BUILTIN:
            if nic.fixed:
                raise InvalidInput(
                    f"{nic.fixed[0]} cannot be had: a guest's own network gives its own addresses.",
                    hint="Name a network of the house: guest network ls",
                    field="address4" if nic.address4 else "address6",
                )
            continue
        network = view.networks.get(nic.network)
        if network is not None and nic.fixed:
            check_fixed(view, guest_id, nic, network)
    _check_twice(nics)


def check_fixed(view: View, guest_id: str, nic: Nic, network: Network) -> None:
    """Raises as `check_cards`."""
    check_lease(
        Lease(
            id="",
            network=network.id,
            guest=guest_id,
            nic=nic.index,
            mac=nic.mac,
            address4=nic.address4,
            address6=nic.address6,
            since=0.0,
        ),
        network,
    )
    for text in nic.fixed:
        owner = _owner(view, network.id, text, but=(guest_id, nic.index))
        if owner is not None:
            raise Conflict(
                f"{text} on network {network.name} belongs to {owner}.",
                hint=f"Choose another. Who has which: guest network info {network.name}",
                guest=owner.guest,
            )


def choose(view: View, guest_id: str, nic: Nic, network: Network, kept: Lease | None) -> Lease:
    """What the card has on that network: fixed addresses, else those that it had, else free ones.

    :param kept: the card's lease there, if it has one.
    :raise Conflict: none is free, or a fixed one is another card's. :raise InvalidInput:
    """
    check_fixed(view, guest_id, nic, network)
    taken = {address for _card, address in _taken(view, network.id, but=(guest_id, nic.index))}
    # What was given up is given up, whatever else may have it by now.
    had = kept if kept is not None and not (kept.fixed and not nic.fixed) else None
    four, six = nic.address4, nic.address6
    if not four and network.subnet4:
        four = had.address4 if had else ""
        if not four or four in taken:
            four = free_address4(network, {*taken, network.gateway4} - _sixes(taken))
    if not six and network.subnet6:
        six = had.address6 if had else ""
        if not six or six in taken:
            six = free_address6(network, _sixes(taken))
    return Lease(
        id=kept.id if kept else "",
        network=network.id,
        guest=guest_id,
        nic=nic.index,
        mac=nic.mac,
        address4=four,
        address6=six,
        fixed=bool(nic.fixed),
        since=kept.since if kept else 0.0,
    )


def lease_of(view: View, guest_id: str, index: int) -> Lease | None:
    every = view.leases.values()
    return next((one for one in every if (one.guest, one.nic) == (guest_id, index)), None)


def _sixes(addresses: Iterable[str]) -> set[str]:
    return {address for address in addresses if ":" in address}


def _taken(view: View, network: str, *, but: Card) -> Iterator[tuple[Card, str]]:
    """Every address on a network that is a card's, or is kept for one that was not started yet."""
    for lease in view.leases.values():
        if lease.network == network and (lease.guest, lease.nic) != but:
            yield from (
                ((lease.guest, lease.nic), a) for a in (lease.address4, lease.address6) if a
            )
    for guest in view.guests.values():
        for nic in guest.spec.nics:
            if nic.network == network and (guest.id, nic.index) != but:
                yield from (((guest.id, nic.index), address) for address in nic.fixed)


def _owner(view: View, network: str, address: str, *, but: Card) -> Owner | None:
    for (guest_id, index), other in _taken(view, network, but=but):
        if other == address:
            guest: Guest | None = view.guests.get(guest_id)
            if guest is None:
                return Owner(guest_id, index, False)
            return Owner(guest.name, index, guest.in_trash)
    return None


def _check_mac(view: View, guest_id: str, nic: Nic, own: tuple[Nic, ...]) -> None:
    if not nic.mac:
        return
    if sum(other.mac == nic.mac for other in own) > 1:
        raise Conflict(f"Two cards of the guest would have the MAC address {nic.mac}.")
    for guest in view.guests.values():
        for other in guest.spec.nics:
            if other.mac == nic.mac and guest.id != guest_id:
                owner = Owner(guest.name, other.index, guest.in_trash)
                raise Conflict(
                    f"The MAC address {nic.mac} belongs to {owner}.",
                    hint="Choose another, or none: the house then makes one.",
                    guest=guest.name,
                )


def _check_twice(nics: tuple[Nic, ...]) -> None:
    """Two cards of a guest that is new are in no document yet."""
    seen = set[tuple[str, str]]()
    for nic in nics:
        for address in nic.fixed:
            if (nic.network, address) in seen:
                raise Conflict(f"Two cards of the guest would have the address {address}.")
            seen.add((nic.network, address))
