"""The house that this run of the command line talks to."""

from __future__ import annotations

from guesthouse import __version__
from guesthouse.cli import output
from guesthouse.client.house import House
from guesthouse.client.start import reach
from guesthouse.client.transport import Transport


def reconnect() -> Transport:
    """Reach the daemon, starting a personal one if none answers."""
    return reach(tell=output.note).transport


def open_house() -> House:
    """The house, with a warning when its daemon is of another version than this program.

    :raise GuesthouseError: no daemon can be reached or started.
    """
    house = House(reconnect())
    info = house.raw("/v1")
    version = info.get("version") if isinstance(info, dict) else None
    if version != __version__:
        output.warning(
            f"the daemon is of version {version}, this program of {__version__}.",
            "Restart it (guests run on): guest daemon restart",
        )
    return house
