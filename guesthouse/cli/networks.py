"""`guest network ls|create|info|rm`; what else there is has rooms next door."""

from __future__ import annotations

import time
from functools import partial

import click

from guesthouse.cli import output
from guesthouse.cli.bridging import create_bridged, network_confirm
from guesthouse.cli.command import command, complete_networks, json_option, yes_option
from guesthouse.cli.connecting import network_connect, network_disconnect
from guesthouse.cli.family import Family
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.network_set import network_set, parse_range
from guesthouse.cli.remove import require_all
from guesthouse.cli.session import open_house
from guesthouse.cli.table import colourful, render, show, terminal_width
from guesthouse.client.house import network_path
from guesthouse.model.bridging import MAX_VLAN
from guesthouse.model.names import check_name
from guesthouse.model.network import DhcpRange, NetworkKind
from guesthouse.model.networking import NetworkRequest, NetworkView

network_argument = click.argument("name", metavar="NETWORK", shell_complete=complete_networks)


@click.group(
    "network",
    cls=Family,
    examples=[
        ("guest network ls", ""),
        ("guest network create lan --kind isolated", "Guests reach each other and nothing else"),
        ("guest launch debian/12 db --network lan", ""),
    ],
)
def network() -> None:
    """Networks: which guests reach each other, and how they reach the world."""


@command("ls", examples=[("guest network ls", ""), ("guest network ls --json", "")])
@json_option
def network_ls(as_json: bool) -> None:
    """List the networks.

    Guests whose launch names none are on 'default', which is made when the first of them needs it.
    """
    house = open_house()
    if as_json:
        output.json_result(house.raw("/v1/networks"))
        return
    found = house.networks()
    if not found:
        output.note("there are no networks yet; 'default' is made when a guest needs it")
        return
    rows = [
        [one.name, one.kind.value, one.subnet4 or "-", one.subnet6 or "-", " ".join(_names(one))]
        for one in found
    ]
    headers = ["NAME", "KIND", "IPV4", "IPV6", "GUESTS"]
    show(render(headers, rows, width=terminal_width(), drop=("IPV6",), colour=colourful()))
    for one in found:
        if one.clashes:
            output.note(f"{one.name}: this host has a route of its own to {_clashes(one)}")


@command(
    "create",
    examples=[
        ("guest network create lan", "Its guests reach each other, and the internet"),
        ("guest network create lab --kind isolated", "They reach each other and nothing else"),
        ("guest network create dmz --subnet 10.77.0.0/24 --domain dmz.internal", ""),
        ("guest network create office --bridge-host eth0", "Guests are on the host's own network"),
    ],
)
@click.argument("name", metavar="NETWORK")
@click.option(
    "--kind",
    type=click.Choice([kind.value for kind in NetworkKind]),
    help="How it reaches the world; default: nat, or bridged with --bridge-host.",
)
@click.option(
    "--bridge-host", metavar="IFACE", default="", help="The network of this interface of the host."
)
@click.option("--vlan", type=click.IntRange(1, MAX_VLAN), help="Of that interface, tagged.")
@click.option("--subnet", metavar="CIDR", help="IPv4; 'none' for none; default: a free one.")
@click.option(
    "--subnet6", metavar="CIDR", help="IPv6, a /64; 'none' for none; default: a free one."
)
@click.option("--dhcp", metavar="FIRST-LAST", help="IPv4 addresses that guests get.")
@click.option("--domain", default="", help="DNS domain of its guests, beside their bare names.")
@click.option("--mtu", type=int, default=1500, show_default=True, help="Bytes in a packet.")
@click.option("--host-access", is_flag=True, help="Guests may reach this host's own addresses.")
@click.option(
    "--no-lan-access", is_flag=True, help="Guests may not reach this host's own networks."
)
@yes_option
def network_create(
    name: str,
    kind: str | None,
    bridge_host: str,
    vlan: int | None,
    subnet: str | None,
    subnet6: str | None,
    dhcp: str | None,
    domain: str,
    mtu: int,
    host_access: bool,
    no_lan_access: bool,
    yes: bool,
) -> None:
    """Make a network. It costs nothing until a guest starts on it.

    nat: guests reach the world under this host's address. isolated: they reach each other alone.
    routed: they reach the world under their own addresses, to which somebody must route; for the
    machine's house.
    bridged: they are on the network of an interface of this host, which must be said to be reached
    still: within 30 seconds, or all is as it was (guest network confirm). At this machine that is
    done for you; over SSH you are asked, and --yes answers.
    """
    request = NetworkRequest(
        name=check_name(name),
        kind=NetworkKind(kind or ("bridged" if bridge_host else "nat")),
        uplink=bridge_host,
        vlan=vlan or 0,
        subnet4=_subnet(subnet),
        subnet6=_subnet(subnet6),
        dhcp=_range(dhcp),
        domain=domain,
        mtu=mtu,
        host_access=host_access,
        lan_access=not no_lan_access,
    )
    house = open_house()
    submit = partial(house.create_network, request)
    if request.kind is NetworkKind.BRIDGED:
        submit = partial(create_bridged, house, request, yes=yes)
    jobs = carry_out(house, [Wish(name, submit)])
    made = house.network(name)
    where = " and ".join(text for text in (made.subnet4, made.subnet6) if text) or _outside(made)
    output.result(f"Created network {made.name} ({made.kind.value}, {where})")
    if made.kind in (NetworkKind.BRIDGED, NetworkKind.ROUTED):  # what others must do for it
        for line in house.job_log(jobs[0].id).splitlines():
            output.note(line)


