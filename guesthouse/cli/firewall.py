"""`guest firewall ls|add|rm|policy`, and the family of its commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, complete_guests, complete_networks, json_option
from guesthouse.cli.family import Family
from guesthouse.cli.firewall_lists import group_family, set_family
from guesthouse.cli.firewall_table import rules_table
from guesthouse.cli.firewall_watch import firewall_counters, firewall_log, firewall_test
from guesthouse.cli.firewall_words import (
    complete_ends,
    complete_groups,
    complete_rules,
    complete_words,
    parse_policies,
    parse_rule,
)
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.session import open_house
from guesthouse.cli.table import colourful, render, show, terminal_width
from guesthouse.client.firewall import Firewalls, group_path, owner_path, rules_path
from guesthouse.errors import InvalidInput
from guesthouse.model.firewalling import FirewallView
from guesthouse.model.rule_edits import WORDS


@click.group(
    "firewall",
    cls=Family,
    examples=[
        ("guest firewall policy web in=deny", "Nobody reaches it, unless a rule says so"),
        ("guest firewall add web allow in tcp 22 --from db", "But the guest db, by ssh"),
        ("guest firewall ls web", "All rules about it, and how often each decided"),
        ("guest firewall test web in tcp 22 --from db", "Which rule would decide, and why"),
    ],
)
def firewall() -> None:
    """Firewalls: who may send what to which guest."""


class Whose(NamedTuple):
    """:ivar path: of the firewall, or of the group. :ivar text: for people."""

    path: str
    text: str
    is_group: bool = False


def owner_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--group", metavar="GROUP", shell_complete=complete_groups, help="Of a security group."
        ),
        click.option(
            "--network",
            metavar="NETWORK",
            shell_complete=complete_networks,
            help="Of all guests of a network.",
        ),
    ):
        function = option(function)
    return function


def whose(guest: str | None, network: str | None, group: str | None) -> Whose:
    """:raise InvalidInput: none of them, or more than one."""
    named = [one for one in (guest, network, group) if one]
    if len(named) != 1:
        raise InvalidInput(
            "Name a guest, or --network, or --group: one of them.",
            hint="For example: guest firewall ls web",
        )
    if group:
        return Whose(group_path(group), f"group {group}", is_group=True)
    if network:
        return Whose(owner_path(network=network), f"network {network}")
    return Whose(owner_path(guest=guest or ""), guest or "")


def split(words: Sequence[str], network: str | None, group: str | None) -> tuple[Whose, list[str]]:
    """Who is meant, and the other words: the first is a guest unless an option names the owner."""
    rest = list(words)
    guest = None if network or group else (rest.pop(0) if rest else None)
    return whose(guest, network, group), rest


@command(
    "ls",
    examples=[
        ("guest firewall ls", "The firewalls of all guests, in a line each"),
        ("guest firewall ls web", "Every rule that is asked about web, in order"),
        ("guest firewall ls --network lan", ""),
        ("guest firewall ls web --json", ""),
    ],
)
@click.argument("guest", required=False, shell_complete=complete_guests)
@owner_options
@json_option
def firewall_ls(guest: str | None, network: str | None, group: str | None, as_json: bool) -> None:
    """List rules, the first that is asked first, and how often each decided.

    Of a guest these are its own, then those of its security groups and of its networks. What none
    of them decides is up to the last lines. HITS counts connections that were let through, and
    packets that were not.
    """
    house = open_house()
    firewalls = Firewalls(house)
    if not (guest or network or group):
        names = sorted(one.name for one in house.guests())
        if as_json:
            output.json_result([house.raw(owner_path(guest=name)) for name in names])
            return
        _overview([firewalls.of(owner_path(guest=name)) for name in names])
        return
    of = whose(guest, network, group)
    if as_json:
        output.json_result(house.raw(of.path))
    elif of.is_group:
        rules_table(firewalls.group(group or "").rules, ())
    else:
        found = firewalls.of(of.path)
        rules_table(
            found.applied if guest else found.rules, found.defaults, policy=_own_policy(found)
        )
        for line in found.warnings:
            output.warning(line)


def _overview(found: Sequence[FirewallView]) -> None:
    if not found:
        output.note("there are no guests")
        return
    rows = [
        [
            one.owner.removeprefix("guest "),
            str(len(one.rules)),
            ", ".join(one.groups) or "-",
            *(_default(one, direction) for direction in ("in", "out")),
        ]
        for one in found
    ]
    headers = ["GUEST", "RULES", "GROUPS", "IN", "OUT"]
    show(render(headers, rows, width=terminal_width(), colour=colourful()))


def _default(found: FirewallView, direction: str) -> str:
    words = {WORDS[d.action] for d in found.defaults if d.direction.value == direction}
    return "/".join(sorted(words)) or "-"


def _own_policy(found: FirewallView) -> str:
    parts = [
        f"{word} {WORDS[action]}"
        for word, action in (("in", found.policy.incoming), ("out", found.policy.outgoing))
        if action is not None
    ]
    return ", ".join(parts)


@command(
    "add",
    examples=[
        ("guest firewall add web allow in tcp 80,443", "From anywhere"),
        ("guest firewall add web allow in tcp 22 --from db --name ssh-from-db", ""),
        ("guest firewall add web deny out --to 192.0.2.0/24 --log --before 1", ""),
        ("guest firewall add web allow out tcp 5432 --to host", "A service of this host itself"),
        ("guest firewall add --network lan reject in tcp 25", "For all its guests"),
        ("guest firewall add --group ssh allow in tcp 22", "For all guests in the group"),
    ],
)
@click.argument(
    "words",
    nargs=-1,
    metavar="[GUEST] allow|deny|reject in|out [tcp|udp|icmp|any] [PORTS]",
    shell_complete=complete_words,
)
@owner_options
@click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="WHO",
    shell_complete=complete_ends,
    help="Who sends it.",
)
@click.option(
    "--to",
    "destinations",
    multiple=True,
    metavar="WHO",
    shell_complete=complete_ends,
    help="Who is to get it.",
)
@click.option("--from-port", "source_ports", multiple=True, metavar="PORTS", help="Sender's ports.")
@click.option("--name", default="", help="What counters and logs call the rule.")
@click.option("--note", default="", help="A line for people.")
@click.option("--log", is_flag=True, help="Write down what it decides: guest firewall log.")
@click.option("--before", default="", metavar="RULE", help="Ahead of that rule; else it is last.")
@click.option("--replace", default="", metavar="RULE", help="In the place of that rule.")
def firewall_add(
    words: tuple[str, ...], network: str | None, group: str | None, replace: str, **rest: Any
) -> None:
    """Add a rule. Running guests have it at once; connections that are open go on.

    WHO is an address or network (192.0.2.0/24), the name of a guest, group:NAME, set:NAME,
    network:NAME, host (this host itself), lan (networks that it is attached to) or outside. PORTS
    are of the receiver: 80, 80,443 or 8000-8100. deny keeps silent, reject tells the sender.

    The first rule that is about a packet decides.
    """
    of, spoken = split(words, network, group)
    request = parse_rule(spoken, **rest)
    house = open_house()
    firewalls, rules = Firewalls(house), rules_path(of.path)
    if replace:
        submit = partial(firewalls.replace, rules, replace, request)
    else:
        submit = partial(firewalls.add, rules, request)
    (job,) = carry_out(house, [Wish(of.text, submit)])
    name = (job.result or {}).get("rule") or request.name
    output.result(f"{'Replaced' if replace else 'Added'} rule {name} of {of.text}")


@command(
    "rm",
    examples=[
        ("guest firewall rm web ssh-from-db", "By its name"),
        ("guest firewall rm web 3 4", "By their numbers"),
        ("guest firewall rm --group ssh 1", ""),
    ],
)
@click.argument("words", nargs=-1, metavar="[GUEST] RULE...", shell_complete=complete_rules)
@owner_options
def firewall_rm(words: tuple[str, ...], network: str | None, group: str | None) -> None:
    """Remove rules, by their names or numbers. Connections that are open go on."""
    of, wanted = split(words, network, group)
    if not wanted:
        raise InvalidInput("Name a rule.", hint="See them: guest firewall ls", field="rule")
    house = open_house()
    firewalls, rules = Firewalls(house), rules_path(of.path)
    own = firewalls.group(group or "").rules if of.is_group else firewalls.of(of.path).rules
    # Numbers are of the list as it is now, before the first of them goes.
    numbers = {str(rule.number): rule.name for rule in own}
    known = {rule.name for rule in own}
    names = dict.fromkeys(one if one in known else numbers.get(one, one) for one in wanted)
    wishes = [Wish(name, partial(firewalls.remove, rules, name)) for name in names]
    carry_out(house, wishes, lambda job: f"Removed rule {(job.result or {}).get('rule', '')}")


@command(
    "policy",
    examples=[
        ("guest firewall policy web in=deny", "Only what rules allow comes in"),
        ("guest firewall policy web in=default out=default", "As its network says"),
        ("guest firewall policy --network lan in=deny out=allow", "For all its guests"),
    ],
)
@click.argument(
    "words", nargs=-1, metavar="[GUEST] [in=POLICY] [out=POLICY]", shell_complete=complete_words
)
@click.option(
    "--network",
    metavar="NETWORK",
    shell_complete=complete_networks,
    help="Of all guests of a network.",
)
def firewall_policy(words: tuple[str, ...], network: str | None) -> None:
    """Say what becomes of packets that no rule is about: allow, deny, reject or default.

    default leaves it to the guest's network, and a network's to the house, which allows.
    """
    of, spoken = split(words, network, None)
    change = parse_policies(spoken)
    house = open_house()
    carry_out(house, [Wish(of.text, partial(Firewalls(house).change, of.path, change))])
    output.result(f"Policy of {of.text}: {' '.join(spoken)}")


for _command in (
    firewall_ls,
    firewall_add,
    firewall_rm,
    firewall_policy,
    group_family,
    set_family,
    firewall_test,
    firewall_counters,
    firewall_log,
):
    firewall.add_command(_command)
