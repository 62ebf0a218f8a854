"""Networks that are the network of one of the host's interfaces: made, confirmed, given back."""

from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path

import msgspec

from guesthouse.errors import Conflict, HostLacks, InvalidInput
from guesthouse.host.spawn import run
from guesthouse.jobs.context import JobContext
from guesthouse.model.bridging import check_bridged
from guesthouse.model.network import Lease, Network, NetworkKind, check_network
from guesthouse.model.networking import NetworkChange, NetworkRequest
from guesthouse.network.bridged.forwarding import forward_trouble
from guesthouse.network.bridged.hostlink import check_may_change
from guesthouse.network.bridged.moves import CONFIRM_SECONDS
from guesthouse.network.house.direct import host_end
from guesthouse.operations.rooms import Rooms


def design_bridged(network: str, wanted: NetworkRequest) -> Network:
    """:param network: id that it will have. :raise InvalidInput: it cannot be like that."""
    made = Network(
        id=network,
        name=wanted.name,
        kind=NetworkKind.BRIDGED,
        subnet4=wanted.subnet4 or "",
        subnet6=wanted.subnet6 or "",
        dhcp=wanted.dhcp,
        domain=wanted.domain,
        mtu=wanted.mtu,
        uplink=wanted.uplink,
        vlan=wanted.vlan,
        # The host is a neighbour there as any other: packets to it pass none of its walls.
        host_access=True,
        lan_access=True,
        created_at=time.time(),
    )
    check_network(made)
    return made


def check_bridged_request(wanted: NetworkRequest) -> None:
    """:raise InvalidInput: what can be said at once."""
    check_bridged(
        wanted.uplink,
        wanted.vlan,
        {
            "subnet4": wanted.subnet4,
            "subnet6": wanted.subnet6,
            "dhcp": wanted.dhcp,
            "domain": wanted.domain,
        },
    )
    if not wanted.lan_access:
        raise _no_walls("lan_access")


def check_bridged_change(change: NetworkChange) -> None:
    """:raise InvalidInput: a bridged network cannot be like that."""
    for field in ("host_access", "lan_access"):
        if getattr(change, field) is False:
            raise _no_walls(field)
    if change.domain:
        raise InvalidInput(
            "The house gives no names on a bridged network: the network outside does.",
            field="domain",
        )


def _no_walls(field: str) -> InvalidInput:
    return InvalidInput(
        "On a bridged network the host and its network are neighbours, which the house's walls do "
        "not keep apart.",
        hint="Use a network of kind nat, or a rule of the firewall.",
        field=field,
    )


async def check_host(rooms: Rooms, network: Network) -> None:
    """:raise HostLacks: this house may not bridge. :raise NotFound: :raise InvalidInput:
    :raise Conflict: that interface cannot be."""
    await rooms.bridges.check(network)


async def bring_up(rooms: Rooms, ctx: JobContext, network: Network) -> None:
    """The interface becomes a port of a bridge, if it has to, and somebody confirms that.

    :raise Conflict: nobody did, or the host lost its gateway: all is as it was.
    """
    bridges, moves = rooms.bridges, rooms.bridges.moves
    ctx.undo(lambda: bridges.remove(network.id))
    again = ctx.has_step("move")
    if again and not moves.state(network.id):
        raise Conflict(
            f"The daemon and what moved {network.uplink} were killed; the interface is as it was.",
            hint="Make the network again.",
        )
    link = await bridges.check(network)
    await ctx.step("move")
    if bridges.moves_address(network, link) and not again:
        if link.leased:
            ctx.log(
                f"{link.name} has its address from a DHCP server: let the host's DHCP client look "
                "after the bridge from now on, or it runs out"
            )
        await moves.move(network.id, link)
    if bridges.moves_address(network, link) or again:
        ctx.progress(None, f"waits {CONFIRM_SECONDS:g} s for: guest network confirm {network.name}")
        why = await moves.settled(network.id)
        if why:
            raise Conflict(
                f"{network.uplink} is as it was: {why}.",
                hint="See to the host's network, then make the network again and confirm it: "
                f"guest network confirm {network.name}",
            )
    trouble = await forward_trouble(bridged=True)
    if trouble:
        ctx.log(trouble)