def _outside(made: NetworkView) -> str:
    return f"{made.uplink}, VLAN {made.vlan}" if made.vlan else made.uplink


def _subnet(text: str | None) -> str | None:
    return "" if text == "none" else text


def _range(text: str | None) -> DhcpRange | None:
    return None if text is None else parse_range(text)


@command("info", examples=[("guest network info lan", ""), ("guest network info lan --json", "")])
@network_argument
@json_option
def network_info(name: str, as_json: bool) -> None:
    """Show everything about a network, and the addresses of the guests on it."""
    house = open_house()
    if as_json:
        output.json_result(house.raw(network_path(name)))
        return
    found = house.network(name)
    rows = [
        ("Name", found.name),
        ("Kind", f"{found.kind.value}: {_KINDS[found.kind]}"),
        *_addressing(found),
    ]
    if found.dhcp is not None:
        rows.append(("Given out", f"{found.dhcp.first} to {found.dhcp.last}"))
    if found.clashes:
        rows.append(("Out of reach", f"{_clashes(found)}: this host has a route of its own there"))
    if found.connected:
        rows.append(("Connected", "this host has a route there"))
    rows += [
        ("Domain", found.domain or "none"),
        ("MTU", f"{found.mtu} bytes"),
        ("Guests may reach", _reach(found)),
        ("Created", time.strftime("%Y-%m-%d %H:%M", time.localtime(found.created_at))),
        ("Id", found.id),
    ]
    output.pairs(rows)
    if found.members:
        table = [
            [
                f"{one.guest} (trash)" if one.trashed else one.guest,
                str(one.nic),
                one.mac,
                one.address4 or "-",
                one.address6 or "-",
            ]
            for one in found.members
        ]
        headers = ["GUEST", "CARD", "MAC", "IPV4", "IPV6"]
        listed = render(headers, table, width=terminal_width(), drop=("MAC",), colour=colourful())
        show(f"\n{listed}")


_KINDS = {
    NetworkKind.NAT: "to the world under this host's address",
    NetworkKind.ISOLATED: "each other alone",
    NetworkKind.ROUTED: "to the world under their own addresses",
    NetworkKind.BRIDGED: "the network of one of this host's interfaces",
}


def _addressing(found: NetworkView) -> list[tuple[str, str]]:
    if found.kind is not NetworkKind.BRIDGED:
        return [
            ("IPv4", _with_house(found.subnet4, found.own_address4)),
            ("IPv6", _with_house(found.subnet6, found.own_address6)),
        ]
    rows = [("Host's interface", _outside(found)), ("Addresses", "given out by that network")]
    if found.confirm_by is not None:
        left = max(0, round(found.confirm_by - time.time()))
        rows.append(("Given back", f"in {left} s, without: guest network confirm {found.name}"))
    return rows


def _with_house(subnet: str, own: str) -> str:
    return f"{subnet}, the house is {own}" if subnet else "none"


def _clashes(found: NetworkView) -> str:
    return ", ".join(found.clashes)


def _reach(found: NetworkView) -> str:
    if found.kind is NetworkKind.ISOLATED:
        return "each other"
    if found.kind is NetworkKind.BRIDGED:
        return "each other, and that network"
    parts = ["each other", "the internet"]
    parts += ["this host's networks"] if found.lan_access else []
    parts += ["this host itself"] if found.host_access else []
    return ", ".join(parts)


def _names(found: NetworkView) -> list[str]:
    return list(dict.fromkeys(one.guest for one in found.members if not one.trashed))


@command("rm", examples=[("guest network rm lan", "Refused while a guest is on it")])
@click.argument(
    "names", nargs=-1, required=True, metavar="NETWORK...", shell_complete=complete_networks
)
@yes_option
def network_rm(names: tuple[str, ...], yes: bool) -> None:
    """Remove networks. Those that a guest is on are refused, also when it is in the trash.

    When one of the names is unknown, nothing is removed.
    """
    house = open_house()
    require_all(names, house.network)
    question = f"Remove {', '.join(names)}?"
    if not output.confirm(question, yes=yes, retry=f"guest network rm --yes {' '.join(names)}"):
        output.note("nothing removed")
        raise click.exceptions.Exit(1)
    wishes = [Wish(name, partial(house.remove_network, name)) for name in names]
    carry_out(house, wishes, lambda job: f"Removed network {job.target_name}")


for _command in (
    network_ls,
    network_create,
    network_confirm,
    network_connect,
    network_disconnect,
    network_info,
    network_set,
    network_rm,
):
    network.add_command(_command)
