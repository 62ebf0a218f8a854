"""Chains of the guests' cards, and the maps that lead packets to them.

A card has a chain for what it sends and one for what it gets, and one for each wall that a rule of
it opens; a card that no rule and no policy is about has none. Chains of groups and networks are
shared. Where a chain ends without a verdict the packet goes back to `house`'s.
"""

from __future__ import annotations

import ipaddress
import re

from guesthouse.model.firewall import Direction, Wall
from guesthouse.model.network import NetworkKind
from guesthouse.network.rules.ruleset import Card, Ruleset
from guesthouse.network.rules.statements import (
    decided,
    group_name,
    merge,
    ports_name,
    set_name,
    step_lines,
)
from guesthouse.network.rules.steps import Block, blocks, is_judged
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
            ports += [quoted(network.uplink)] if network.uplink else []
            table.set(ports_name(network), "type ifname", ports)


def _offer_subnets(table: Table, name: str, texts: tuple[str, ...]) -> None:
    subnets = [ipaddress.ip_network(text) for text in texts]
    for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        merged = merge(subnet for subnet in subnets if subnet.version == version)
        table.set(f"{name}{version}", f"type {kind}; flags interval", merged)


def card_chains(table: Table, ruleset: Ruleset) -> None:
    """All chains and maps: `senders` and `receivers*` for rules and policies, `host_senders`,
    `lan_senders` and `across*` for opened walls."""
    senders, receivers = {}, {}
    opened: dict[Wall, dict[str, str]] = {wall: {} for wall in Wall}
    for card in ruleset.cards:
        if is_judged(ruleset, card, Direction.OUT):
            senders[card.tap] = _card_chain(table, ruleset, card, Direction.OUT)
        if is_judged(ruleset, card, Direction.IN):
            receivers[card.tap] = _card_chain(table, ruleset, card, Direction.IN)
        for wall in Wall if table.family == "inet" else ():
            name = _wall_chain(table, ruleset, card, wall)
            if name:
                opened[wall][card.tap] = name
    if table.family == "bridge":
        _port_map(table, "senders", senders)
        _port_map(table, "receivers", receivers)
        return
    cards = ruleset.cards
    _map(table, "senders", "ether_addr", {c.mac: senders.get(c.tap) for c in cards})
    _map(table, "receivers", "ether_addr", {c.mac: receivers.get(c.tap) for c in cards})
    _address_maps(table, ruleset, "receivers", receivers)
    _address_maps(table, ruleset, "across", opened[Wall.NETWORK])
    for wall in (Wall.HOST, Wall.LAN):
        chains = {c.mac: opened[wall].get(c.tap) for c in cards}
        _map(table, f"{wall.value}_senders", "ether_addr", chains)


def _port_map(table: Table, name: str, chains: dict[str, str]) -> None:
    _map(table, name, "ifname", {quoted(tap): chain for tap, chain in chains.items()})


def _address_maps(table: Table, ruleset: Ruleset, name: str, chains: dict[str, str]) -> None:
    for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        _map(
            table,
            f"{name}{version}",
            kind,
            {a: chains.get(c.tap) for c in ruleset.cards for a in c.of_version(version)},
        )


def _map(
    table: Table, name: str, kind: str, chains: dict[str, str] | dict[str, str | None]
) -> None:
    elements = {key: f"jump {chain}" for key, chain in chains.items() if chain}
    table.map(name, f"type {kind} : verdict", elements)


def _card_chain(table: Table, ruleset: Ruleset, card: Card, direction: Direction) -> str:
    lines = _block_lines(table, ruleset, card, blocks(ruleset, card, direction), direction.value)
    if direction is Direction.IN and table.family == "inet":
        lines.append(published_line(table))
        if ruleset.network_of[card.network].kind is NetworkKind.NAT:
            lines.append(unsolicited_line(table, ruleset))
    action, key = ruleset.policy_of(card, direction)
    lines.append(decided(table, ruleset, key, action))
    return table.chain(_name(direction.value, card.tap), lines)


def _wall_chain(table: Table, ruleset: Ruleset, card: Card, wall: Wall) -> str:
    direction = Direction.IN if wall is Wall.NETWORK else Direction.OUT
    found = blocks(ruleset, card, direction, wall)
    if not found:
        return ""
    lines = _block_lines(table, ruleset, card, found, wall.value)
    return table.chain(_name(wall.value, card.tap), lines)


def _block_lines(
    table: Table, ruleset: Ruleset, card: Card, found: tuple[Block, ...], purpose: str
) -> list[str]:
    """The card's own rules in place, jumps to shared ones."""
    lines: list[str] = []
    for block in found:
        own = block.owner == f"guest/{card.guest}"
        name = _name(block.owner.replace("/", "_").lower(), purpose)
        if own or not table.has_chain(name):
            steps = [line for step in block.steps for line in step_lines(table, ruleset, step)]
            if own:
                lines += steps
                continue
            table.chain(name, steps)
        lines.append(f"jump {name}")
    return lines


def published_line(table: Table) -> str:
    """A published port passes the default policy: it was opened on purpose."""
    return f"ct status dnat {table.counter(PUBLISHED)} accept comment {quoted(PUBLISHED)}"


def unsolicited_line(table: Table, ruleset: Ruleset) -> str:
    """Nobody outside can know of an address behind NAT."""
    return (
        f"iifname {quoted(ruleset.uplink)} {table.counter(UNSOLICITED)} drop "
        f"comment {quoted(UNSOLICITED)}"
    )


def _name(*parts: str) -> str:
    return re.sub(r"\W", "_", "_".join(parts))
