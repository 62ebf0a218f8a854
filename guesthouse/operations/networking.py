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
from guesthouse.model.networking import BUILTIN, DEFAULT, NetworkChange, NetworkRequest
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
        """:raise NameTaken: :raise Conflict: the subnet is in use on this host."""
        await ctx.step("create")
        async with self.rooms.networks_change:
            made = await make_network(self.rooms, params.network, params.wanted)
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
        await ctx.step("set")
        await self._write(before, named)
        ctx.undo(lambda: self._take_back(params.network, before, list(named)))
        await self.rooms.refresh_networks()

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
        rooms, documents = self.rooms, self.rooms.documents
        async with rooms.networks_change:
            found = await documents.networks.get(params.network)
            if found is None and not ctx.has_step("remove"):
                raise NotFound("The network is gone already.", hint="guest network ls")
            if found is not None:
                refuse_used(found.doc, rooms.view.guests.values())
            await ctx.step("remove")
            # Of cards that were on it once.
            leases = [one for one in rooms.view.leases.values() if one.network == params.network]
            ops: list[Op] = [documents.leases.delete_op(lease.id) for lease in leases]
            if found is not None:
                ops.append(documents.networks.delete_op(params.network, expect=found.revision))
                ops.append(documents.networks.release_op(found.doc.name))
            if ops:
                await rooms.view.wait_for(await documents.store.commit(ops))
            # After the documents: a lost database brings back the whole network or nothing of it.
            for lease in leases:
                await rooms.pool.remove_copy("leases", lease.id)
            await rooms.pool.remove_copy("networks", params.network)
        try:
            await rooms.refresh_networks()
        except GuesthouseError as error:  # nobody was on it, so hardly anything can be left
            ctx.log(f"the house's network: {error}")


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
    """What can be said at once. :raise InvalidInput: it cannot be, or not yet."""
    check_network_name(wanted.name)
    if wanted.kind is NetworkKind.BRIDGED:
        raise InvalidInput(
            f"Network {wanted.name!r} cannot be bridged: this house cannot make such networks yet.",
            hint="Use the kind nat, and publish ports: guest publish.",
            field="kind",
        )


def check_change(before: Network, change: NetworkChange) -> None:
    """:raise InvalidInput: the network cannot be like that."""
    if change.name is not None:
        check_network_name(change.name)
    fields = msgspec.structs.asdict(change)
    named = {field: value for field, value in fields.items() if value is not None}
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
