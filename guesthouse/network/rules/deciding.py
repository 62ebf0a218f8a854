"""A dry run: what would become of a packet, and which rule would decide it.

It walks through the same steps as the kernel does, in the order of `house` and `spoofing`; tests
send the same packets through both.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from guesthouse.model.document import Noun
from guesthouse.model.firewall import (
    Action,
    Direction,
    Endpoint,
    EndpointKind,
    Subnet,
    Traffic,
    Wall,
    parse_ports,
)
from guesthouse.model.network import GATEWAY_LINK_LOCAL, Address, NetworkKind
from guesthouse.network.rules.explaining import explain
from guesthouse.network.rules.house import DHCP_PORTS, DNS_PORT, NEIGHBOURS
from guesthouse.network.rules.packet import Packet, Way, find_way
from guesthouse.network.rules.ruleset import Card, Ruleset
from guesthouse.network.rules.steps import Step, blocks, opened

LIES = {
    "nd-router-advert": "router-advert",
    "nd-redirect": "redirect",
    "redirect": "redirect",
    "mld-listener-query": "mld-query",
}
NOBODY = ("0.0.0.0", "::")  # noqa: S104  (nothing is bound)
"""Sources of those who have no address yet."""


class Verdict(Noun, kw_only=True, frozen=True):
    """:ivar rule: key of what decided: `guest/ID/NAME`, `group/…`, `network/…`, `wall/…`,
        `spoof/…`, `house/…`; it is also that of the counter which would count the packet.
    :ivar reason: one sentence for people.
    :ivar passed: keys of what had let it through before.
    """

    action: Action
    rule: str
    reason: str
    passed: tuple[str, ...] = ()


def decide(ruleset: Ruleset, packet: Packet) -> Verdict:
    """:raise InvalidInput: there is no such packet in this house."""
    ruleset.check()
    way = find_way(ruleset, packet)
    passed: list[str] = []
    for action, key in _stages(ruleset, way):
        if action is not Action.ACCEPT:
            return Verdict(
                action=_possible(ruleset, way, action),
                rule=key,
                reason=explain(ruleset, key),
                passed=tuple(passed),
            )
        passed.append(key)
    return Verdict(
        action=Action.ACCEPT,
        rule=passed[-1],
        reason=explain(ruleset, passed[-1]),
        passed=tuple(passed[:-1]),
    )


def _possible(ruleset: Ruleset, way: Way, action: Action) -> Action:
    """`reject` drops where nobody can say no: on some bridges, and between link-local addresses,
    where the kernel finds no way back for an ICMP error."""
    features = ruleset.features
    mute = way.bridged and features.bridge_state == "conntrack" and not features.bridge_reject
    local = way.destination.version == 6 and way.destination.is_link_local
    mute = mute or (local and way.packet.protocol is not Traffic.TCP)
    return Action.DROP if mute and action is Action.REJECT else action


def _stages(ruleset: Ruleset, way: Way) -> Iterator[tuple[Action, str]]:
    """What each stage says, up to the first that does not accept."""
    spoof = _spoofed(ruleset, way, way.sender) if way.sender else ""
    if spoof:
        yield Action.DROP, f"spoof/{spoof}"
        return
    if way.packet.arp:
        yield Action.ACCEPT, "house/neighbours"
    elif way.packet.established:
        yield Action.ACCEPT, "house/established"
    elif _is_neighbourly(way.packet):
        yield Action.ACCEPT, "house/neighbours"
    elif way.gateway:
        yield from _to_house(ruleset, way)
    else:
        yield from _through_house(ruleset, way)


def _through_house(ruleset: Ruleset, way: Way) -> Iterator[tuple[Action, str]]:
    devices = {way.came_by, way.leaves_by}
    alone = (ruleset.bridges.get(device) for device in devices)
    if len(devices) > 1 and any(n and n.kind is NetworkKind.ISOLATED for n in alone):
        yield Action.DROP, "wall/isolated"
        return
    if way.sender:
        wall = _wall(ruleset, way, way.sender)
        yield _judged(ruleset, way._replace(wall=wall), way.sender, Direction.OUT)
    if way.receiver:
        across = way.sender and not way.bridged
        there = way._replace(wall=Wall.NETWORK if across else None)
        yield _judged(ruleset, there, way.receiver, Direction.IN)


def _wall(ruleset: Ruleset, way: Way, sender: Card) -> Wall | None:
    network = ruleset.network_of[sender.network]
    if not network.host_access and _inside(way.destination, ruleset.host_subnets):
        return Wall.HOST
    outward = way.leaves_by == ruleset.uplink
    if not network.lan_access and outward and _inside(way.destination, ruleset.lan_subnets):
        return Wall.LAN
    return None


def _inside(address: Address, subnets: tuple[Subnet, ...]) -> bool:
    return any(address.version == s.version and address in s for s in subnets)


def _judged(ruleset: Ruleset, way: Way, card: Card, direction: Direction) -> tuple[Action, str]:
    """By the rules about `card`, the wall, and its policy."""
    for block in blocks(ruleset, card, direction):
        for step in block.steps:
            if matches(ruleset, step, way):
                return step.rule.action, step.key
    if way.wall:
        return Action.DROP, f"wall/{way.wall.value}"
    if direction is Direction.IN and way.published:
        return Action.ACCEPT, "house/published"
    natted = ruleset.network_of[card.network].kind is NetworkKind.NAT
    if direction is Direction.IN and natted and way.came_by == ruleset.uplink:
        return Action.DROP, "wall/unsolicited"
    return ruleset.policy_of(card, direction)


def matches(ruleset: Ruleset, step: Step, way: Way) -> bool:
    """Whether the rule is about the packet, and opens the wall that is before it."""
    rule, packet = step.rule, way.packet
    if rule.protocol is not Traffic.ANY and rule.protocol is not packet.protocol:
        return False
    for texts, port in ((rule.ports, packet.port), (rule.source_ports, packet.source_port)):
        ranges = [parse_ports(text) for text in texts]
        if ranges and not any(first <= port <= last for first, last in ranges):
            return False
    if way.wall:
        if not step.far and way.wall not in opened(ruleset, step, None):
            return False
        far = tuple(end for end in step.far if way.wall in opened(ruleset, step, end))
        if step.far and not far:
            return False
        step = step.narrowed(far)
    return _is_one(ruleset, step.sources, way, way.source, sending=True) and _is_one(
        ruleset, step.destinations, way, way.destination, sending=False
    )


def _is_one(
    ruleset: Ruleset, ends: tuple[Endpoint, ...], way: Way, address: Address, *, sending: bool
) -> bool:
    return not ends or any(_is_at(ruleset, end, way, address, sending=sending) for end in ends)


def _is_at(ruleset: Ruleset, end: Endpoint, way: Way, address: Address, *, sending: bool) -> bool:
    card = way.sender if sending else way.receiver
    device = way.came_by if sending else way.leaves_by
    found = False
    match end.kind:
        case EndpointKind.CIDR:
            found = _inside(address, (end.subnet,))
        case EndpointKind.GUEST:
            found = _is_card(ruleset.cards_of.get(end.value, ()), card, address, sending=sending)
        case EndpointKind.GROUP:
            found = _is_card(ruleset.members.get(end.value, ()), card, address, sending=sending)
        case EndpointKind.SET:
            named = ruleset.set_of.get(end.value)
            entries = named.entries if named else ()
            found = any(_inside(address, (Endpoint(EndpointKind.CIDR, e).subnet,)) for e in entries)
        case EndpointKind.NETWORK:
            network = ruleset.network_of.get(end.value)
            found = network is not None and network.bridge == device
        case EndpointKind.HOST:
            found = _inside(address, ruleset.host_subnets)
        case EndpointKind.LAN:
            found = _inside(address, ruleset.lan_subnets)
        case EndpointKind.OUTSIDE:
            found = device == ruleset.uplink
    return found


def _is_card(
    cards: tuple[Card, ...], card: Card | None, address: Address, *, sending: bool
) -> bool:
    """Who sends is known by the card, who is sent to also by the address, wherever that leads."""
    return card in cards or (not sending and any(str(address) in c.addresses for c in cards))


def _to_house(ruleset: Ruleset, way: Way) -> Iterator[tuple[Action, str]]:
    packet = way.packet
    if way.sender and packet.protocol is Traffic.UDP and packet.port in DHCP_PORTS.values():
        yield Action.ACCEPT, "house/dhcp"
        return
    if way.sender:
        yield _judged(ruleset, way, way.sender, Direction.OUT)
        network = ruleset.network_of[way.sender.network]
        own = {network.gateway4, network.gateway6, GATEWAY_LINK_LOCAL}
        if str(way.destination) in own:
            if packet.protocol in (Traffic.TCP, Traffic.UDP) and packet.port == DNS_PORT:
                yield Action.ACCEPT, "house/dns"
                return
            if packet.protocol is Traffic.ICMP and packet.icmp_type == "echo-request":
                yield Action.ACCEPT, "house/echo"
                return
    yield Action.DROP, "house/closed"


def _spoofed(ruleset: Ruleset, way: Way, card: Card) -> str:
    """What the card pretends that it may not; see `spoofing`."""
    packet = way.packet
    if packet.mac and packet.mac.lower() != card.mac.lower():
        return "mac"
    if packet.arp:
        return "" if str(way.source) in card.addresses or card.any_address else "arp"
    if packet.protocol is Traffic.ICMP:
        lie = LIES.get(packet.icmp_type, "")
        advertised = packet.icmp_type == "nd-neighbor-advert"
        if advertised and not _may_use(ruleset, card, packet.target):
            lie = "neighbour-advert"
        if lie:
            return lie
    version = way.source.version
    if packet.protocol is Traffic.UDP and packet.source_port == DHCP_PORTS[version]:
        return "dhcp-server"
    if str(way.source) in NOBODY and (_asks_for_address(packet) or _is_neighbourly(packet)):
        return ""
    return "" if _may_use(ruleset, card, str(way.source)) else f"ipv{version}"


def _may_use(ruleset: Ruleset, card: Card, address: str) -> bool:
    if address in (*card.addresses, *card.all_link_locals):
        return True
    parsed = ipaddress.ip_address(address) if address else None
    if parsed and parsed.version == 6 and parsed.is_link_local:
        return address not in ruleset.reserved
    return card.any_address


def _asks_for_address(packet: Packet) -> bool:
    ports = (packet.source_port, packet.port)
    return packet.protocol is Traffic.UDP and ports == (68, DHCP_PORTS[4])


def _is_neighbourly(packet: Packet) -> bool:
    return packet.protocol is Traffic.ICMP and packet.icmp_type in NEIGHBOURS
