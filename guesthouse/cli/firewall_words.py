"""The words of `guest firewall`: rules and policies as people say them, and their completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from guesthouse.cli.command import complete_guests, live_list
from guesthouse.client.firewall import GROUPS, SETS, group_path, owner_path
from guesthouse.errors import GuesthouseError, InvalidInput
from guesthouse.model.firewall import PLACES, Action, Direction, Traffic
from guesthouse.model.firewalling import FirewallChange, PolicyChoice, RuleRequest

ACTIONS = {
    "allow": Action.ACCEPT,
    "accept": Action.ACCEPT,
    "deny": Action.DROP,
    "drop": Action.DROP,
    "reject": Action.REJECT,
}
"""The first of each is ours; the others are what people know from elsewhere."""
_OURS = ("allow", "deny", "reject")
_DIRECTIONS = [one.value for one in Direction]
_PROTOCOLS = [one.value for one in Traffic]


def parse_rule(
    words: Sequence[str],
    *,
    sources: Sequence[str] = (),
    destinations: Sequence[str] = (),
    source_ports: Sequence[str] = (),
    **rest: Any,
) -> RuleRequest:
    """`allow in tcp 22`; also `allow in 22/tcp`. :raise InvalidInput:"""
    left = list(words)
    action = _one_of(left, ACTIONS, "allow, deny or reject", "action")
    direction = Direction(_one_of(left, _DIRECTIONS, "in or out", "direction"))
    protocol, ports = parse_traffic(left)
    return RuleRequest(
        action=ACTIONS[action],
        direction=direction,
        protocol=protocol,
        ports=ports,
        sources=tuple(sources),
        destinations=tuple(destinations),
        source_ports=tuple(port for text in source_ports for port in text.split(",")),
        **rest,
    )


def parse_traffic(words: Sequence[str]) -> tuple[Traffic, tuple[str, ...]]:
    """`tcp 22`, `22/tcp`, `icmp` or nothing. :raise InvalidInput:"""
    left = list(words)
    protocol, ports = Traffic.ANY, ""
    if left and left[0] in _PROTOCOLS:
        protocol = Traffic(left.pop(0))
    if left:
        ports, slash, behind = left.pop(0).partition("/")
        if slash:
            left.insert(0, behind)
            protocol = Traffic(_one_of(left, ["tcp", "udp"], "tcp or udp", "protocol"))
    if left:
        raise InvalidInput(
            f"{left[0]!r} is one word too many.",
            hint="Write for example: guest firewall add web allow in tcp 22 --from db",
        )
    found = tuple(part.strip() for part in ports.split(",")) if ports else ()
    if found and protocol not in (Traffic.TCP, Traffic.UDP):
        raise InvalidInput(
            f"{ports!r} names ports, but not of which protocol.",
            hint=f"Write tcp {ports} or udp {ports}; one rule for each.",
            field="ports",
        )
    return protocol, found


def parse_policies(words: Sequence[str]) -> FirewallChange:
    """`in=deny out=allow`. :raise InvalidInput:"""
    found: dict[str, PolicyChoice] = {}
    for word in words:
        direction, _, name = word.partition("=")
        if direction not in _DIRECTIONS or name not in (*ACTIONS, "default"):
            raise InvalidInput(
                f"{word!r} is no policy.",
                hint="Write in= or out= and one of allow, deny, reject, default.",
                field="policy",
            )
        choice = PolicyChoice(ACTIONS[name].value if name in ACTIONS else name)
        found[direction] = choice
    if not found:
        raise InvalidInput(
            "Say which policy.", hint="For example: guest firewall policy web in=deny"
        )
    return FirewallChange(incoming=found.get("in"), outgoing=found.get("out"))


def _one_of(left: list[str], known: Sequence[str] | dict[str, Any], say: str, field: str) -> str:
    """Takes the first word."""
    word = left.pop(0) if left else ""
    if word not in known:
        raise InvalidInput(
            f"{word!r} is neither {say.replace(', ', ' nor ')}." if word else f"Say {say}.",
            hint="Write for example: guest firewall add web allow in tcp 22 --from db",
            field=field,
        )
    return word


def complete_words(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The next word of a rule or policy."""
    said = list(ctx.params.get(param.name or "") or ())
    named = bool(ctx.params.get("network") or ctx.params.get("group"))
    if not said and not named:
        return complete_guests(ctx, param, incomplete)
    at = len(said) - (0 if named else 1)
    if ctx.info_name == "policy":
        policies = (*_OURS, "default")
        choices = [f"{one}={policy}" for one in _DIRECTIONS for policy in policies]
    else:
        choices = ([*_OURS], _DIRECTIONS, _PROTOCOLS)[at] if at < 3 else []
    return [CompletionItem(word) for word in choices if word.startswith(incomplete)]


def complete_rules(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Guests first, then names of the owner's rules."""
    said = list(ctx.params.get(param.name or "") or ())
    network, group = ctx.params.get("network"), ctx.params.get("group")
    if not said and not network and not group:
        return complete_guests(ctx, param, incomplete)
    guest = said[0] if said else ""
    try:
        path = group_path(group) if group else owner_path(guest=guest, network=network or "")
    except GuesthouseError:
        return []
    return [
        CompletionItem(rule["name"], help=f"{rule['direction']} {rule['action']}")
        for rule in live_list(path, "rules")
        if rule["name"].startswith(incomplete) and rule["name"] not in said
    ]


def complete_groups(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of security groups, with how many are in each."""
    return [
        CompletionItem(one["name"], help=f"{len(one['members'])} in it")
        for one in live_list(GROUPS)
        if one["name"].startswith(incomplete)
    ]


def complete_sets(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of sets of addresses."""
    return [
        CompletionItem(one["name"], help=f"{len(one['entries'])} addresses")
        for one in live_list(SETS)
        if one["name"].startswith(incomplete)
    ]


def complete_ends(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Whom a rule can name: guests, places, and the others by `group:NAME` and the like."""
    names = [guest["name"] for guest in live_list("/v1/guests")] + sorted(PLACES)
    for word, target in (("group", GROUPS), ("set", SETS), ("network", "/v1/networks")):
        names += [f"{word}:{one['name']}" for one in live_list(target)]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_far(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Guests and places."""
    places = [CompletionItem(p) for p in ("host", "outside") if p.startswith(incomplete)]
    return [*complete_guests(ctx, param, incomplete), *places]
