"""`guest info`."""

from __future__ import annotations

import shlex
import time

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, guest_argument, json_option
from guesthouse.cli.rows import span
from guesthouse.cli.session import open_house
from guesthouse.cli.table import show
from guesthouse.client.house import guest_path
from guesthouse.errors import InvalidTransition
from guesthouse.model.guest import Autostart, ShutdownAction
from guesthouse.model.reports import GuestView
from guesthouse.model.states import GuestState
from guesthouse.model.units import format_size


@command(
    "info",
    examples=[
        ("guest info web", ""),
        ("guest info web --json | jq -r .status.state", ""),
        ("guest info web --argv", "The command line that runs it"),
    ],
)
@guest_argument()
@json_option
@click.option("--argv", is_flag=True, help="Only the engine's command line.")
def info(name: str, as_json: bool, argv: bool) -> None:
    """Show everything about a guest."""
    if as_json and argv:
        raise click.UsageError("--json and --argv exclude each other.")
    house = open_house()
    if as_json:
        output.json_result(house.raw(guest_path(name)))
        return
    guest = house.guest(name)
    if argv:
        if guest.launch is None:
            raise InvalidTransition(
                f"{guest.name} has never been started, so it has no command line.",
                hint=f"Start it first: guest start {guest.name}",
            )
        show(shlex.join(guest.launch.argv) + "\n")
        return
    output.pairs([*_what(guest), *_host_life(guest), *_how(guest), *_where(guest)])


def _what(guest: GuestView) -> list[tuple[str, str]]:
    status, spec = guest.status, guest.spec
    rows = [("Name", guest.name), ("Id", guest.id), ("State", _state(guest))]
    if status.message:
        rows.append(("Why", status.message))
    rows += _readiness(guest)
    if guest.job:
        rows.append(("Job", f"{guest.job} is at work on it"))
    if guest.pending:
        rows.append(("Pending", f"{', '.join(guest.pending)} (guest restart {guest.name})"))
    if spec.description:
        rows.append(("About", spec.description))
    rows += [
        ("Image", guest.image),
        ("CPUs", str(spec.cpus)),
        ("Memory", format_size(spec.memory)),
    ]
    for disk in spec.disks:
        suffix = ", read only" if disk.read_only else ""
        rows.append((f"Disk {disk.name}", f"{format_size(disk.size)}{suffix}"))
    return rows


def _host_life(guest: GuestView) -> list[tuple[str, str]]:
    """What differs from the usual when the host comes up and goes down."""
    spec, rows = guest.spec, []
    if spec.autostart is not Autostart.OFF:
        when = "if it ran before" if spec.autostart is Autostart.LAST else "always"
        delay = f", then {spec.autostart_delay:g} s" if spec.autostart_delay else ""
        rows.append(("Autostart", f"{when}, order {spec.autostart_order}{delay}"))
    if spec.shutdown_action is not ShutdownAction.STOP:
        rows.append(("With its host", f"{spec.shutdown_action.value} it"))
    return rows


def _readiness(guest: GuestView) -> list[tuple[str, str]]:
    waiting = guest.readiness.waiting
    passed = ", ".join(guest.readiness.passed)
    if guest.state is not GuestState.RUNNING or not (waiting or passed):
        return []
    if not waiting:
        return [("Ready", passed)]
    rows = [("Ready", f"{passed or 'nothing'} so far; waiting for {waiting}")]
    return [*rows, ("", guest.readiness.hint)] if guest.readiness.hint else rows


def _state(guest: GuestView) -> str:
    status = guest.status
    reason = f" ({status.reason})" if status.reason else ""
    return f"{status.state.value}{reason} for {span(time.time() - status.since)}"


def _how(guest: GuestView) -> list[tuple[str, str]]:
    spec, launch = guest.spec, guest.launch
    rows = [("Firmware", spec.firmware.value), ("Machine", spec.machine or "chosen at its start")]
    if launch is not None and guest.status.pid is not None:
        why = f" ({launch.accelerator_reason})" if launch.accelerator_reason else ""
        rows += [
            ("Engine", launch.engine),
            ("Process", str(guest.status.pid)),
            ("Accelerator", f"{launch.accelerator}{why}"),
            ("CPU model", launch.cpu),
        ]
    return rows


def _where(guest: GuestView) -> list[tuple[str, str]]:
    rows = []
    if guest.addresses:
        rows.append(("Addresses", " ".join(guest.addresses)))
    for nic in guest.spec.nics:
        rows.append(("Network", f"{nic.network}, {nic.mac}"))
        rows += [("Port", str(port)) for port in nic.ports]
    return rows
