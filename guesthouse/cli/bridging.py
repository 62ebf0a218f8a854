"""`guest network confirm`, and how a bridged network is made: confirmed at once where it may be."""

from __future__ import annotations

import os
import time

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, complete_networks
from guesthouse.cli.session import open_house
from guesthouse.client.house import House
from guesthouse.errors import InvalidInput, NotFound
from guesthouse.model.job import Job
from guesthouse.model.networking import NetworkRequest

_LOOK_SECONDS = 0.2
_FROM_AFAR = ("SSH_CONNECTION", "SSH_TTY", "SSH_CLIENT")


@command(
    "confirm",
    examples=[("guest network confirm lan", "The host is still reached, so it stays")],
)
@click.argument("name", metavar="NETWORK", shell_complete=complete_networks)
def network_confirm(name: str) -> None:
    """Confirm a bridged network: this host is still reached.

    Its interface became a port of a bridge. Without a word from you it is given back after 30
    seconds, since whoever lost the connection cannot give one.
    """
    found = open_house().confirm_network(name)
    output.result(f"Confirmed network {found.name}")


def create_bridged(house: House, request: NetworkRequest, *, yes: bool) -> Job:
    """The job, once somebody has confirmed, or cannot any more.

    At this machine the daemon's answer is enough. Whoever came over the network is asked, since
    this program reaches the daemon all the same when its user is cut off.
    """
    job = house.create_network(request)
    if _must_confirm(house, request.name, job):
        command = f"guest network confirm {request.name}"
        if yes or not any(name in os.environ for name in _FROM_AFAR):
            house.confirm_network(request.name)
            return job
        try:
            here = output.confirm(
                f"The addresses of {request.uplink} have moved to a bridge. Do you see this, and "
                "shall it stay?",
                yes=False,
                retry=command,
                why="You came over the network",
            )
        except InvalidInput:
            output.note(f"within 30 seconds, from a new connection: {command}")
            return job
        if here:
            house.confirm_network(request.name)
    return job


def _must_confirm(house: House, name: str, job: Job) -> bool:
    """Wait until it must be confirmed, or need not be."""
    while not job.ended:
        try:
            if house.network(name).confirm_by is not None:
                return True
        except NotFound:
            pass  # it is not made yet, or gone again
        time.sleep(_LOOK_SECONDS)
        job = house.job(job.id)
    return False
