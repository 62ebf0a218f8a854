"""One rule of the model as rules of nft.

A guest that sends is known by its MAC, which `spoofing` makes sure of and which covers both
versions of IP and link-local addresses at once; a guest that receives by its MAC where the packet
is bridged and by its address where it is routed. So one rule can become several of nft's, which
share one name; a packet meets at most one of them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from guesthouse.model.firewall import (
    Action,
    Direction,
    Endpoint,
    EndpointKind,
    Rule,
    Subnet,
    Traffic,
    Wall,
    parse_ports,
    subnet_of,
)
from guesthouse.model.network import Network
from guesthouse.network.rules.ruleset import Ruleset
from guesthouse.network.rules.steps import WALLS, Step, opened
from guesthouse.network.rules.text import Table, one_of, quoted

LOG_LIMIT = "limit rate 5/second burst 20 packets"
"""Of each rule that logs; a flood must not fill the disk."""


FEW_PORTS = 4
ICMP = {0: "@any_icmp", 4: "icmp", 6: "ipv6-icmp"}

MARKS = {Wall.NETWORK: 1, Wall.HOST: 2, Wall.LAN: 3}
"""Marks of packets that want through a wall; `house` sets them, and drops what nobody opened."""
UNMARKED = "meta mark 0"


class Match(NamedTuple):
    """:ivar version: 4, 6, or 0 where it holds for both. :ivar text: empty matches everything."""

    version: int
    text: str


def step_lines(table: Table, ruleset: Ruleset, step: Step) -> list[str]:
    """nft's rules for `step`; none when nobody is left whom it could be about."""
    lines = []
    for match in _matches(table, ruleset, step):
        if step.rule.log:
            lines.append(_join(match, LOG_LIMIT, _log(ruleset, step)))
        lines.append(
            _join(match, decided(table, ruleset, step.key, step.rule.action, step.rule.protocol))
        )
    return lines


def decided(
    table: Table,
    ruleset: Ruleset,
    key: str,
    action: Action,
    protocol: Traffic = Traffic.ANY,
) -> str:
    """Counter, verdict and name."""
    return (
        f"{table.counter(key)} {_verdict(table, ruleset, action, protocol)} comment {quoted(key)}"
    )


def _verdict(table: Table, ruleset: Ruleset, action: Action, protocol: Traffic) -> str:
    if action is not Action.REJECT:
        return action.value
    if table.family == "bridge" and not ruleset.features.bridge_reject:
        return "drop"
    return "reject with tcp reset" if protocol is Traffic.TCP else "goto refuse"


def refuse_lines() -> list[str]:
    """Of chain `refuse`, which answers whatever is rejected."""
    return ["meta l4proto tcp reject with tcp reset", "reject with icmpx admin-prohibited"]


def _log(ruleset: Ruleset, step: Step) -> str:
    group = ruleset.features.log_group
    where = "level info" if group is None else f"group {group}"
    return f"log prefix {quoted(f'{step.key} {step.rule.action.value} ')} {where}"


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _matches(table: Table, ruleset: Ruleset, step: Step) -> Iterator[str]:
    for walls, part in _by_walls(ruleset, step):
        mark = _unmarked(step.rule.direction, walls) if table.family == "inet" else ""
        for source in _ends(table.family, ruleset, part.sources, "s"):
            for destination in _ends(table.family, ruleset, part.destinations, "d"):
                versions = {source.version, destination.version} - {0}
                if len(versions) == 2:
                    continue
                version = versions.pop() if versions else 0
                for protocol in _protocol(table, step.rule, version):
                    yield _join(mark, source.text, destination.text, protocol)


def _by_walls(ruleset: Ruleset, step: Step) -> list[tuple[frozenset[Wall], Step]]:
    """The step in parts that open the same walls."""
    parts: dict[frozenset[Wall], list[Endpoint]] = {}
    for end in step.far:
        parts.setdefault(opened(ruleset, step, end), []).append(end)
    if not parts:
        return [(opened(ruleset, step, None), step)]
    return [(walls, step.narrowed(tuple(ends))) for walls, ends in parts.items()]


def _unmarked(direction: Direction, walls: frozenset[Wall]) -> str:
    """Leaves alone what wants through a wall that is not opened."""
    shut = [str(MARKS[wall]) for wall in WALLS[direction] if wall not in walls]
    if not shut:
        return ""
    return f"meta mark != {shut[0]}" if len(shut) < len(WALLS[direction]) else UNMARKED


def _protocol(table: Table, rule: Rule, version: int) -> Iterator[str]:
    if rule.protocol is Traffic.ANY:
        yield ""
    elif rule.protocol is Traffic.ICMP:
        yield f"meta l4proto {ICMP[version]}"
    elif not rule.ports and not rule.source_ports:
        yield f"meta l4proto {rule.protocol.value}"
    else:
        name = rule.protocol.value
        for source in _ports(table, f"{name} sport", rule.source_ports):
            for destination in _ports(table, f"{name} dport", rule.ports):
                yield _join(source, destination)


def _ports(table: Table, word: str, texts: tuple[str, ...]) -> list[str]:
    """A rule for each of a few ports loads four times faster than an anonymous set of them; many
    become a set, which rules with the same ports share."""
    ranges = _merged(texts)
    if len(ranges) <= FEW_PORTS:
        return [f"{word} {text}" for text in ranges] or [""]
    return [f"{word} @{table.shared('ports', 'type inet_service; flags interval', ranges)}"]


