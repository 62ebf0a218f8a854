"""`guest info`."""

from __future__ import annotations

import shlex
import time

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, guest_argument, json_option
from guesthouse.cli.rows import span, state_reason
from guesthouse.cli.session import open_house
from guesthouse.cli.sharing import share_rows
from guesthouse.cli.table import STATE_COLOURS, show
from guesthouse.client.house import House, guest_path
from guesthouse.errors import GuesthouseError, InvalidTransition
from guesthouse.model.device import Link, Publish, ssh_login
from guesthouse.model.guest import Autostart, BootPath, ShutdownAction
from guesthouse.model.impairment import impairment_words
from guesthouse.model.network import NetworkKind
from guesthouse.model.networking import BUILTIN
from guesthouse.model.nics import NicView
from guesthouse.model.reports import GuestView
from guesthouse.model.states import GuestState
from guesthouse.model.units import format_size
from guesthouse.model.usage import GuestUsage

Rows = list[tuple[str, str]]

_SELF_EVIDENT = frozenset({"started", "starting", "started paused", "created"})
"""Messages that say no more than the state does."""
_BLANK = ("", "")


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
        show(shlex.join(_argv(guest)) + "\n")
        return
    usage, cards = _usage(house, guest), _cards(house, guest)
    rows = [
        *_state(guest),
        _BLANK,
        *_reach(guest, cards),
        *share_rows(house, guest),
        _BLANK,
        *_size(guest, usage),
        _BLANK,
        *_engine(guest),
        *_networks(cards),
        *_host_life(guest),
        ("Created", _moment(guest.created_at)),
        ("Id", guest.id),
    ]
    output.pairs(rows, colours={"State": STATE_COLOURS.get(guest.state.value, "")})


def _argv(guest: GuestView) -> tuple[str, ...]:
    if guest.launch is None:
        raise InvalidTransition(
            f"{guest.name} has never been started, so it has no command line.",
            hint=f"Start it first: guest start {guest.name}",
        )
    return guest.launch.argv


def _usage(house: House, guest: GuestView) -> GuestUsage | None:
    """What it takes of the host; None where the daemon cannot tell, which is no reason to fail."""
    try:
        return house.usage(guest.id)
    except GuesthouseError:
        return None


def _cards(house: House, guest: GuestView) -> list[NicView]:
    """Its network cards; none where an older daemon cannot tell."""
    try:
        return house.nics(guest.id)
    except GuesthouseError:
        return []


def _state(guest: GuestView) -> Rows:
    status = guest.status
    reason = state_reason(status.state.value, status.reason)
    about = f" ({reason})" if reason else ""
    rows = [
        ("Name", guest.name),
        ("State", f"{status.state.value}{about} for {span(time.time() - status.since)}"),
    ]
    if status.message and status.message not in _SELF_EVIDENT:
        rows.append(("Why", status.message))
    rows += _readiness(guest)
    if guest.clock:
        rows.append(("Clock", guest.clock))
    if guest.job:
        rows.append(("Job", f"{guest.job} is at work on it (guest job show {guest.job})"))
    if guest.pending:
        rows.append(("Pending", f"{', '.join(guest.pending)} (guest restart {guest.name})"))
    if guest.spec.protected:
        rows.append(("Protected", f"yes (guest set {guest.name} protected=off)"))
    if guest.spec.description:
        rows.append(("About", guest.spec.description))
    return rows


def _readiness(guest: GuestView) -> Rows:
    waiting, passed = guest.readiness.waiting, ", ".join(guest.readiness.passed)
    if guest.state is not GuestState.RUNNING or not (waiting or passed):
        return []
    if not waiting:
        # Without an agent nobody in there can say so.
        known = guest.spec.agent or guest.spec.ssh_port
        return [("Ready", "yes" if known else "not known: its image has no agent")]
    so_far = f" ({passed} passed)" if passed else ""
    rows = [("Ready", f"not yet: waiting for {waiting}{so_far}")]
    return [*rows, ("", guest.readiness.hint)] if guest.readiness.hint else rows


def _reach(guest: GuestView, cards: list[NicView]) -> Rows:
    """How to get into it, and what leads into it."""
    rows = [_next(guest)]
    published = [port for nic in guest.spec.nics for port in nic.ports]
    if guest.addresses:
        # Newcomers try to reach that address from the host, and it is not there.
        inside = _where(cards) if cards else ""
        # Those of IPv6 stand with the cards.
        shown = [one for one in guest.addresses if ":" not in one] or guest.addresses
        rows.append(("Addresses" if len(shown) > 1 else "Address", " ".join(shown) + inside))
    for at, port in enumerate(published):
        name = "" if at else ("Port" if len(published) == 1 else "Ports")
        rows.append((name, _port(port)))
    if published:
        rows.append(("", "(to the guest, clients on 127.0.0.1 and on IPv6 are 10.0.2.2)"))
    return rows


