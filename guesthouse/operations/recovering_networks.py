"""Bringing back networks, and what belongs to them: see `recovery`."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection as Some
from typing import TypeVar

import msgspec

from guesthouse.errors import RevisionConflict
from guesthouse.jobs.context import JobContext
from guesthouse.model.device import Nic
from guesthouse.model.document import Document
from guesthouse.model.guest import Guest
from guesthouse.model.network import Lease, Network, choose_subnet, clashes, default_range
from guesthouse.model.networking import BUILTIN
from guesthouse.operations.rooms import Rooms
from guesthouse.operations.survey import Survey, free_name
from guesthouse.store.contract import ABSENT
from guesthouse.store.documents import Collection

D = TypeVar("D", bound=Document)


async def networks_back(rooms: Rooms, found: Survey) -> None:
    """Sets, groups and networks, under their names or, where these are taken by now, others."""
    documents = rooms.documents
    for one in found.sets.values():
        await _named_back(rooms, documents.sets, one)
    for group in found.groups.values():
        await _named_back(rooms, documents.groups, group)
    async with rooms.networks_change:
        for network in found.networks.values():
            await _named_back(rooms, documents.networks, _clear_of_others(rooms, network))


async def leases_back(rooms: Rooms, ctx: JobContext, found: Survey) -> None:
    """Addresses of guests that are there, on networks that have them. Copies of others go."""
    documents, view = rooms.documents, rooms.view
    for lease in found.leases.values():
        network = view.networks.get(lease.network)
        taken: set[tuple[str, int | str]] = {(one.guest, one.nic) for one in view.leases.values()}
        taken |= {(one.network, one.address4) for one in view.leases.values() if one.address4}
        taken |= {(one.network, one.address6) for one in view.leases.values() if one.address6}
        mine = {(lease.guest, lease.nic), *((lease.network, a) for a in _addresses(lease))}
        fits = network is not None and lease.guest in view.guests and not taken & mine
        if not fits or (network is not None and not _inside(network, _addresses(lease))):
            ctx.log(f"an address of guest {lease.guest} is not its any more")
            await rooms.pool.remove_copy("leases", lease.id)
            continue
        if await documents.leases.get(lease.id) is None:
            op = documents.leases.put_op(lease, expect=ABSENT)
            await view.wait_for(await documents.store.commit([op]))
    for id in found.stray_leases:
        await rooms.pool.remove_copy("leases", id)


def on_known_networks(rooms: Rooms, guest: Guest) -> Guest:
    """Cards on networks that are lost get one of their own, or the guest could not be started."""
    known = {BUILTIN, *rooms.view.networks}
    nics = tuple(_known_card(rooms, nic, known) for nic in guest.spec.nics)
    return msgspec.structs.replace(guest, spec=msgspec.structs.replace(guest.spec, nics=nics))


def _known_card(rooms: Rooms, nic: Nic, known: Some[str]) -> Nic:
    """Fixed addresses go with a network that is lost, or has other subnets by now."""
    if nic.network not in known:
        return msgspec.structs.replace(nic, network=BUILTIN, address4="", address6="")
    network = rooms.view.networks.get(nic.network)
    if network is None or _inside(network, nic.fixed):
        return nic
    return msgspec.structs.replace(nic, address4="", address6="")


def _clear_of_others(rooms: Rooms, network: Network) -> Network:
    """With its subnets, unless another network has them by now."""
    others = [one for one in rooms.view.networks.values() if one.id != network.id]
    taken = [str(subnet) for one in others for subnet in one.subnets]
    if not clashes(network, taken):
        return network
    subnet4 = choose_subnet(taken, seed=network.id) if network.subnet4 else ""
    subnet6 = choose_subnet(taken, version=6, seed=network.id) if network.subnet6 else ""
    dhcp = default_range(subnet4) if network.dhcp else None
    return msgspec.structs.replace(network, subnet4=subnet4, subnet6=subnet6, dhcp=dhcp)


async def _named_back(rooms: Rooms, collection: Collection[D], one: D) -> None:
    """:param one: a document that has a name."""
    name = wanted = str(getattr(one, "name", ""))
    refused = set[str]()
    while await collection.get(one.id) is None:
        if await collection.named(name) is not None:
            refused.add(name)
            name = free_name(wanted, refused)
            continue
        named = msgspec.structs.replace(one, name=name)
        ops = [collection.put_op(named, expect=ABSENT), collection.claim_op(name, one.id)]
        try:
            await rooms.view.wait_for(await rooms.documents.store.commit(ops))
        except RevisionConflict:  # somebody took the name this moment
            await rooms.view.wait_for(rooms.documents.store.revision)


def _addresses(lease: Lease) -> tuple[str, ...]:
    return tuple(text for text in (lease.address4, lease.address6) if text)


def _inside(network: Network, addresses: tuple[str, ...]) -> bool:
    own = network.subnets
    return all(any(ipaddress.ip_address(text) in one for one in own) for text in addresses)
