"""A packet that a dry run is asked about, and where it would go."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from msgspec.structs import replace

from guesthouse.errors import InvalidInput
from guesthouse.model.document import Noun
from guesthouse.model.firewall import Traffic, Wall
from guesthouse.model.network import GATEWAY_LINK_LOCAL, Address, Network, NetworkKind
from guesthouse.network.rules.ruleset import Card, Published, Ruleset


class Packet(Noun, kw_only=True, frozen=True):
    """:ivar sender: tap of the guest's card; empty for a packet that comes in by the uplink.

    :ivar destination: unicast; from outside it may be empty, for a port of the uplink.
    :ivar source: empty for the card's own address. :ivar mac: likewise.
    :ivar icmp_type: as nft(8) names them: `echo-request`, `redirect`, `nd-router-advert`, …
    :ivar target: of a neighbour advertisement: the address that it is about.
    :ivar arp: not an IP packet, but an ARP message in which `source` is said to be at `mac`.
    :ivar established: an answer, or part of a connection that was let through before.
    """

    sender: str = ""
    destination: str = ""
    protocol: Traffic = Traffic.TCP
    source: str = ""
    source_port: int = 40_000
    port: int = 0
    icmp_type: str = "echo-request"
    target: str = ""
    mac: str = ""
    arp: bool = False
    established: bool = False


class Way(NamedTuple):
    """How a packet would travel.

    :ivar receiver: the card that gets it. :ivar gateway: it is for the house itself.
    :ivar bridged: it stays on one bridge. :ivar came_by: device. :ivar leaves_by: likewise; empty
        for the house itself. :ivar published: it came for a published port.
    """

    packet: Packet
    source: Address
    destination: Address
    sender: Card | None
    receiver: Card | None
    gateway: bool
    bridged: bool
    came_by: str
    leaves_by: str
    published: bool = False
    wall: Wall | None = None


def find_way(ruleset: Ruleset, packet: Packet) -> Way:
    """:raise InvalidInput: no such card, addresses that are none, or nothing to send to."""
    sender = _sender(ruleset, packet)
    port = None if sender else _published(ruleset, packet)
    destination = _address(port.address if port else packet.destination, "destination")
    if destination.is_multicast or str(destination) == "255.255.255.255":
        raise InvalidInput(
            f"{destination} is for many: the dry run answers for one receiver at a time.",
            field="destination",
        )
    home = ruleset.network_of[sender.network] if sender else None
    receiver = _receiver(ruleset, destination, home)
    if home and receiver and receiver.network != home.id:
        kinds = {home.kind, ruleset.network_of[receiver.network].kind}
        if NetworkKind.BRIDGED in kinds:
            receiver = None  # the host's own network leads there, if anything does
    target = ruleset.network_of[receiver.network] if receiver else None
    gateway = _is_gateway(ruleset, destination)
    if target and target.kind is NetworkKind.BRIDGED and not sender:
        home = target  # from the host's own network, not by the uplink
    bridged = bool(home and (target is home or (home.kind is NetworkKind.BRIDGED and not target)))
    out = home if bridged else target
    if not receiver and not gateway and not bridged:
        _check_outside(ruleset, destination)
    return Way(
        packet=replace(packet, port=port.guest_port) if port else packet,
        source=_source(packet, sender, destination),
        destination=destination,
        sender=sender,
        receiver=receiver,
        gateway=gateway,
        bridged=bridged and not gateway,
        came_by=home.bridge if home else ruleset.uplink,
        leaves_by="" if gateway else out.bridge if out else ruleset.uplink,
        published=port is not None,
    )


def _sender(ruleset: Ruleset, packet: Packet) -> Card | None:
    if not packet.sender:
        return None
    for card in ruleset.cards:
        if card.tap == packet.sender:
            return card
    raise InvalidInput(f"No card has the device {packet.sender}.", field="sender")


def _published(ruleset: Ruleset, packet: Packet) -> Published | None:
    """A packet to no address in particular, or to one of the uplink, is for what is published."""
    if packet.destination and _receiver(ruleset, _address(packet.destination, ""), None):
        return None
    version = _address(packet.source, "source").version if packet.source else 0
    for port in ruleset.published:
        wanted = (port.port, port.protocol.value) == (packet.port, packet.protocol.value)
        if wanted and version in (0, port.version):
            return port
    return None


def _receiver(ruleset: Ruleset, address: Address, home: Network | None) -> Card | None:
    """Link-local addresses mean something on their own network only."""
    text = str(address)
    if address.is_link_local:
        local = [c for c in ruleset.cards if home and c.network == home.id]
        return next((card for card in local if text in card.all_link_locals), None)
    return next((card for card in ruleset.cards if text in card.addresses), None)


def _is_gateway(ruleset: Ruleset, address: Address) -> bool:
    text = str(address)
    return text == GATEWAY_LINK_LOCAL or any(
        text in {network.gateway4, network.gateway6} for network in ruleset.networks
    )


def _check_outside(ruleset: Ruleset, address: Address) -> None:
    local = address.version == 6 and address.is_link_local
    if local or any(
        address.version == subnet.version and address in subnet
        for network in ruleset.networks
        for subnet in network.subnets
    ):
        raise InvalidInput(f"No guest has the address {address} there.", field="destination")


def _source(packet: Packet, sender: Card | None, destination: Address) -> Address:
    if packet.source:
        return _address(packet.source, "source")
    if sender is None:
        return _address("192.0.2.1" if destination.version == 4 else "2001:db8::1", "source")
    if destination.is_link_local and destination.version == 6:
        return _address(sender.all_link_locals[0], "source")
    own = sender.of_version(destination.version)
    if not own:
        raise InvalidInput(
            f"The guest {sender.name} has no IPv{destination.version} address there.",
            hint="Name the source.",
            field="source",
        )
    return _address(own[0], "source")


def _address(text: str, field: str) -> Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise InvalidInput(
            f"{text!r} is not an IP address, and no port of the uplink leads to a guest."
            if field == "destination"
            else f"{text!r} is not an IP address.",
            field=field,
        ) from None
