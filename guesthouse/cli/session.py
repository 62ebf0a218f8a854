"""The house that this run of the command line talks to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guesthouse import __version__
from guesthouse.cli import output
from guesthouse.client.house import House
from guesthouse.client.start import reach
from guesthouse.client.transport import Transport


def reconnect() -> Transport:
    """Reach the daemon, starting a personal one if none answers."""
    return reach(tell=output.note).transport


def open_house(*, recovering: bool = False) -> House:
    """The house, with a warning when its daemon is older than the program, or when its database
    was lost or is not wholly understood.

    :param recovering: the user is about to mend that.
    :raise GuesthouseError: no daemon can be reached or started.
    """
    house = House(reconnect())
    answer = house.raw("/v1")
    info = answer if isinstance(answer, dict) else {}
    if info.get("version") != __version__:
        output.warning(
            f"the daemon is of version {info.get('version')}, this program of {__version__}.",
            f"Restart it (guests run on): {restart_command(info)}",
        )
        return house
    if info.get("code_changed"):
        output.warning(
            "Guesthouse was upgraded, and the daemon still runs what it was before."
            f" Restart it (guests run on): {restart_command(info)}"
        )
    if info.get("quarantined"):
        output.warning(set_aside(info))
    elif info.get("read_only"):
        output.warning(f"the house refuses every change. {info['read_only']}")
    if info.get("unknown_copies") and not recovering:
        output.warning(unknown_copies(info["unknown_copies"]), "Bring them back: guest recover")
    return house


def restart_command(info: Mapping[str, Any]) -> str:
    return (
        "systemctl restart guesthouse" if info.get("mode") == "system" else "guest daemon restart"
    )


def set_aside(info: Mapping[str, Any]) -> str:
    """That not all documents could be read, and what that means."""
    count = len(info["quarantined"])
    what = "1 document is" if count == 1 else f"{count} documents are"
    change = ", and the house refuses every change" if info.get("read_only") else ""
    return (
        f"{what} set aside, which this version cannot read; not all is shown{change}."
        " See why: guest daemon status"
    )


def unknown_copies(count: int) -> str:
    what = "1 document lies" if count == 1 else f"{count} documents lie"
    return f"{what} beside the disks that the database does not know: it was lost or replaced."
