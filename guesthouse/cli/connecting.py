"""`guest network connect` and `guest network disconnect`."""

from __future__ import annotations

from functools import partial

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, complete_networks
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.session import open_house
from guesthouse.model.networking import NetworkChange

_argument = click.argument("name", metavar="NETWORK", shell_complete=complete_networks)


@command(
    "connect", examples=[("guest network connect lan", "ping, browse, … its guests from here")]
)
@_argument
def network_connect(name: str) -> None:
    """Reach the guests of a network from this host, under their own addresses.

    For the machine's house: this host gets an interface and a route there, and nobody else does.
    Where systemd-resolved runs, names below the network's domain are found too. An ordinary user's
    house cannot change the host: publish ports, or use guest exec and guest shell.
    """
    house = open_house()
    change = NetworkChange(connected=True)
    jobs = carry_out(house, [Wish(name, partial(house.change_network, name, change))])
    found = house.network(name)
    where = " and ".join(text for text in (found.subnet4, found.subnet6) if text)
    output.result(f"Connected this host to network {found.name}: {where}")
    for line in house.job_log(jobs[0].id).splitlines():
        output.note(line)


@command("disconnect", examples=[("guest network disconnect lan", "")])
@_argument
def network_disconnect(name: str) -> None:
    """Take back what 'guest network connect' did."""
    house = open_house()
    change = NetworkChange(connected=False)
    carry_out(house, [Wish(name, partial(house.change_network, name, change))])
    output.result(f"Disconnected this host from network {name}")
