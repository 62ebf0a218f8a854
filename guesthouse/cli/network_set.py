"""`guest network set`."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, complete_networks
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.session import open_house
from guesthouse.errors import InvalidInput
from guesthouse.model.names import check_name
from guesthouse.model.network import DhcpRange
from guesthouse.model.networking import NetworkChange


def parse_range(text: str) -> DhcpRange:
    """:raise InvalidInput: it is not `first-last`."""
    first, dash, last = text.partition("-")
    if not dash:
        raise InvalidInput(
            f"{text!r} is not a range of addresses.",
            hint="Write the first and the last: 10.77.0.100-10.77.0.200",
            field="dhcp",
        )
    return DhcpRange(first=first.strip(), last=last.strip())


@command(
    "set",
    examples=[
        ("guest network set lan mtu=1400", "Running guests have it at once"),
        ("guest network set lan lan-access=off", "The internet yes, this host's networks no"),
        ("guest network set lan name=office domain=office.internal", ""),
    ],
)
@click.argument("name", metavar="NETWORK", shell_complete=complete_networks)
@click.argument(
    "changes",
    nargs=-1,
    required=True,
    metavar="KEY=VALUE...",
    shell_complete=lambda ctx, param, incomplete: _complete(ctx, incomplete),
)
def network_set(name: str, changes: tuple[str, ...]) -> None:
    """Change a network. What DHCP told running guests they learn when they ask again.

    \b
    name=office         another name; guests on it stay
    dhcp=FIRST-LAST     IPv4 addresses that guests get
    domain=lan.internal DNS domain of its guests; empty for none
    mtu=1400            bytes in a packet
    host-access=on|off  guests reach this host's own addresses
    lan-access=on|off   guests reach the networks that this host is attached to
    """
    fields = dict(parse_change(text) for text in changes)
    change, house = NetworkChange(**fields), open_house()
    carry_out(house, [Wish(name, partial(house.change_network, name, change))])
    output.result(f"{fields.get('name', name)}: {' '.join(changes)} (applied)")


def parse_change(text: str) -> tuple[str, Any]:
    """(field of the API, value) of `key=value`. :raise InvalidInput: it changes nothing."""
    key, equals, value = text.partition("=")
    field = key.strip().replace("-", "_")
    reader = _READERS.get(field)
    if not equals or reader is None:
        near = get_close_matches(field, _READERS, n=1)
        raise InvalidInput(
            f"{text!r} changes nothing: write KEY=VALUE, where KEY is one of "
            f"{', '.join(map(_key, _READERS))}.",
            hint=_why_not(field) or (f"Did you mean {_key(near[0])}=…?" if near else _HELP),
            field=key,
        )
    try:
        return field, reader(value.strip())
    except ValueError:
        raise InvalidInput(
            f"{text} cannot be: {value!r} is not {_KINDS.get(field, 'a value')}.",
            hint=_HELP,
            field=field,
        ) from None


def _why_not(field: str) -> str:
    if field in ("subnet", "subnet4", "subnet6", "kind"):
        return "Guests have their addresses there: make another network, and move them to it."
    return ""


def _switch(text: str) -> bool:
    if text.lower() not in _SWITCHES:
        raise ValueError(text)
    return _SWITCHES[text.lower()]


def _complete(ctx: click.Context, incomplete: str) -> list[str]:
    """Keys that are not on the line yet, and the values of those that have but a few."""
    key, equals, begun = incomplete.partition("=")
    if equals:
        values = ("on", "off") if key.endswith("-access") else ()
        return [f"{key}={one}" for one in values if one.startswith(begun)]
    taken = {change.partition("=")[0] for change in ctx.params.get("changes") or ()}
    keys = [_key(field) for field in _READERS if _key(field) not in taken]
    return [f"{one}=" for one in keys if one.startswith(incomplete)]


def _key(field: str) -> str:
    return field.replace("_", "-")


_SWITCHES = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}
_HELP = "See: guest network set --help"
_READERS: dict[str, Callable[[str], Any]] = {
    "name": check_name,
    "dhcp": parse_range,
    "domain": str,
    "mtu": int,
    "host_access": _switch,
    "lan_access": _switch,
}
_KINDS = {"mtu": "a number", "host_access": "on or off", "lan_access": "on or off"}
