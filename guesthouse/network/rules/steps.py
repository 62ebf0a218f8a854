"""Which rules are asked about a card's packets, and in what order.

The compiler writes these steps down for the kernel and the dry run walks through them, so both
have one idea of the order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from guesthouse.model.firewall import (
    Action,
    Direction,
    Endpoint,
    Rule,
    Wall,
    opens,
    parse_endpoint,
)
from guesthouse.network.rules.ruleset import Card, Ruleset


class Step(NamedTuple):
    """One rule of one owner, made narrower where it stands before a wall.

    :ivar key: `guest/ID/NAME`, `group/ID/NAME`, `network/ID/NAME`: its counters' and logs' name.
    :ivar sources: any one of them; none means anyone. `destinations`: likewise.
    """

    key: str
    rule: Rule
    sources: tuple[Endpoint, ...]
    destinations: tuple[Endpoint, ...]


class Block(NamedTuple):
    """The steps of one owner: `guest/ID`, `group/ID` or `network/ID`; never none."""

    owner: str
    steps: tuple[Step, ...]


def blocks(
    ruleset: Ruleset, card: Card, direction: Direction, wall: Wall | None = None
) -> tuple[Block, ...]:
    """Whom to ask about a packet to or from `card`, in order.

    :param wall: the packet wants through that wall. Then no blocks means that nothing opens it.
    """
    found = tuple(_blocks(ruleset, card, direction, wall))
    if wall and not any(s.rule.action is Action.ACCEPT for b in found for s in b.steps):
        return ()
    return found


def _blocks(
    ruleset: Ruleset, card: Card, direction: Direction, wall: Wall | None
) -> Iterator[Block]:
    network = ruleset.network_of[card.network]
    owners = [
        (f"guest/{card.guest}", card.firewall.rules),
        *((f"group/{g}", ruleset.group_of[g].rules) for g in ruleset.groups_of(card)),
        (f"network/{network.id}", network.firewall.rules),
    ]
    for owner, rules in owners:
        steps = tuple(
            step
            for rule in rules
            if rule.enabled and rule.direction is direction
            if (step := _step(ruleset, owner, rule, wall))
        )
        if steps:
            yield Block(owner, steps)


def _step(ruleset: Ruleset, owner: str, rule: Rule, wall: Wall | None) -> Step | None:
    sources = tuple(parse_endpoint(text) for text in rule.sources)
    destinations = tuple(parse_endpoint(text) for text in rule.destinations)
    if wall and rule.action is Action.ACCEPT:
        far = sources if rule.direction is Direction.IN else destinations
        far = tuple(end for end in far if opens(end, wall, ruleset.lan_subnets))
        if not far:
            return None
        if rule.direction is Direction.IN:
            sources = far
        else:
            destinations = far
    return Step(f"{owner}/{rule.name}", rule, sources, destinations)


def is_judged(ruleset: Ruleset, card: Card, direction: Direction) -> bool:
    """Whether anything but `accept` can become of the card's packets by rules or policy."""
    action, _ = ruleset.policy_of(card, direction)
    return action is not Action.ACCEPT or bool(blocks(ruleset, card, direction))
