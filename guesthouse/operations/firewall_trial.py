"""The dry run: what would become of a packet to or from a guest, and which rule decides."""

from __future__ import annotations

import ipaddress

from guesthouse.errors import InvalidInput
from guesthouse.model.firewall import Direction, Traffic
from guesthouse.model.firewalling import PacketRequest, PacketView
from guesthouse.model.guest import Guest
from guesthouse.network.rules.deciding import Verdict, decide
from guesthouse.network.rules.packet import Packet, find_way
from guesthouse.network.rules.ruleset import Card, Ruleset
from guesthouse.operations.firewall_names import label
from guesthouse.operations.rooms import Rooms

HOUSE, HOST, OUTSIDE = "house", "host", "outside"
_INTERNET = "192.0.2.1"
"""An address that nobody has (RFC 5737) stands for the internet."""
_UPLINK_HOST = "10.0.2.2"
"""As which the host speaks through the uplink (slirp4netns(1))."""


async def try_packet(rooms: Rooms, guest: Guest, wanted: PacketRequest) -> PacketView:
    """:raise InvalidInput: there is no such packet. :raise NotFound: no such guest."""
    _check(wanted)
    ruleset = await rooms.rules.ruleset(rooms.view)
    own = _cards(ruleset, guest)
    if wanted.direction is Direction.IN:
        packet = _incoming(rooms, ruleset, own, wanted)
    else:
        packet = _outgoing(rooms, ruleset, own, wanted)
    verdict: Verdict = decide(ruleset, packet)
    way = find_way(ruleset, packet)
    return PacketView(
        action=verdict.action,
        rule=verdict.rule,
        label=label(rooms.view, verdict.rule),
        reason=verdict.reason,
        passed=tuple(label(rooms.view, key) for key in verdict.passed),
        source=str(way.source),
        destination=str(way.destination),
        port=way.packet.port,
    )


def _check(wanted: PacketRequest) -> None:
    with_port = wanted.protocol in (Traffic.TCP, Traffic.UDP)
    if wanted.protocol is Traffic.ANY or with_port is not bool(wanted.port):
        raise InvalidInput(
            f"A packet of protocol {wanted.protocol.value} to port {wanted.port} cannot be tried.",
            hint="Name tcp or udp and a port, or icmp and none.",
            field="protocol" if wanted.protocol is Traffic.ANY else "port",
        )


def _cards(ruleset: Ruleset, guest: Guest) -> tuple[Card, ...]:
    cards = ruleset.cards_of.get(guest.id, ())
    if cards:
        return cards
    if any(nic.network in ruleset.network_of for nic in guest.spec.nics):
        raise InvalidInput(
            f"Guest {guest.name!r} was never started, so it has no address yet.",
            hint=f"Start it once: guest start {guest.name}",
            field="guest",
        )
    raise InvalidInput(
        f"Guest {guest.name!r} is on no network of the house, and only there rules hold.",
        hint="Launch a guest on one: guest launch IMAGE NAME --network default",
        field="guest",
    )


def _incoming(
    rooms: Rooms, ruleset: Ruleset, own: tuple[Card, ...], wanted: PacketRequest
) -> Packet:
    base = Packet(protocol=wanted.protocol, port=wanted.port)
    far = _far(rooms, ruleset, wanted.far)
    if isinstance(far, tuple):
        sender, receiver = _pair(far, own)
        return _to(base, sender.tap, _address(receiver, _version(sender, receiver)))
    if far == HOUSE:
        raise InvalidInput(
            "Of the house only answers come, and those pass.",
            hint="Name a guest, an address, host or outside.",
            field="far",
        )
    source = {HOST: _UPLINK_HOST, OUTSIDE: ""}.get(far, far)
    version = ipaddress.ip_address(source).version if source else 4
    for port in ruleset.published:
        there = (port.protocol.value, port.guest_port) == (wanted.protocol.value, wanted.port)
        if there and port.version == version and any(port.address in c.addresses for c in own):
            return Packet(protocol=wanted.protocol, port=port.port, source=source)
    receiver = next((card for card in own if card.of_version(version)), own[0])
    if not source and not receiver.of_version(version):
        version = 6 if version == 4 else 4
    return _to(base, "", _address(receiver, version), source)


def _outgoing(
    rooms: Rooms, ruleset: Ruleset, own: tuple[Card, ...], wanted: PacketRequest
) -> Packet:
    base = Packet(protocol=wanted.protocol, port=wanted.port)
    far = _far(rooms, ruleset, wanted.far)
    if isinstance(far, tuple):
        sender, receiver = _pair(own, far)
        return _to(base, sender.tap, _address(receiver, _version(sender, receiver)))
    if far == HOUSE:
        network = ruleset.network_of[own[0].network]
        return _to(base, own[0].tap, network.gateway4 or network.gateway6)
    host = next((a for a in ruleset.host if ":" not in a), _UPLINK_HOST)
    target = {HOST: host, OUTSIDE: _INTERNET}.get(far, far)
    version = ipaddress.ip_address(target).version
    sender = next((card for card in own if card.of_version(version)), own[0])
    return _to(base, sender.tap, target)


def _to(base: Packet, sender: str, destination: str, source: str = "") -> Packet:
    return Packet(
        sender=sender,
        destination=destination,
        source=source,
        protocol=base.protocol,
        port=base.port,
    )


def _far(rooms: Rooms, ruleset: Ruleset, text: str) -> tuple[Card, ...] | str:
    """Cards of a guest, an address of none of them, or a place."""
    if text in (HOUSE, HOST, OUTSIDE):
        return text
    try:
        address = str(ipaddress.ip_address(text))
    except ValueError:
        guest = rooms.view.guest(text.removeprefix("guest:"))
        return _cards(ruleset, guest)
    owners = tuple(card for card in ruleset.cards if address in card.addresses)
    return owners or address


def _pair(senders: tuple[Card, ...], receivers: tuple[Card, ...]) -> tuple[Card, Card]:
    """Cards that share a network, if there are such."""
    for sender in senders:
        for receiver in receivers:
            if sender.network == receiver.network:
                return sender, receiver
    return senders[0], receivers[0]


def _version(sender: Card, receiver: Card) -> int:
    return 4 if sender.of_version(4) and receiver.of_version(4) else 6


def _address(card: Card, version: int) -> str:
    """:raise InvalidInput: it has none."""
    found = card.of_version(version)
    if not found:
        raise InvalidInput(f"Guest {card.name} has no IPv{version} address.", field="far")
    return found[0]
