"""Requests about network cards, and what is answered about them."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, structs

from guesthouse.errors import InvalidInput, NotFound
from guesthouse.model.device import Link, Nic
from guesthouse.model.document import Noun
from guesthouse.model.guest import Guest
from guesthouse.model.network import Lease, Network, NetworkKind
from guesthouse.model.networking import NetworkName

AUTO = "auto"
"""In place of a fixed address: the house chooses."""

Mac = Annotated[str, Meta(max_length=32)]
Address = Annotated[str, Meta(max_length=64)]


class NicRequest(Noun, kw_only=True, frozen=True):
    """A network card that a guest is to have.

    :ivar network: name or id, or `builtin` for a network of the card's own.
    :ivar mac: empty lets the house choose.
    :ivar address4: a fixed one of the network; empty lets the house choose. `address6`: likewise.
    """

    network: NetworkName
    mac: Mac = ""
    address4: Address = ""
    address6: Address = ""
    link: Link = Link.UP


class NicChange(Noun, kw_only=True, frozen=True):
    """What to change of a card; null or absent leaves a field alone.

    :ivar address4: `auto` lets the house choose. `address6`: likewise.
    """

    network: NetworkName | None = None
    mac: Mac | None = None
    address4: Address | None = None
    address6: Address | None = None
    link: Link | None = None


class NicView(Nic, kw_only=True, frozen=True):
    """A card as it is now.

    :ivar network_name: of the network by now; its id where the network is lost.
    :ivar network_kind: null: it is on no network of the house.
    :ivar has4: the address that it has there; empty until it was first started. `has6`: likewise.
    :ivar removable: whether it can be taken away now, without stopping the guest.
    """

    network_name: str
    network_kind: NetworkKind | None = None
    has4: str = ""
    has6: str = ""
    removable: bool = True

    @classmethod
    def of(cls, guest: Guest, nic: Nic, network: Network | None, lease: Lease | None) -> NicView:
        """:param network: None: it is on none. :param lease: the card's, if it has one by now."""
        known = lease if lease is not None and lease.network == nic.network else None
        fields = {field: getattr(nic, field) for field in nic.__struct_fields__}
        return cls(
            **fields,
            network_name=network.name if network else nic.network,
            network_kind=network.kind if network else None,
            has4=nic.address4 or (known.address4 if known else ""),
            has6=nic.address6 or (known.address6 if known else ""),
            removable=guest.status.pid is None or nic.plug is not None,
        )


def find_nic(guest: Guest, which: str) -> Nic:
    """The card of that number or MAC address. :raise NotFound: the guest has no such card."""
    wanted = which.strip().lower().replace("-", ":")
    for nic in guest.spec.nics:
        if wanted in (str(nic.index), nic.mac):
            return nic
    cards = ", ".join(f"{nic.index} ({nic.mac})" for nic in guest.spec.nics)
    raise NotFound(
        f"Guest {guest.name!r} has no network card {which!r}.",
        hint=f"Its cards: {cards or 'none'}",
        guest=guest.name,
    )


def parse_nic(text: str, *, field: str = "network") -> NicRequest:
    """`NETWORK[,address4=..][,address6=..][,mac=..]`. :raise InvalidInput: not of that shape."""
    network, *words = (part.strip() for part in text.split(","))
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value or key not in _KEYS or key in found:
            raise InvalidInput(
                f"{word!r} says nothing about a card on network {network!r}.",
                hint="Write NETWORK,address4=10.77.0.10 or NETWORK,mac=52:67:68:00:00:01.",
                field=field,
            )
        found[key] = "" if value == AUTO else value
    if not network:
        raise InvalidInput(f"{text!r} names no network.", hint="guest network ls", field=field)
    return NicRequest(network=network, **found)


_KEYS = ("address4", "address6", "mac")


def changed_nic(nic: Nic, change: NicChange, network: str | None) -> Nic:
    """The card with what is to change. :param network: id of the one that is named, if any.

    Fixed addresses do not come along to another network: they are of the one before.
    """
    named = {key: value for key, value in structs.asdict(change).items() if value is not None}
    named.pop("network", None)
    for key in ("address4", "address6"):
        if named.get(key) == AUTO:
            named[key] = ""
    if network is not None and network != nic.network:
        named = {"address4": "", "address6": "", **named, "network": network}
    return structs.replace(nic, **named)
