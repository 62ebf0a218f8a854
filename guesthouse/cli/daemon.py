"""`guest daemon status|start|stop|restart`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from guesthouse import __version__
from guesthouse.cli import output
from guesthouse.cli.command import command, json_option, positive
from guesthouse.cli.family import Family
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.rows import span
from guesthouse.cli.session import open_house, restart_command, unknown_copies
from guesthouse.client.house import House
from guesthouse.client.start import find, reach, start_personal
from guesthouse.errors import DaemonUnreachable, DeadlineExceeded, Forbidden
from guesthouse.model.guest import ShutdownAction
from guesthouse.model.reports import StopGuestsRequest

STOP_TIMEOUT = 60.0
"""Seconds for the daemon to end its work; running jobs are put down where they can go on."""

EACH = "each"
"""Guests stop as each one's settings say."""


@click.group(
    "daemon",
    cls=Family,
    examples=[("guest daemon status", ""), ("guest daemon restart", "After an upgrade")],
)
def daemon() -> None:
    """The daemon: status, start, stop, restart.

    It starts by itself when it is needed. Guests do not notice when it stops, starts or crashes.
    """


@command(
    "status",
    examples=[("guest daemon status", ""), ("guest daemon status --json | jq .pid", "")],
)
@json_option
def status(as_json: bool) -> int:
    """Say which daemon answers, and how it is. The exit code is 6 when none does."""
    about = _about()
    if as_json:
        output.json_result({"running": about is not None, **(about or {})})
    elif about is None:
        output.note("no daemon runs; any command starts one, as does: guest daemon start")
    else:
        output.pairs(_rows(about))
    return 0 if about is not None else DaemonUnreachable.exit_code


@command("start", examples=[("guest daemon start", "Needed only to have it running early")])
def start() -> None:
    """Start the daemon, unless one answers already."""
    about = _about()
    if about is None:
        house = House(start_personal(tell=output.note).transport)
        about = house.raw("/v1")
        linger = house.facts().capability("linger")
        if linger is not None and not linger.available:
            output.warning(linger.reason, f"Let them go on: {linger.cure}")
        output.result(f"Started the daemon (pid {about['pid']}, {about['mode']})")
    else:
        output.result(f"The daemon runs already (pid {about['pid']}, {about['mode']})")


@command(
    "stop",
    examples=[
        ("guest daemon stop", "Guests run on"),
        ("guest daemon stop --guests", "Before the host goes down: each as its settings say"),
        ("guest daemon stop --guests=kill", "All at once, without asking them"),
    ],
)
@click.option(
    "--guests",
    type=click.Choice([EACH, "stop", "kill"]),
    is_flag=False,
    flag_value=EACH,
    default=None,
    help="Stop all guests first: as each one's shutdown.action says, or all in one way.",
)
@click.option(
    "--timeout",
    type=float,
    default=None,
    metavar="SECONDS",
    help="How long a guest may take before it is killed, in place of its shutdown.timeout.",
)
def stop(guests: str | None, timeout: float | None) -> int:
    """Stop the daemon. Guests run on; jobs go on when it is started again.

    With --guests the guests are stopped before, the last in their order first, as when the host
    goes down. The exit code is 7 when some of them did not stop; the daemon is stopped all the
    same.
    """
    positive(timeout, "--timeout")
    if guests is None and timeout is not None:
        raise click.UsageError("--timeout is for --guests.")
    about = _about()
    code = 0
    if guests is not None:
        house = open_house()
        about = house.raw("/v1")
        code = _stop_guests(house, guests, timeout)
    if about is None:
        output.result("No daemon runs")
        return code
    _stop(about)
    rest = "; guests run on" if guests is None else ""
    output.result(f"Stopped the daemon (pid {about['pid']}){rest}")
    return code


def _stop_guests(house: House, how: str, timeout: float | None) -> int:
    """Stop them and say what became of each; returns the exit code."""
    action = None if how == EACH else ShutdownAction(how)
    request = StopGuestsRequest(action=action, timeout=timeout)
    (job,) = carry_out(house, [Wish("guests", lambda: house.stop_guests(request))])
    result = job.result or {}
    for name, way in result.get("stopped", {}).items():
        output.result(f"Stopped {name}: {way}")
    for name in result.get("left", ()):
        output.result(f"Left {name} running, as its shutdown.action says")
    failed = result.get("failed", {})
    for name, why in failed.items():
        output.error(DeadlineExceeded(why), about=name)
    return DeadlineExceeded.exit_code if failed else 0


@command("restart", examples=[("guest daemon restart", "After an upgrade of Guesthouse")])
def restart() -> None:
    """Stop the daemon and start it again. Guests run on."""
    about = _about()
    if about is not None:
        if about.get("mode") == "system":
            raise Forbidden(
                "This is the system's daemon, which its service manager starts.",
                hint="Restart it with: systemctl restart guesthouse",
            )
        _stop(about)
    # Where a service manager listens in its place, reaching for it starts it.
    house = House(reach().transport)
    output.result(f"Restarted the daemon (pid {house.raw('/v1')['pid']})")


def _about() -> dict[str, Any] | None:
    """What the daemon says of itself, as JSON: readable also when it is of another version."""
    transport = find()
    if transport is None:
        return None
    try:
        about = House(transport).raw("/v1")
    except DaemonUnreachable:
        return None
    return about if isinstance(about, dict) else None


def _stop(about: dict[str, Any]) -> None:
    """:raise DeadlineExceeded: it does not end."""
    transport = find()
    if transport is None:
        return
    try:
        House(transport).stop_daemon()
    except DaemonUnreachable as error:
        if not error.detail.get("broken"):  # it may be gone before its answer is through
            raise
    pid = int(about["pid"])
    deadline = time.monotonic() + STOP_TIMEOUT
    while not _gone(pid):
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"The daemon (pid {pid}) still runs {STOP_TIMEOUT:.0f} seconds after it was asked "
                "to stop.",
                hint=f"Killing it is safe for guests and jobs: kill -9 {pid}",
            )
        time.sleep(0.02)


def _gone(pid: int) -> bool:
    """Whether the process has ended; one that nobody has reaped yet has (proc(5), state)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in {"Z", "X"}


def _rows(about: dict[str, Any]) -> list[tuple[str, str]]:
    started = float(about.get("started_at") or 0)
    rows = [
        ("Mode", str(about.get("mode"))),
        ("Process", f"{about.get('pid')}, for {span(time.time() - started)}"),
        ("Version", _version(str(about.get("version")))),
        ("Socket", str(about.get("socket"))),
        ("State", str(about.get("state_folder"))),
    ]
    rows.append(("Log", _log(about)))
    if about.get("code_changed"):
        rows.append(("Upgraded", f"since it was started; restart it: {restart_command(about)}"))
    if about.get("unknown_copies"):
        rows.append(("Unknown", f"{unknown_copies(about['unknown_copies'])} (guest recover)"))
    if about.get("read_only"):
        rows.append(("Read only", str(about["read_only"])))
    for key, why in (about.get("quarantined") or {}).items():
        rows.append(("Set aside", f"{key}: {why}"))
    return rows


def _log(about: dict[str, Any]) -> str:
    if about.get("supervised"):
        user = "--user " if about.get("mode") == "personal" else ""
        return f"journalctl {user}-u guesthouse"
    if about.get("mode") == "personal":
        return os.path.join(str(about.get("state_folder")), "daemon.log")
    return "where its standard error leads"


def _version(version: str) -> str:
    return version if version == __version__ else f"{version} (this program: {__version__})"


for _command in (status, start, stop, restart):
    daemon.add_command(_command)