def learned(rooms: Rooms, network: Network) -> list[Lease]:
    """Leases with the addresses that guests say they have: the network outside gives them out.

    A guest with several cards does not say which is which.
    """
    found = []
    for lease in rooms.view.leases.values():
        live, guest = rooms.live.get(lease.guest), rooms.view.guests.get(lease.guest)
        if lease.network != network.id:
            continue
        alone = guest is not None and len(guest.spec.nics) == 1
        said = live.progress.addresses if live and alone else ()
        four = next((one for one in said if ":" not in one), "")
        six = next((one for one in said if ":" in one), "")
        found.append(msgspec.structs.replace(lease, address4=four, address6=six))
    return found


def check_direct(network: Network) -> None:
    """Whether packets of its guests can go to the host as they are.

    :raise HostLacks: this house may not change the host's network. :raise InvalidInput: its kind.
    """
    if network.kind in (NetworkKind.ISOLATED, NetworkKind.BRIDGED):
        why = "nothing comes in" if network.kind is NetworkKind.ISOLATED else "it is reached anyway"
        raise InvalidInput(
            f"Network {network.name} is {network.kind.value}: {why}.", field="connected"
        )
    try:
        check_may_change()
    except HostLacks as error:
        what = (
            "A routed network" if network.kind is NetworkKind.ROUTED else "A way in from this host"
        )
        raise HostLacks(
            f"{what} takes an interface and routes on the host itself, which only the machine's "
            "house may make (root, CAP_NET_ADMIN). The uplink of this one (slirp4netns) carries "
            "connections under its own address.",
            hint="Publish ports: guest publish; or use the machine's house, as root: "
            "guesthoused --system",
            capability=str(error.detail.get("capability", "bridging")),
        ) from None


async def tell_routed(rooms: Rooms, ctx: JobContext, network: Network) -> None:
    """What others must do for it: nothing of that is done unasked."""
    device = host_end(rooms.folders.runtime)
    subnets = [text for text in (network.subnet4, network.subnet6) if text]
    ctx.log(f"routers of the network outside must send {' and '.join(subnets)} to this host")
    for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        if _setting(key) != "1":
            ctx.log(f"this host forwards nothing yet: sysctl -w net.{key.replace('/', '.')}=1")
    trouble = await forward_trouble(bridged=False, device=device)
    if trouble:
        ctx.log(trouble)


async def tell_names(rooms: Rooms, ctx: JobContext, network: Network) -> None:
    """Names of its guests, for programs of this host; where that is not to be had, how to ask."""
    device = host_end(rooms.folders.runtime)
    lines = resolver_commands(network, device)
    others = [n for n in rooms.view.networks.values() if n.connected and n.id != network.id]
    if lines and not others and shutil.which("resolvectl"):
        for argv in lines:
            await run(argv, check=False)
        ctx.log(f"names below {network.domain} are asked for at {network.gateway4}")
        return
    ctx.log(f"names of its guests: dig @{network.gateway4 or network.gateway6} NAME")
    for argv in lines:
        ctx.log(f"with systemd-resolved: {shlex.join(argv)}")


def resolver_commands(network: Network, device: str) -> list[list[str]]:
    """For systemd-resolved (resolvectl(1)): only names below the network's domain are asked there.

    They go with the interface.
    """
    if not network.domain:
        return []
    server = network.gateway4 or network.gateway6
    return [
        ["resolvectl", "dns", device, server],
        ["resolvectl", "domain", device, f"~{network.domain}"],
    ]


def _setting(key: str) -> str:
    try:
        return Path(f"/proc/sys/net/{key}").read_text().strip()
    except OSError:
        return ""
