"""Which networks the cards of a guest are on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from guesthouse.errors import Busy, GuesthouseError, HostLacks, InvalidInput, NotFound
from guesthouse.host.capabilities import lacking
from guesthouse.jobs.context import JobContext
from guesthouse.model.device import Nic, Publish
from guesthouse.model.network import Network, NetworkKind
from guesthouse.model.networking import BUILTIN
from guesthouse.model.nics import NicRequest
from guesthouse.operations.networking import default_network
from guesthouse.operations.rooms import Rooms

_LEADS_OUT = (NetworkKind.NAT, NetworkKind.ROUTED)


def networks_of(
    rooms: Rooms, names: Sequence[str], publish: Sequence[Publish] = ()
) -> tuple[str, ...]:
    """Ids of the networks that are asked for; `builtin` stays.

    :raise NotFound: :raise HostLacks: this host has no such networks; with the cure.
    :raise InvalidInput: ports are published, and no card can have them.
    """
    found = tuple(_id(rooms, name) for name in names)
    if publish and found and port_card([Nic(mac="", network=one) for one in found], rooms) is None:
        raise InvalidInput(
            "No port can be published on an isolated or bridged network: this host leads nothing "
            "there.",
            hint="Give the guest a card on another network as well: --network default",
            field="publish",
        )
    return found


def _id(rooms: Rooms, name: str) -> str:
    if name == BUILTIN:
        return name
    network = rooms.view.network(name)
    if network.kind is NetworkKind.BRIDGED and rooms.bridges.moves.confirm_by(network.id):
        raise Busy(
            f"Network {network.name} waits to be confirmed, and is gone if it is not.",
            hint=f"Confirm that this host is reached: guest network confirm {network.name}",
        )
    lack = lacking(rooms.facts().capabilities, uplink=network.kind in _LEADS_OUT)
    if lack is not None:
        raise HostLacks(
            f"No guest can be on network {network.name!r} here: {lack.reason}",
            hint=lack.cure or "See what this host lacks: guest doctor",
            capability=lack.name,
        )
    return network.id


async def chosen(rooms: Rooms, ctx: JobContext, asked: Sequence[str]) -> tuple[str, ...]:
    """The networks of a guest's cards: those asked for; else the default one, which is made if it
    is not there, or `builtin` where this host has no networks. Why stands in the job's log.
    """
    if asked:
        return tuple(asked)
    lack = lacking(rooms.facts().capabilities)
    reason = lack.reason if lack else ""
    if lack is None:
        try:
            network = await default_network(rooms)
        except GuesthouseError as error:
            reason = error.message
        else:
            return (network.id,)
    ctx.log(f"the guest gets a network of its own, without other guests: {reason}")
    return (BUILTIN,)


async def require_networks(rooms: Rooms, nics: Sequence[Nic]) -> None:
    """Hold `rooms.networks_change`, until the guest is stored.

    :raise NotFound: one of the networks was removed meanwhile.
    """
    for nic in nics:
        if nic.network != BUILTIN and await rooms.documents.networks.get(nic.network) is None:
            raise NotFound(
                "A network that the guest is to join was removed meanwhile.",
                hint="See what there is: guest network ls",
            )


def cards(
    rooms: Rooms,
    networks: Sequence[str],
    macs: Mapping[str, str],
    ports: tuple[Publish, ...],
    wishes: Sequence[NicRequest] = (),
) -> tuple[Nic, ...]:
    """The first is soldered in, and the others can be pulled while the guest runs.

    :param macs: as `mac_names` calls them. :param ports: the first card that may has them.
    :param wishes: what else is asked of each card, if anything is.
    """
    names = mac_names(networks)
    nics = [
        Nic(mac=macs[name], network=network, index=index, plug=index - 1 if index else None)
        for index, (name, network) in enumerate(zip(names, networks, strict=True))
    ]
    for index, wish in enumerate(wishes):
        nics[index] = msgspec.structs.replace(
            nics[index],
            mac=wish.mac or nics[index].mac,
            address4=wish.address4,
            address6=wish.address6,
            link=wish.link,
        )
    at = port_card(nics, rooms)
    return tuple(msgspec.structs.replace(nic, ports=ports if nic is at else ()) for nic in nics)


def port_network(rooms: Rooms, networks: Sequence[str]) -> str:
    """Which of these published ports lead to."""
    at = port_card([Nic(mac="", network=one) for one in networks], rooms)
    return at.network if at is not None else BUILTIN


def mac_names(networks: Sequence[str]) -> list[str]:
    """How a launch's journal calls the addresses of its cards."""
    return ["mac" if not index else f"mac{index}" for index, _network in enumerate(networks)]


def port_card(nics: Sequence[Nic], rooms: Rooms) -> Nic | None:
    """The card that published ports lead to: the first that is not on an isolated or a bridged
    network; None if there is none."""
    for nic in nics:
        network: Network | None = rooms.view.networks.get(nic.network)
        if network is None or network.kind in _LEADS_OUT:
            return nic
    return None