def _next(guest: GuestView) -> tuple[str, str]:
    name = guest.name
    match guest.state:
        case GuestState.RUNNING if "ssh" in guest.readiness.passed:
            return ("Enter", f"guest shell {name}")
        case GuestState.RUNNING | GuestState.STARTING:
            login = ssh_login(guest.spec.nics)
            ways = f"{login}, or guest console {name}" if login else f"guest console {name}"
            return ("Enter", f"{ways} (its serial console)")
        case GuestState.PAUSED:
            return ("Go on", f"guest resume {name}")
        case GuestState.FAILED:
            return ("See why", f"guest logs {name}; guest logs --source engine {name}")
        case _:
            return ("Start", f"guest start {name}")


def _port(port: Publish) -> str:
    host = f"[{port.host_ip}]" if ":" in port.host_ip else port.host_ip
    return f"{host}:{port.host_port} -> {port.guest_port}/{port.protocol.value}"


def _size(guest: GuestView, usage: GuestUsage | None) -> Rows:
    spec = guest.spec
    process = usage.process if usage else None
    cpus, memory = str(spec.cpus), format_size(spec.memory)
    if process is not None:
        held = process.resident if process.proportional is None else process.proportional
        cpus += f", {span(process.cpu_seconds)} of CPU time taken"
        memory += f", {_short(held)} of the host's taken"
    rows = [("Image", guest.image), ("CPUs", cpus), ("Memory", memory)]
    used = {disk.name: disk.used for disk in usage.disks} if usage else {}
    for disk in spec.disks:
        taken = used.get(disk.name)
        room = f", {_short(taken)} of the host's taken" if taken is not None else ""
        suffix = ", read only" if disk.read_only else ""
        rows.append((f"Disk {disk.name}", f"{format_size(disk.size)}{room}{suffix}"))
    return rows


def _short(size: int) -> str:
    """Measured sizes are no round numbers; to a mebibyte is exact enough."""
    return format_size(size if size < 1 << 20 else size >> 20 << 20)


def _where(cards: list[NicView]) -> str:
    joined = [one for one in cards if one.network != BUILTIN]
    named = ", ".join(dict.fromkeys(one.network_name for one in joined))
    if joined and all(one.network_kind is NetworkKind.BRIDGED for one in joined):
        return f" (on network {named}, where all reach it)"
    where = f"on network {named}" if joined else "in a network of its own"
    return f" ({where}; 'guest publish' leads into it)"


def _engine(guest: GuestView) -> Rows:
    spec, launch = guest.spec, guest.launch
    rows: Rows = []
    if launch is not None and guest.status.pid is not None:
        kvm = launch.accelerator == "kvm"
        how = "KVM" if kvm else "emulation"
        rows.append(("Runs on", f"{launch.engine} by {how}, process {guest.status.pid}"))
        if launch.accelerator_reason and not kvm:
            rows.append(("", launch.accelerator_reason.removeprefix("Emulation, because: ")))
        rows.append(("Machine", f"{launch.machine}, {spec.firmware.value}, CPU {launch.cpu}"))
        own = launch.boot is BootPath.DISK
        rows.append(("Booted", "from its own disk" if own else "by its image's kernel directly"))
    else:
        machine = f"{spec.machine}, " if spec.machine else ""
        rows.append(("Machine", f"{machine}{spec.firmware.value}"))
    return rows


def _networks(cards: list[NicView]) -> Rows:
    """A row for each card; with its number where there are several."""
    only = len(cards) == 1 and not cards[0].index
    rows: Rows = []
    for one in cards:
        rows.append(("Network" if only else f"Card {one.index}", _card(one)))
        if impaired := impairment_words(one.impairment):
            rows.append(("", f"impaired: {' '.join(impaired)}"))
    return rows


def _card(one: NicView) -> str:
    parts = [one.network_name, one.mac]
    for address, fixed in ((one.has4, one.address4), (one.has6, one.address6)):
        if address:
            parts.append(f"{address} (fixed)" if fixed else address)
    return ", ".join([*parts, *(["link down"] if one.link is Link.DOWN else [])])


def _host_life(guest: GuestView) -> Rows:
    """What differs from the usual when the host comes up and goes down."""
    spec, rows = guest.spec, []
    if spec.autostart is not Autostart.OFF:
        when = "if it ran before" if spec.autostart is Autostart.LAST else "always"
        delay = f", then {spec.autostart_delay:g} s" if spec.autostart_delay else ""
        rows.append(("Autostart", f"{when}, order {spec.autostart_order}{delay}"))
    if spec.shutdown_action is not ShutdownAction.STOP:
        rows.append(("With its host", f"{spec.shutdown_action.value} it"))
    return rows


def _moment(when: float) -> str:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
    return f"{stamp} ({span(time.time() - when)} ago)"
