"""Networks come, change and go: `guest network create|rm`, and the one that the house makes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import msgspec

from guesthouse.errors import (
    Conflict,
    GuesthouseError,
    InUse,
    InvalidInput,
    NameTaken,
    NotFound,
    RevisionConflict,
)
from guesthouse.jobs.context import JobContext
from guesthouse.jobs.registry import Operation
from guesthouse.model.document import Noun
from guesthouse.model.firewall import EndpointKind
from guesthouse.model.guest import Guest
from guesthouse.model.ids import new_id
from guesthouse.model.names import check_name
from guesthouse.model.network import (
    Network,
    NetworkKind,
    check_network,
    choose_subnet,
    clashes,
    default_range,
)
from guesthouse.model.networking import BUILTIN, DEFAULT, NetworkChange, NetworkRequest, NetworkView
from guesthouse.operations.bridging import (
    bring_up,
    check_bridged_change,
    check_bridged_request,
    check_direct,
    check_host,
    design_bridged,
    learned,
    tell_names,
    tell_routed,
)
from guesthouse.operations.firewall_names import log_naming
from guesthouse.operations.rooms import Rooms
from guesthouse.store.contract import ABSENT, Op
from guesthouse.store.documents import NETWORKS


class CreateNetworkParams(Noun, kw_only=True, frozen=True):
    """:ivar network: id that it will have."""

    network: str
    wanted: NetworkRequest


class CreateNetwork(Operation[CreateNetworkParams]):
    kind = "network.create"
    Params = CreateNetworkParams

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms

    def locks(self, params: CreateNetworkParams) -> Sequence[str]:
        return (NETWORKS.key(params.network),)

    async def run(self, ctx: JobContext, params: CreateNetworkParams) -> dict[str, str]:
        """:raise NameTaken: :raise Conflict: the subnet is in use on this host, or nobody confirmed
        a bridged network."""
        bridged = params.wanted.kind is NetworkKind.BRIDGED
        if bridged and not ctx.has_step("create"):
            await check_host(self.rooms, design_bridged(params.network, params.wanted))
        if params.wanted.kind is NetworkKind.ROUTED:
            check_direct(
                Network(id="", name=params.wanted.name, kind=NetworkKind.ROUTED, created_at=0)
            )
        await ctx.step("create")
        if bridged:
            ctx.undo(lambda: unmake_network(self.rooms, params.network))
        async with self.rooms.networks_change:
            made = await make_network(self.rooms, params.network, params.wanted)
        if bridged:
            await bring_up(self.rooms, ctx, made)
        if made.kind is NetworkKind.ROUTED:
            await tell_routed(self.rooms, ctx, made)
        return {"network": made.id, "name": made.name}


class ChangeNetworkParams(Noun, kw_only=True, frozen=True):
    network: str
    change: NetworkChange


class ChangeNetwork(Operation[ChangeNetworkParams]):
    """Running guests have it at once; what DHCP told them they learn when they ask again."""

    kind = "network.set"
    Params = ChangeNetworkParams

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms

    def locks(self, params: ChangeNetworkParams) -> Sequence[str]:
        return (NETWORKS.key(params.network),)

    async def run(self, ctx: JobContext, params: ChangeNetworkParams) -> None:
        """:raise NameTaken: :raise InvalidInput: it cannot be like that."""
        documents = self.rooms.documents.networks
        before = (await documents.require(params.network)).doc
        fields = msgspec.structs.asdict(params.change)
        named = {field: value for field, value in fields.items() if value is not None}
        check_change(before, params.change)
        if params.change.connected:
            check_direct(before)
        await ctx.step("set")
        await self._write(before, named)
        ctx.undo(lambda: self._take_back(params.network, before, list(named)))
        await self.rooms.refresh_networks()
        if params.change.connected:
            await tell_names(self.rooms, ctx, before)

    async def _write(self, before: Network, named: dict[str, object]) -> None:
        documents = self.rooms.documents.networks
        ops: list[Op] = []
        name = str(named.get("name", before.name))
        if name != before.name:
            ops = [documents.claim_op(name, before.id), documents.release_op(before.name)]
        try:
            done = await documents.update(
                before.id, lambda now: msgspec.structs.replace(now, **named), extra_ops=ops
            )
        except RevisionConflict as conflict:
            raise documents.name_conflict(conflict, name) from None
        await self.rooms.view.wait_for(done.revision)

    async def _take_back(self, network: str, before: Network, fields: list[str]) -> None:
        now = (await self.rooms.documents.networks.require(network)).doc
        await self._write(now, {field: getattr(before, field) for field in fields})
        await self.rooms.refresh_networks()


class RemoveNetworkParams(Noun, kw_only=True, frozen=True):
    network: str


class RemoveNetwork(Operation[RemoveNetworkParams]):
    """Refuses while a guest has a card on it, also one in the trash."""

    kind = "network.remove"
    Params = RemoveNetworkParams
    may_cancel = False

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms

    def locks(self, params: RemoveNetworkParams) -> Sequence[str]:
        return (NETWORKS.key(params.network),)

    async def run(self, ctx: JobContext, params: RemoveNetworkParams) -> None:
        """:raise InUse: names the guests."""
        rooms = self.rooms
        async with rooms.networks_change:
            found = await rooms.documents.networks.get(params.network)
            if found is None and not ctx.has_step("remove"):
                raise NotFound("The network is gone already.", hint="guest network ls")
            if found is not None:
                refuse_used(found.doc, rooms.view.guests.values())
            await ctx.step("remove")
            await unmake_network(rooms, params.network)
        try:
            await rooms.refresh_networks()
        except GuesthouseError as error:  # nobody was on it, so hardly anything can be left
            ctx.log(f"the house's network: {error}")
        log_naming(ctx, rooms.view, EndpointKind.NETWORK, params.network)
        if found is None or found.doc.kind is NetworkKind.BRIDGED:
            await rooms.bridges.remove(params.network)


async def unmake_network(rooms: Rooms, network: str) -> None:
    """Its document goes, with the leases of cards that were on it once. Idempotent."""
    documents = rooms.documents
    found = await documents.networks.get(network)
    leases = [one for one in rooms.view.leases.values() if one.network == network]
    ops: list[Op] = [documents.leases.delete_op(lease.id) for lease in leases]
    if found is not None:
        ops.append(documents.networks.delete_op(network, expect=found.revision))
        ops.append(documents.networks.release_op(found.doc.name))
    if ops:
        await rooms.view.wait_for(await documents.store.commit(ops))
    # After the documents: a lost database brings back the whole network or nothing of it.
    for lease in leases:
        await rooms.pool.remove_copy("leases", lease.id)
    await rooms.pool.remove_copy("networks", network)


def network_view(rooms: Rooms, network: Network) -> NetworkView:
    """From memory alone, but for a bridged one: what of the host is on its way stands in files."""
    bridged = network.kind is NetworkKind.BRIDGED
    leases = rooms.view.leases.values()
    return NetworkView.of(
        network,
        rooms.view.guests.values(),
        learned(rooms, network) if bridged else leases,
        rooms.clashes.of(network.id),
        rooms.bridges.moves.confirm_by(network.id) if bridged else None,
    )


def refuse_used(network: Network, guests: Iterable[Guest]) -> None:
    """:raise InUse: some of these guests have a card on it."""
    users = [one for one in guests if any(nic.network == network.id for nic in one.spec.nics)]
    if not users:
        return
    there = sorted(guest.name for guest in users if not guest.in_trash)
    trashed = sorted(guest.name for guest in users if guest.in_trash)
    parts = ([", ".join(there)] if there else []) + (
        [f"{', '.join(trashed)} in the trash"] if trashed else []
    )
    hint = (
        f"Move their cards first: guest nic set {there[0]} CARD network=OTHER; or remove them: "
        f"guest rm {' '.join(there)}"
        if there
        else ""
    )
    raise InUse(
        f"Network {network.name!r} is used by {' and '.join(parts)}.",
        hint=hint or "Remove them for good first: guest trash empty",
        guests=there,
        trash=trashed,
    )


async def make_network(rooms: Rooms, network: str, wanted: NetworkRequest) -> Network:
    """Its document, unless it is there already. Hold `rooms.networks_change`.

    :raise NameTaken: :raise InvalidInput: it cannot be like that. :raise Conflict: its subnet is
        in use on this host, or there is none left. :raise HostLacks: `ip` is not installed.
    """
    documents = rooms.documents
    if (there := await documents.networks.get(network)) is not None:
        return there.doc
    made = await _designed(rooms, network, wanted)
    ops: list[Op] = [
        documents.networks.put_op(made, expect=ABSENT),
        documents.networks.claim_op(made.name, made.id),
    ]
    try:
        await rooms.view.wait_for(await documents.store.commit(ops))
    except RevisionConflict as conflict:
        raise documents.networks.name_conflict(conflict, made.name) from None
    return made


async def default_network(rooms: Rooms) -> Network:
    """The network of guests that name none; made if there is none. Raises as `make_network`."""
    async with rooms.networks_change:
        while True:
            for network in rooms.view.networks.values():
                if network.name == DEFAULT:
                    return network
            try:
                return await make_network(rooms, new_id(), NetworkRequest(name=DEFAULT))
            except NameTaken:  # the view does not show it: it came this moment, or does not parse
                named = await rooms.documents.networks.named(DEFAULT)
                if named is None:
                    continue
                return (await rooms.documents.networks.require(named.id)).doc


async def _designed(rooms: Rooms, network: str, wanted: NetworkRequest) -> Network:
    if wanted.kind is NetworkKind.BRIDGED:
        return design_bridged(network, wanted)
    taken = [*await rooms.host_routes()]
    taken += [str(one) for other in rooms.view.networks.values() for one in other.subnets]
    # The same network made again is where it was, while that is free.
    seed = f"{rooms.folders.state}/{wanted.name}"
    subnet4, subnet6 = (
        choose_subnet(taken, version=version, seed=seed) if asked is None else asked
        for version, asked in ((4, wanted.subnet4), (6, wanted.subnet6))
    )
    fields = msgspec.structs.asdict(wanted) | {"subnet4": subnet4, "subnet6": subnet6}
    made = Network(id=network, created_at=time.time(), **fields)
    check_network(made)
    if made.dhcp is None and subnet4:
        made = msgspec.structs.replace(made, dhcp=default_range(subnet4))
    if found := clashes(made, taken):
        raise Conflict(
            f"The subnet of network {made.name!r} overlaps {', '.join(found)}, which this host "
            "or another network uses.",
            hint="Name another subnet, or none: the house then finds a free one.",
        )
    return made


def check_request(wanted: NetworkRequest) -> None:
    """What can be said at once. :raise InvalidInput: it cannot be."""
    check_network_name(wanted.name)
    if wanted.kind is NetworkKind.BRIDGED:
        check_bridged_request(wanted)


def check_change(before: Network, change: NetworkChange) -> None:
    """:raise InvalidInput: the network cannot be like that."""
    if change.name is not None:
        check_network_name(change.name)
    fields = msgspec.structs.asdict(change)
    named = {field: value for field, value in fields.items() if value is not None}
    if before.kind is NetworkKind.BRIDGED:
        check_bridged_change(change)
    check_network(msgspec.structs.replace(before, **named))


def check_network_name(name: str) -> None:
    """:raise InvalidInput: no network can be called that."""
    check_name(name)
    if name == BUILTIN:
        raise InvalidInput(
            f"No network can be called {BUILTIN!r}: that is a guest's own network.",
            hint="Choose another name.",
            field="name",
        )
