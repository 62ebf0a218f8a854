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


def open_house(*, recovering: bool = False) -> House:
    """The house, with a warning when its daemon is of another version than this program, or when
    its database was lost.

    :param recovering: the user is about to mend that.
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
    elif info.get("unknown_copies") and not recovering:
        output.warning(unknown_copies(info["unknown_copies"]), "Bring them back: guest recover")
    return house


def unknown_copies(count: int) -> str:
    what = "1 document lies" if count == 1 else f"{count} documents lie"
    return f"{what} beside the disks that the database does not know: it was lost or replaced."
