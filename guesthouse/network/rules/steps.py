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

WALLS = {Direction.IN: (Wall.NETWORK,), Direction.OUT: (Wall.HOST, Wall.LAN)}


class Step(NamedTuple):
    """One rule of one owner.

    :ivar key: `guest/ID/NAME`, `group/ID/NAME`, `network/ID/NAME`: its counters' and logs' name.
    :ivar sources: any one of them; none means anyone. `destinations`: likewise.
    """

    key: str
    rule: Rule
    sources: tuple[Endpoint, ...]
    destinations: tuple[Endpoint, ...]

    @property
    def far(self) -> tuple[Endpoint, ...]:
        """The end that is not the guest's."""
        return self.sources if self.rule.direction is Direction.IN else self.destinations

    def narrowed(self, far: tuple[Endpoint, ...]) -> Step:
        """The same with other far ends."""
        if self.rule.direction is Direction.IN:
            return self._replace(sources=far)
        return self._replace(destinations=far)


class Block(NamedTuple):
    """The steps of one owner: `guest/ID`, `group/ID` or `network/ID`; never none."""

    owner: str
    steps: tuple[Step, ...]


def blocks(ruleset: Ruleset, card: Card, direction: Direction) -> tuple[Block, ...]:
    """Whom to ask about a packet to or from `card`, in order."""
    network = ruleset.network_of[card.network]
    owners = [
        (f"guest/{card.guest}", card.firewall.rules),
        *((f"group/{g}", ruleset.group_of[g].rules) for g in ruleset.groups_of(card)),
        (f"network/{network.id}", network.firewall.rules),
    ]
    found = [Block(owner, tuple(_steps(owner, rules, direction))) for owner, rules in owners]
    return tuple(block for block in found if block.steps)


def _steps(owner: str, rules: tuple[Rule, ...], direction: Direction) -> Iterator[Step]:
    for rule in rules:
        if rule.enabled and rule.direction is direction:
            yield Step(
                f"{owner}/{rule.name}",
                rule,
                tuple(parse_endpoint(text) for text in rule.sources),
                tuple(parse_endpoint(text) for text in rule.destinations),
            )


def opened(ruleset: Ruleset, step: Step, end: Endpoint | None) -> frozenset[Wall]:
    """The walls that the step opens by naming `end`; None: it names nobody.

    What is forbidden is forbidden at a wall too, so other actions count as opening all.
    """
    walls = WALLS[step.rule.direction]
    if step.rule.action is not Action.ACCEPT:
        return frozenset(walls)
    if end is None:
        return frozenset()
    return frozenset(wall for wall in walls if opens(end, wall, ruleset.lan_subnets))


def is_judged(ruleset: Ruleset, card: Card, direction: Direction) -> bool:
    """Whether anything but `accept` can become of the card's packets by rules or policy."""
    action, _ = ruleset.policy_of(card, direction)
    return action is not Action.ACCEPT or any(
        rule.enabled and rule.direction is direction
        for rules in (
            card.firewall.rules,
            ruleset.network_of[card.network].firewall.rules,
            *(ruleset.group_of[group].rules for group in ruleset.groups_of(card)),
        )
        for rule in rules
    )
