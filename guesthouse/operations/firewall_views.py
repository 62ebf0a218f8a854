"""Firewalls, groups and sets as people see them: with names, numbers and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from guesthouse.model.firewall import (
    Action,
    AddressSet,
    Direction,
    EndpointKind,
    Firewall,
    Rule,
    SecurityGroup,
)
from guesthouse.model.firewalling import (
    AddressSetView,
    CounterView,
    DefaultView,
    FirewallView,
    RuleView,
    SecurityGroupView,
)
from guesthouse.model.guest import Guest
from guesthouse.model.network import Network
from guesthouse.network.rules.explaining import explain
from guesthouse.network.rules.text import Count
from guesthouse.operations.firewall_names import (
    label,
    members,
    name_of,
    named_by,
    owner_of,
    protects,
    shown,
)
from guesthouse.operations.rooms import Rooms
from guesthouse.store.view import View

Counts = Mapping[str, Count]


async def guest_firewall(rooms: Rooms, guest: Guest) -> FirewallView:
    """Every rule that is asked about the guest's packets, in order."""
    counts, view, own = await rooms.rules.counters(), rooms.view, guest.spec.firewall
    known = [view.networks.get(nic.network) for nic in guest.spec.nics]
    networks = list(dict.fromkeys(network.id for network in known if network is not None))
    applied = list(_rules(view, f"guest/{guest.id}", own.rules, counts))
    groups = list(own.groups)
    for id in networks:
        groups += view.networks[id].firewall.groups
    for group in dict.fromkeys(groups):
        if group in view.groups:
            applied += _rules(view, f"group/{group}", view.groups[group].rules, counts)
    for id in networks:
        applied += _rules(view, f"network/{id}", view.networks[id].firewall.rules, counts)
    return FirewallView(
        owner=f"guest {guest.name}",
        rules=_rules(view, f"guest/{guest.id}", own.rules, counts),
        groups=_groups(view, own),
        policy=own.policy,
        applied=tuple(applied),
        defaults=_defaults(view, guest, [view.networks[id] for id in networks], counts),
        active=rooms.rules.holds(guest.id),
        warnings=tuple(_warnings(rooms, guest, applied)),
    )


async def network_firewall(rooms: Rooms, network: Network) -> FirewallView:
    counts, own = await rooms.rules.counters(), network.firewall
    rules = _rules(rooms.view, f"network/{network.id}", own.rules, counts)
    users = [
        guest.id
        for guest in rooms.view.guests.values()
        if any(nic.network == network.id for nic in guest.spec.nics)
    ]
    return FirewallView(
        owner=f"network {network.name}",
        rules=rules,
        groups=_groups(rooms.view, own),
        policy=own.policy,
        active=any(rooms.rules.holds(guest) for guest in users),
        warnings=tuple(_kernel_warnings(rooms, rules)),
    )


async def group_view(rooms: Rooms, group: SecurityGroup) -> SecurityGroupView:
    return group_with(rooms.view, group, await rooms.rules.counters())


def group_with(view: View, group: SecurityGroup, counts: Counts) -> SecurityGroupView:
    return SecurityGroupView(
        id=group.id,
        name=group.name,
        note=group.note,
        rules=_rules(view, f"group/{group.id}", group.rules, counts),
        members=tuple(members(view, group.id)),
        named_by=tuple(named_by(view, EndpointKind.GROUP, group.id)),
        created_at=group.created_at,
    )


def set_view(view: View, addresses: AddressSet) -> AddressSetView:
    return AddressSetView(
        id=addresses.id,
        name=addresses.name,
        entries=addresses.entries,
        note=addresses.note,
        named_by=tuple(named_by(view, EndpointKind.SET, addresses.id)),
        created_at=addresses.created_at,
    )


async def counters(rooms: Rooms) -> list[CounterView]:
    """Everything that decided about a packet, most often first."""
    counts = await rooms.rules.counters()
    if not counts:
        return []
    ruleset = await rooms.rules.ruleset(rooms.view)
    found = [
        CounterView(
            rule=key,
            label=label(rooms.view, key),
            reason=explain(ruleset, key),
            packets=one.packets,
            bytes=one.bytes,
        )
        for key, one in counts.items()
    ]
    return sorted(found, key=lambda one: (-one.packets, one.rule))


def _rules(view: View, owner: str, rules: Sequence[Rule], counts: Counts) -> tuple[RuleView, ...]:
    """:param owner: `guest/ID`, as in keys."""
    found = []
    for number, rule in enumerate(rules, start=1):
        sources, missing = shown(view, rule.sources)
        destinations, others = shown(view, rule.destinations)
        key = f"{owner}/{rule.name}"
        fields = msgspec.structs.asdict(rule) | {"sources": sources, "destinations": destinations}
        found.append(
            RuleView(
                **fields,
                number=number,
                owner=owner_of(view, key),
                missing=missing | others,
                packets=counts[key].packets if key in counts else None,
                bytes=counts[key].bytes if key in counts else None,
            )
        )
    return tuple(found)


def _groups(view: View, firewall: Firewall) -> tuple[str, ...]:
    return tuple(name_of(view, "group", group) or group for group in firewall.groups)


def _defaults(
    view: View, guest: Guest, networks: Sequence[Network], counts: Counts
) -> tuple[DefaultView, ...]:
    found: dict[tuple[Direction, str], DefaultView] = {}
    for direction in Direction:
        for network in networks:
            owners = (
                (guest.spec.firewall.policy.of(direction), f"guest/{guest.id}"),
                (network.firewall.policy.of(direction), f"network/{network.id}"),
                (Action.ACCEPT, "house"),
            )
            action, owner = next((a, o) for a, o in owners if a is not None)
            count = counts.get(f"{owner}/policy-{direction.value}")
            found[direction, owner] = DefaultView(
                direction=direction,
                action=action,
                owner=owner_of(view, owner) or owner,
                packets=count.packets if count else None,
                bytes=count.bytes if count else None,
            )
    return tuple(found.values())


def _warnings(rooms: Rooms, guest: Guest, rules: Sequence[RuleView]) -> list[str]:
    found = _kernel_warnings(rooms, rules)
    apart = [nic.index for nic in guest.spec.nics if nic.network not in rooms.view.networks]
    if apart and (rules or protects(guest.spec.firewall)):
        cards = ", ".join(map(str, apart))
        found.append(f"Rules do not hold for card {cards}, which is on no network of the house.")
    return found


def _kernel_warnings(rooms: Rooms, rules: Sequence[RuleView]) -> list[str]:
    lack = rooms.rules.lack("nft-log") if any(rule.log for rule in rules) else None
    return [f"Nothing is logged: {lack.reason}"] if lack else []
