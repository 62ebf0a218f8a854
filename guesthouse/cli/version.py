"""`guest version`."""

from __future__ import annotations

from guesthouse import __version__
from guesthouse.cli import output
from guesthouse.cli.command import command, json_option
from guesthouse.client.house import House
from guesthouse.client.start import find
from guesthouse.errors import GuesthouseError


@command("version", examples=[("guest version", ""), ("guest version --json", "")])
@json_option
def version(as_json: bool) -> None:
    """Print the versions of program and daemon. Starts no daemon."""
    transport = find()
    daemon = ""
    if transport is not None:
        try:
            daemon = str(House(transport).raw("/v1").get("version", ""))
        except GuesthouseError as error:
            output.error(error)
    if as_json:
        output.json_result({"guest": __version__, "daemon": daemon or None})
        return
    output.result(f"guest {__version__}")
    output.result(f"daemon {daemon}" if daemon else "no daemon runs")
