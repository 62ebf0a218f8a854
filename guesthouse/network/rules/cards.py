"""Chains of the guests' cards, and the maps that lead packets to them.

A card has a chain for what it sends and one for what it gets; a card that no rule and no policy is
about has none. Chains of groups and networks are shared. A packet that wants through a wall (it is
marked) and that nobody let through comes back from there to `house`, which drops it.
"""

from __future__ import annotations

import ipaddress
import re

from guesthouse.model.firewall import Direction
from guesthouse.model.network import NetworkKind
from guesthouse.network.rules.ruleset import Card, Ruleset
from guesthouse.network.rules.statements import (
    UNMARKED,
    decided,
    group_name,
    merge,
    ports_name,
    set_name,
    step_lines,
)
from guesthouse.network.rules.steps import blocks, is_judged
from guesthouse.network.rules.text import Table, quoted

PUBLISHED = "house/published"
UNSOLICITED = "wall/unsolicited"


def offer_sets(table: Table, ruleset: Ruleset) -> None:
    """The sets that rules refer to by name."""
    table.set("any_icmp", "type inet_proto", ["icmp", "ipv6-icmp"])
    for group, members in ruleset.members.items():
        name = group_name(group)
        table.set(f"{name}_mac", "type ether_addr", [card.mac for card in members])
        for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
            own = [address for card in members for address in card.of_version(version)]
            table.set(f"{name}_{version}", f"type {kind}", own)
    named = {set_name(s.id): tuple(s.entries) for s in ruleset.sets}
    for name, entries in named.items():
        _offer_subnets(table, f"{name}_", entries)
    for name, subnets in (("host", ruleset.host_subnets), ("lan", ruleset.lan_subnets)):
        _offer_subnets(table, name, tuple(map(str, subnets)))
    if table.family == "bridge":
        for network in ruleset.networks:
            ports = [quoted(c.tap) for c in ruleset.cards if c.network == network.id]
            ports += [quoted(network.port)] if network.port else []
            table.set(ports_name(network), "type ifname", ports)


def _offer_subnets(table: Table, name: str, texts: tuple[str, ...]) -> None:
    subnets = [ipaddress.ip_network(text) for text in texts]
    for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        merged = merge(subnet for subnet in subnets if subnet.version == version)
        table.set(f"{name}{version}", f"type {kind}; flags interval", merged)


def card_chains(table: Table, ruleset: Ruleset) -> None:
    """All chains, and the maps `senders` and `receivers*` that lead to them."""
    senders: dict[str, str] = {}
    receivers: dict[str, str] = {}
    for card in ruleset.cards:
        for direction, chains in ((Direction.OUT, senders), (Direction.IN, receivers)):
            if is_judged(ruleset, card, direction):
                chains[card.tap] = f"jump {_card_chain(table, ruleset, card, direction)}"
    if table.family == "bridge":
        for name, chains in (("senders", senders), ("receivers", receivers)):
            elements = {quoted(tap): jump for tap, jump in chains.items()}
            table.map(name, "type ifname : verdict", elements)
        return
    for name, chains in (("senders", senders), ("receivers", receivers)):
        elements = {c.mac: chains[c.tap] for c in ruleset.cards if c.tap in chains}
        table.map(name, "type ether_addr : verdict", elements)
    for version, word in ((4, "ip"), (6, "ip6")):
        elements = {
            f"{quoted(ruleset.network_of[card.network].bridge)} . {address}": receivers[card.tap]
            for card in ruleset.cards
            if card.tap in receivers
            for address in card.of_version(version)
        }
        table.map(f"receivers{version}", f"typeof oifname . {word} daddr : verdict", elements)


def _card_chain(table: Table, ruleset: Ruleset, card: Card, direction: Direction) -> str:
    lines: list[str] = []
    for block in blocks(ruleset, card, direction):
        own = block.owner == f"guest/{card.guest}"
        name = _name(block.owner.lower(), direction.value)
        if own or not table.has_chain(name):
            steps = [line for step in block.steps for line in step_lines(table, ruleset, step)]
            if own:
                lines += steps
                continue
            table.chain(name, steps)
        lines.append(f"jump {name}")
    action, key = ruleset.policy_of(card, direction)
    last = decided(table, ruleset, key, action)
    if table.family == "inet":
        if direction is Direction.IN:
            lines.append(published_line(table))
            if ruleset.network_of[card.network].kind is NetworkKind.NAT:
                lines += unsolicited_lines(table, ruleset)
        last = f"{UNMARKED} {last}"
    return table.chain(_name(direction.value, card.tap), [*lines, last])


def published_line(table: Table) -> str:
    """A published port passes the default policy: it was opened on purpose."""
    return f"ct status dnat {table.counter(PUBLISHED)} accept comment {quoted(PUBLISHED)}"


def unsolicited_lines(table: Table, ruleset: Ruleset) -> list[str]:
    """Nobody outside can know of an address behind NAT, but the host where it is connected."""
    ends = [f"iifname {quoted(ruleset.uplink)}"]
    if ruleset.direct:
        ends += [
            f"iifname {quoted(ruleset.direct)} {'ip6' if ':' in host else 'ip'} saddr != {host}"
            for host in ruleset.direct_hosts
        ]
    return [
        f"{end} {table.counter(UNSOLICITED)} drop comment {quoted(UNSOLICITED)}" for end in ends
    ]


def _name(*parts: str) -> str:
    return re.sub(r"\W", "_", "_".join(parts))
