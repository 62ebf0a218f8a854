"""`guest nic ls|add|set|rm`: network cards of a guest."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import click
from click.shell_completion import CompletionItem

from guesthouse.cli import output
from guesthouse.cli.command import (
    command,
    complete_networks,
    guest_argument,
    json_option,
    live_list,
)
from guesthouse.cli.family import Family
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.session import open_house
from guesthouse.cli.table import colourful, render, show, terminal_width
from guesthouse.client.house import guest_path
from guesthouse.errors import InvalidInput
from guesthouse.model.device import Link, check_mac
from guesthouse.model.networking import BUILTIN
from guesthouse.model.nics import NicChange, NicRequest, NicView


def complete_cards(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Numbers of the cards of the guest that is on the line."""
    guest = ctx.params.get("name")
    found = live_list(guest_path(guest, "nics")) if guest else []
    return [
        CompletionItem(str(card["index"]), help=f"{card['network_name']}, {card['mac']}")
        for card in found
        if str(card["index"]).startswith(incomplete)
    ]


_KEYS = ("network", "address4", "address6", "link", "mac")
_VALUES = {"link": ("up", "down"), "address4": ("auto",), "address6": ("auto",)}


def complete_change(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    key, equals, begun = incomplete.partition("=")
    if key == "network" and equals:
        networks = [item.value for item in complete_networks(ctx, param, begun)]
        found = [f"network={one}" for one in (*networks, BUILTIN) if one.startswith(begun)]
    elif equals:
        found = [f"{key}={one}" for one in _VALUES.get(key, ()) if one.startswith(begun)]
    else:
        taken = {change.partition("=")[0] for change in ctx.params.get("changes") or ()}
        found = [f"{one}=" for one in _KEYS if one.startswith(key) and one not in taken]
    return [CompletionItem(one) for one in found]


card_argument = click.argument("card", metavar="CARD", shell_complete=complete_cards)


@click.group(
    "nic",
    cls=Family,
    examples=[
        ("guest nic ls web", ""),
        ("guest nic add web --network lan", "A running guest has it at once"),
        ("guest nic set web 1 network=dmz", "It is moved, and the guest asks for its address"),
        ("guest nic rm web 1", ""),
    ],
)
def nic() -> None:
    """Network cards of a guest: they come, change and go while it runs."""


@command("ls", examples=[("guest nic ls web", ""), ("guest nic ls web --json", "")])
@guest_argument()
@json_option
def nic_ls(name: str, as_json: bool) -> None:
    """List the network cards of a guest. Each keeps its number when others go."""
    house = open_house()
    if as_json:
        output.json_result(house.raw(guest_path(name, "nics")))
        return
    found = house.nics(name)
    if not found:
        output.note(f"{name} has no network cards")
        return
    headers = ["CARD", "NETWORK", "IPV4", "IPV6", "MAC", "LINK"]
    rows = [_row(one) for one in found]
    show(render(headers, rows, width=terminal_width(), drop=("IPV6",), colour=colourful()))


@command(
    "add",
    examples=[
        ("guest nic add web --network lan", "Live if it runs"),
        ("guest nic add web --network lan --address4 10.77.0.10", "With an address that stays"),
        ("guest nic add web --network builtin", "On a network of its own"),
    ],
)
@guest_argument()
@click.option(
    "--network",
    required=True,
    shell_complete=complete_networks,
    help="Network that it is on, or 'builtin' for one of its own.",
)
@click.option("--mac", metavar="MAC", help="Its address on the wire; default: a new one.")
@click.option("--address4", metavar="ADDRESS", default="", help="Fixed IPv4 address.")
@click.option("--address6", metavar="ADDRESS", default="", help="Fixed IPv6 address.")
@click.option("--no-link", is_flag=True, help="As if its cable were pulled.")
def nic_add(
    name: str, network: str, mac: str | None, address4: str, address6: str, no_link: bool
) -> None:
    """Give a guest a network card more. A running guest has it at once."""
    request = NicRequest(
        network=network,
        mac="" if mac is None else check_mac(mac),
        address4=address4,
        address6=address6,
        link=Link.DOWN if no_link else Link.UP,
    )
    house = open_house()
    (job,) = carry_out(house, [Wish(name, lambda: house.add_nic(name, request))])
    made = job.result or {}
    output.result(
        f"Card {made.get('index')} of {job.target_name or name} is on {network} ({made.get('mac')})"
    )


@command(
    "set",
    examples=[
        ("guest nic set web 0 network=lan", "To another network, live"),
        ("guest nic set web 1 address4=10.77.0.10", "An address that stays"),
        ("guest nic set web 1 address4=auto", "The house chooses again"),
        ("guest nic set web 0 link=down", "Pull its cable"),
    ],
)
@guest_argument()
@card_argument
@click.argument(
    "changes",
    nargs=-1,
    required=True,
    metavar="KEY=VALUE...",
    shell_complete=complete_change,
)
def nic_set(name: str, card: str, changes: tuple[str, ...]) -> None:
    """Change a network card, by its number or MAC address.

    \b
    network=NAME           the network that it is on
    address4=ADDRESS|auto  its IPv4 address; auto: the house chooses
    address6=ADDRESS|auto  its IPv6 address
    link=up|down           its cable is put in, or pulled
    mac=MAC                its address on the wire; the guest must be stopped

    A running guest keeps the card: its link goes down and comes up again, so that it asks for its
    address anew, if its DHCP client watches the link.
    """
    change = NicChange(**dict(parse_change(text) for text in changes))
    house = open_house()
    (job,) = carry_out(house, [Wish(name, lambda: house.change_nic(name, card, change))])
    output.result(f"Card {card} of {job.target_name or name}: {' '.join(changes)}")


@command(
    "rm",
    examples=[
        ("guest nic rm web 1", "A running guest is asked to let go of it"),
        ("guest nic rm web 52:67:68:00:00:01", "By its MAC address"),
    ],
)
@guest_argument()
@card_argument
def nic_rm(name: str, card: str) -> None:
    """Take a network card away, by its number or MAC address.

    The first card of a guest is soldered in: it goes only while the guest is stopped.
    """
    house = open_house()
    (job,) = carry_out(house, [Wish(name, lambda: house.remove_nic(name, card))])
    output.result(f"Removed card {card} of {job.target_name or name}")


def parse_change(text: str) -> tuple[str, Any]:
    """(field of the API, value) of `key=value`. :raise InvalidInput: it changes nothing."""
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or key not in _KEYS or not value:
        near = get_close_matches(key, _KEYS, n=1)
        raise InvalidInput(
            f"{text!r} changes nothing: write KEY=VALUE, where KEY is one of {', '.join(_KEYS)}.",
            hint=f"Did you mean {near[0]}=…?" if near else "See: guest nic set --help",
            field=key,
        )
    if key == "mac":
        return key, check_mac(value)
    if key == "link":
        if value not in tuple(Link):
            raise InvalidInput(f"A link is up or down, not {value!r}.", field="link")
        return key, Link(value)
    return key, value


def _row(one: NicView) -> list[str]:
    return [
        str(one.index),
        one.network_name,
        _address(one.has4, fixed=bool(one.address4)),
        _address(one.has6, fixed=bool(one.address6)),
        one.mac,
        one.link.value,
    ]


def _address(address: str, *, fixed: bool) -> str:
    return f"{address} (fixed)" if fixed else address or "-"


for _command in (nic_ls, nic_add, nic_set, nic_rm):
    nic.add_command(_command)
