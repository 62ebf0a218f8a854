"""Networks that are the network of one of the host's interfaces: made, confirmed, given back."""

from __future__ import annotations

import time

import msgspec

from guesthouse.errors import Conflict, InvalidInput
from guesthouse.jobs.context import JobContext
from guesthouse.model.bridging import check_bridged
from guesthouse.model.network import Lease, Network, NetworkKind, check_network
from guesthouse.model.networking import NetworkChange, NetworkRequest
from guesthouse.network.bridged.forwarding import forward_trouble
from guesthouse.network.bridged.moves import CONFIRM_SECONDS
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
