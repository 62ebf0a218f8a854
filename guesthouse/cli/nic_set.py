"""`guest nic set`: a network card changes, and its packets are impaired."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import click
from click.shell_completion import CompletionItem

from guesthouse.cli import output
from guesthouse.cli.command import command, complete_networks, guest_argument, live_list
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.impair import HELP as IMPAIRMENTS
from guesthouse.cli.impair import KEYS as IMPAIRMENT_KEYS
from guesthouse.cli.impair import complete_impairment, impair_card, is_impairment
from guesthouse.cli.session import open_house
from guesthouse.client.house import guest_path
from guesthouse.errors import InvalidInput
from guesthouse.model.device import Link, check_mac
from guesthouse.model.networking import BUILTIN
from guesthouse.model.nics import NicChange


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
    if not equals:
        found += complete_impairment(incomplete, ctx.params.get("changes") or ())
    return [CompletionItem(one) for one in found]


card_argument = click.argument("card", metavar="CARD", shell_complete=complete_cards)


@command(
    "set",
    examples=[
        ("guest nic set web 0 network=lan", "To another network, live"),
        ("guest nic set web 1 address4=10.77.0.10", "An address that stays"),
        ("guest nic set web 1 address4=auto", "The house chooses again"),
        ("guest nic set web 0 link=down", "Pull its cable"),
        ("guest nic set web 0 latency=80ms loss=1%", "A bad network, at once"),
        ("guest nic set web 0 in.rate=8mbit", "Only what the guest gets"),
        ("guest nic set web 0 loss=0", "No longer; the rest stays"),
        ("guest nic set web 0 clear", "As good as it can be"),
    ],
    help=f"""Change a network card, by its number or MAC address.

    \b
    network=NAME           the network that it is on
    address4=ADDRESS|auto  its IPv4 address; auto: the house chooses
    address6=ADDRESS|auto  its IPv6 address
    link=up|down           its cable is put in, or pulled
    mac=MAC                its address on the wire; the guest must be stopped

    A running guest keeps the card: its link goes down and comes up again, so that it asks for its
    address anew, if its DHCP client watches the link.

    A bad network, on purpose:

    {IMPAIRMENTS}

    What this host's kernel cannot do to packets is refused by name; 'guest doctor' lists it.
    """,
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
    bad = [text for text in changes if is_impairment(text)]
    plain = [text for text in changes if not is_impairment(text)]
    change = NicChange(**dict(parse_change(text) for text in plain))
    house = open_house()
    if plain:
        (job,) = carry_out(house, [Wish(name, lambda: house.change_nic(name, card, change))])
        output.result(f"Card {card} of {job.target_name or name}: {' '.join(plain)}")
    if bad:
        impair_card(house, name, card, bad)


def parse_change(text: str) -> tuple[str, Any]:
    """(field of the API, value) of `key=value`. :raise InvalidInput: it changes nothing."""
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or key not in _KEYS or not value:
        near = get_close_matches(key, (*_KEYS, *IMPAIRMENT_KEYS), n=1)
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
