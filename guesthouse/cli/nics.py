"""`guest nic ls|add|rm`: network cards of a guest."""

from __future__ import annotations

import click

from guesthouse.cli import output
from guesthouse.cli.capture import capture
from guesthouse.cli.command import (
    command,
    complete_networks,
    guest_argument,
    json_option,
)
from guesthouse.cli.family import Family
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.nic_set import card_argument, nic_set
from guesthouse.cli.session import open_house
from guesthouse.cli.table import colourful, render, show, terminal_width
from guesthouse.client.house import guest_path
from guesthouse.model.device import Link, check_mac
from guesthouse.model.nics import NicRequest, NicView


@click.group(
    "nic",
    cls=Family,
    examples=[
        ("guest nic ls web", ""),
        ("guest nic add web --network lan", "A running guest has it at once"),
        ("guest nic set web 1 network=dmz", "It is moved, and the guest asks for its address"),
        ("guest nic set web 0 latency=80ms loss=1%", "A bad network on purpose"),
        ("guest nic capture web 0 -o web.pcapng", ""),
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


for _command in (nic_ls, nic_add, nic_set, nic_rm, capture):
    nic.add_command(_command)