def _merged(texts: Iterable[str]) -> list[str]:
    """Ranges that do not overlap, which nft insists on."""
    ranges: list[list[int]] = []
    for first, last in sorted(parse_ports(text) for text in texts):
        if ranges and first <= ranges[-1][1] + 1:
            ranges[-1][1] = max(ranges[-1][1], last)
        else:
            ranges.append([first, last])
    return [str(a) if a == b else f"{a}-{b}" for a, b in ranges]


def _ends(family: str, ruleset: Ruleset, ends: tuple[Endpoint, ...], side: str) -> list[Match]:
    """:param side: `s` for sources, `d` for destinations."""
    if not ends:
        return [Match(0, "")]
    found: list[Match] = []
    for kind in EndpointKind:
        values = [end.value for end in ends if end.kind is kind]
        if values:
            found += _of_kind(family, ruleset, kind, values, side)
    return found


def _of_kind(
    family: str, ruleset: Ruleset, kind: EndpointKind, values: list[str], side: str
) -> list[Match]:
    found: list[Match] = []
    match kind:
        case EndpointKind.CIDR:
            found = _addresses(values, side)
        case EndpointKind.GUEST:
            found = _guests(ruleset, values, side)
        case EndpointKind.GROUP:
            groups = [value for value in values if value in ruleset.group_of]
            found = [match for group in groups for match in _group(group, side)]
        case EndpointKind.SET:
            found = [match for value in values for match in _set(ruleset, value, side)]
        case EndpointKind.NETWORK:
            networks = [ruleset.network_of[v] for v in values if v in ruleset.network_of]
            found = _networks(family, networks, side)
        case EndpointKind.HOST | EndpointKind.LAN:
            found = [
                Match(4, f"ip {side}addr @{kind.value}4"),
                Match(6, f"ip6 {side}addr @{kind.value}6"),
            ]
        case EndpointKind.OUTSIDE if family == "inet":
            way = "i" if side == "s" else "o"
            found = [Match(0, f"{way}ifname {outward(ruleset)}")]
    return found


def outward(ruleset: Ruleset) -> str:
    """The devices that lead out of the house."""
    devices = [quoted(device) for device in (ruleset.uplink, ruleset.direct) if device]
    return devices[0] if len(devices) == 1 else f"{{ {', '.join(devices)} }}"


def _addresses(texts: list[str], side: str) -> list[Match]:
    found = []
    for version, word in ((4, "ip"), (6, "ip6")):
        merged = merge(s for s in map(subnet_of, texts) if s.version == version)
        if merged:
            found.append(Match(version, f"{word} {side}addr {one_of(merged)}"))
    return found


def merge(subnets: Iterable[Subnet]) -> list[str]:
    """Subnets of one version as nft writes them, without overlaps, which it refuses."""
    listed = list(subnets)
    if len(listed) == 1:
        return [_spelled(listed[0])]
    four = [s for s in listed if isinstance(s, ipaddress.IPv4Network)]
    six = [s for s in listed if isinstance(s, ipaddress.IPv6Network)]
    merged: list[Subnet] = [
        *ipaddress.collapse_addresses(four),
        *ipaddress.collapse_addresses(six),
    ]
    return [_spelled(subnet) for subnet in merged]


def _spelled(subnet: Subnet) -> str:
    return str(subnet.network_address if subnet.num_addresses == 1 else subnet)


def _guests(ruleset: Ruleset, ids: list[str], side: str) -> list[Match]:
    cards = [card for guest in ids for card in ruleset.cards_of.get(guest, ())]
    if not cards:
        return []
    found = [Match(0, f"ether {side}addr {one_of(card.mac for card in cards)}")]
    if side == "d":
        found += _addresses([a for card in cards for a in card.addresses], side)
    return found


def _group(group: str, side: str) -> list[Match]:
    name = group_name(group)
    found = [Match(0, f"ether {side}addr @{name}_mac")]
    if side == "d":
        found += [Match(4, f"ip daddr @{name}_4"), Match(6, f"ip6 daddr @{name}_6")]
    return found


def _set(ruleset: Ruleset, name: str, side: str) -> list[Match]:
    addresses = ruleset.set_of.get(name)
    versions = {ipaddress.ip_network(e).version for e in addresses.entries} if addresses else ()
    return [
        Match(version, f"{word} {side}addr @{set_name(name)}_{version}")
        for version, word in ((4, "ip"), (6, "ip6"))
        if version in versions
    ]


def _networks(family: str, networks: list[Network], side: str) -> list[Match]:
    if not networks:
        return []
    device = f"{'i' if side == 's' else 'o'}ifname"
    if family == "inet":
        return [Match(0, f"{device} {one_of(quoted(n.bridge) for n in networks)}")]
    return [Match(0, f"{device} @{ports_name(n)}") for n in networks]


def group_name(group: str) -> str:
    return f"group_{group.lower()}"


def set_name(name: str) -> str:
    return f"set_{name.lower()}"


def ports_name(network: Network) -> str:
    """Set of the devices on a network's bridge."""
    return f"ports_{network.id.lower()}"
