"""`guest firewall group` and `guest firewall set`: rules and addresses that are shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import click

from guesthouse.cli import output
from guesthouse.cli.command import (
    command,
    complete_guests,
    complete_networks,
    json_option,
    yes_option,
)
from guesthouse.cli.family import Family
from guesthouse.cli.firewall_table import rules_table
from guesthouse.cli.firewall_words import complete_groups, complete_sets
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.remove import require_all
from guesthouse.cli.session import open_house
from guesthouse.cli.table import colourful, render, show, terminal_width
from guesthouse.client.firewall import GROUPS, SETS, Firewalls, group_path, owner_path, set_path
from guesthouse.client.house import House
from guesthouse.errors import InvalidInput
from guesthouse.model.firewalling import (
    AddressSetChange,
    AddressSetRequest,
    FirewallChange,
    SecurityGroupRequest,
)
from guesthouse.model.job import Job
from guesthouse.model.names import check_name

group_argument = click.argument("name", metavar="GROUP", shell_complete=complete_groups)
set_argument = click.argument("name", metavar="SET", shell_complete=complete_sets)
cidrs_argument = click.argument("entries", metavar="CIDR...", nargs=-1, required=True)
guests_argument = click.argument(
    "guests", metavar="GUEST...", nargs=-1, shell_complete=complete_guests
)
networks_option = click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="NETWORK",
    shell_complete=complete_networks,
    help="All guests of a network.",
)


@click.group(
    "group",
    cls=Family,
    examples=[
        ("guest firewall group create ssh", ""),
        ("guest firewall add --group ssh allow in tcp 22", "A rule for all who are in it"),
        ("guest firewall group join ssh web db", ""),
        ("guest firewall add db allow in tcp 5432 --from group:ssh", "Or name them in a rule"),
    ],
)
def group_family() -> None:
    """Security groups: rules that several guests share."""


@click.group(
    "set",
    cls=Family,
    examples=[
        ("guest firewall set create office 192.0.2.0/24 2001:db8::/32", ""),
        ("guest firewall add web allow in tcp 443 --from set:office", ""),
        ("guest firewall set add office 198.51.100.7", "Rules that name it have it at once"),
    ],
)
def set_family() -> None:
    """Sets of addresses under one name, for rules."""


@command(
    "ls",
    examples=[("guest firewall group ls", ""), ("guest firewall group ls ssh", "Its rules, too")],
)
@click.argument("name", metavar="[GROUP]", required=False, shell_complete=complete_groups)
@json_option
def group_ls(name: str | None, as_json: bool) -> None:
    """List the security groups, or one of them with its rules."""
    house = open_house()
    if as_json:
        output.json_result(house.raw(group_path(name) if name else GROUPS))
        return
    if name:
        found = Firewalls(house).group(name)
        rows = [("Name", found.name), ("In it", ", ".join(found.members) or "nobody")]
        rows += [("Named by", ", ".join(found.named_by))] if found.named_by else []
        rows += [("Note", found.note)] if found.note else []
        output.pairs([*rows, ("Id", found.id), ("", "")])
        rules_table(found.rules, ())
        return
    groups = Firewalls(house).groups()
    if not groups:
        output.note("there are no security groups; make one: guest firewall group create NAME")
        return
    table = [
        [one.name, str(len(one.rules)), ", ".join(one.members) or "-", one.note] for one in groups
    ]
    _show(["NAME", "RULES", "IN IT", "NOTE"], table)


@command("create", examples=[("guest firewall group create ssh --note 'who may be reached'", "")])
@click.argument("name", metavar="GROUP")
@click.option("--note", default="", help="A line for people.")
def group_create(name: str, note: str) -> None:
    """Make a security group, without rules."""
    request = SecurityGroupRequest(name=check_name(name), note=note)
    house = open_house()
    carry_out(house, [Wish(name, partial(Firewalls(house).create_group, request))])
    output.result(f"Created security group {name}")


@command("rm", examples=[("guest firewall group rm ssh", "Refused while somebody is in it")])
@click.argument(
    "names", metavar="GROUP...", nargs=-1, required=True, shell_complete=complete_groups
)
@yes_option
def group_rm(names: tuple[str, ...], yes: bool) -> None:
    """Remove security groups that nobody is in and no rule names."""
    house = open_house()
    firewalls = Firewalls(house)
    require_all(names, firewalls.group)
    _remove(house, "group", "security group", names, firewalls.remove_group, yes=yes)


@command(
    "join",
    examples=[("guest firewall group join ssh web db", "Their rules are in force at once")],
)
@group_argument
@guests_argument
@networks_option
def group_join(name: str, guests: tuple[str, ...], networks: tuple[str, ...]) -> None:
    """Put guests into a security group."""
    _move(name, guests, networks, FirewallChange(join=(name,)), "joined")


@command("leave", examples=[("guest firewall group leave ssh web", "")])
@group_argument
@guests_argument
@networks_option
def group_leave(name: str, guests: tuple[str, ...], networks: tuple[str, ...]) -> None:
    """Take guests out of a security group."""
    _move(name, guests, networks, FirewallChange(leave=(name,)), "left")


def _move(
    name: str,
    guests: Sequence[str],
    networks: Sequence[str],
    change: FirewallChange,
    done: str,
) -> None:
    if not guests and not networks:
        raise InvalidInput("Name a guest, or --network.", field="guests")
    house = open_house()
    firewalls = Firewalls(house)
    wishes = [
        Wish(one, partial(firewalls.change, owner_path(guest=one), change)) for one in guests
    ] + [Wish(one, partial(firewalls.change, owner_path(network=one), change)) for one in networks]
    carry_out(house, wishes, lambda job: f"{job.target_name} {done} {name}")


@command(
    "ls",
    examples=[("guest firewall set ls", ""), ("guest firewall set ls office", "All its addresses")],
)
@click.argument("name", metavar="[SET]", required=False, shell_complete=complete_sets)
@json_option
def set_ls(name: str | None, as_json: bool) -> None:
    """List the sets of addresses, or the addresses of one."""
    house = open_house()
    if as_json:
        output.json_result(house.raw(set_path(name) if name else SETS))
        return
    if name:
        found = Firewalls(house).address_set(name)
        rows = [("Name", found.name), ("Named by", ", ".join(found.named_by) or "no rule")]
        rows += [("Note", found.note)] if found.note else []
        rows += [("Id", found.id), ("Addresses", str(len(found.entries)))]
        rows += [("", entry) for entry in found.entries]
        output.pairs(rows)
        return
    sets = Firewalls(house).sets()
    if not sets:
        output.note("there are no sets of addresses; make one: guest firewall set create NAME")
        return
    table = [
        [one.name, str(len(one.entries)), ", ".join(one.named_by) or "-", one.note] for one in sets
    ]
    _show(["NAME", "ADDRESSES", "NAMED BY", "NOTE"], table)


@command("create", examples=[("guest firewall set create office 192.0.2.0/24 2001:db8::/32", "")])
@click.argument("name", metavar="SET")
@click.argument("entries", metavar="[CIDR...]", nargs=-1)
@click.option("--note", default="", help="A line for people.")
def set_create(name: str, entries: tuple[str, ...], note: str) -> None:
    """Make a set of addresses, which rules call set:NAME."""
    request = AddressSetRequest(name=check_name(name), entries=entries, note=note)
    house = open_house()
    carry_out(house, [Wish(name, partial(Firewalls(house).create_set, request))])
    output.result(f"Created set {name}")


@command("add", examples=[("guest firewall set add office 198.51.100.7", "")])
@set_argument
@cidrs_argument
def set_add(name: str, entries: tuple[str, ...]) -> None:
    """Add addresses and networks; rules that name the set have them at once."""
    _change_set(name, AddressSetChange(add=entries))
    output.result(f"Added {', '.join(entries)} to {name}")


@command("del", examples=[("guest firewall set del office 198.51.100.7", "")])
@set_argument
@cidrs_argument
def set_del(name: str, entries: tuple[str, ...]) -> None:
    """Take addresses and networks out."""
    _change_set(name, AddressSetChange(remove=entries))
    output.result(f"Took {', '.join(entries)} out of {name}")


def _change_set(name: str, change: AddressSetChange) -> None:
    house = open_house()
    carry_out(house, [Wish(name, partial(Firewalls(house).change_set, name, change))])


@command("rm", examples=[("guest firewall set rm office", "Refused while a rule names it")])
@click.argument("names", metavar="SET...", nargs=-1, required=True, shell_complete=complete_sets)
@yes_option
def set_rm(names: tuple[str, ...], yes: bool) -> None:
    """Remove sets of addresses that no rule names."""
    house = open_house()
    firewalls = Firewalls(house)
    require_all(names, firewalls.address_set)
    _remove(house, "set", "set", names, firewalls.remove_set, yes=yes)


def _remove(
    house: House,
    family: str,
    noun: str,
    names: Sequence[str],
    remove: Callable[[str], Job],
    *,
    yes: bool,
) -> None:
    retry = f"guest firewall {family} rm --yes {' '.join(names)}"
    if not output.confirm(f"Remove {', '.join(names)}?", yes=yes, retry=retry):
        output.note("nothing removed")
        raise click.exceptions.Exit(1)
    wishes = [Wish(name, partial(remove, name)) for name in names]
    carry_out(house, wishes, lambda job: f"Removed {noun} {job.target_name}")


def _show(headers: list[str], rows: list[list[str]]) -> None:
    show(render(headers, rows, width=terminal_width(), drop=("NOTE",), colour=colourful()))


for _command in (group_ls, group_create, group_rm, group_join, group_leave):
    group_family.add_command(_command)
for _command in (set_ls, set_create, set_add, set_del, set_rm):
    set_family.add_command(_command)
