"""Networks, leases, groups and sets as the store has them, for the house's network."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec

from guesthouse.errors import GuesthouseError, InvalidInput
from guesthouse.host.namespace.holder import Member
from guesthouse.host.process import boot_id, is_alive
from guesthouse.model.device import Nic
from guesthouse.model.firewall import Action, AddressSet, Rule, SecurityGroup
from guesthouse.model.guest import Guest
from guesthouse.model.ids import new_id
from guesthouse.model.network import Lease, Network, NetworkKind
from guesthouse.model.networking import BUILTIN
from guesthouse.network.house.backend import HouseNetwork
from guesthouse.network.house.seats import Seat
from guesthouse.operations.addresses import choose, lease_of
from guesthouse.store.contract import ABSENT
from guesthouse.store.documents import Documents
from guesthouse.store.view import View

log = logging.getLogger(__name__)

RemoveCopy = Callable[[str, str], Awaitable[None]]


async def _no_copy(kind: str, doc_id: str) -> None:
    """Where no copies are kept."""


class StoreRecords:
    """Keeps the contract of `network.house.seats.Records`. A card has one lease, on the network
    that it is on; it goes with its guest, or when the card comes to another network.

    :param remove_copy: (kind, id): the copy that recovery would bring back, see `storage.copies`.
    """

    def __init__(
        self, documents: Documents, view: View, remove_copy: RemoveCopy = _no_copy
    ) -> None:
        self._documents, self._view, self._remove_copy = documents, view, remove_copy
        self._one_at_a_time = asyncio.Lock()

    def networks(self) -> Sequence[Network]:
        return tuple(self._view.networks.values())

    def groups(self) -> Sequence[SecurityGroup]:
        """For one whose document cannot be read stands one that lets nothing new in: what it would
        have kept out is not known."""
        known = self._view.groups
        firewalls = [network.firewall for network in self._view.networks.values()]
        firewalls += [guest.spec.firewall for guest in self._view.guests.values()]
        named = dict.fromkeys(group for firewall in firewalls for group in firewall.groups)
        return (*known.values(), *(_shut(group) for group in named if group not in known))

    def sets(self) -> Sequence[AddressSet]:
        return tuple(self._view.sets.values())

    async def seat(self, guest: str, nic: Nic, index: int, *, hostname: str) -> Seat:
        """Raises as the contract says, and NotFound: there is no such guest."""
        found = (await self._documents.guests.require(guest)).doc
        network = self._view.networks.get(nic.network)
        if network is None:
            raise InvalidInput(
                f"Card {index} of guest {hostname} is on a network that is not there.",
                field=f"nics[{index}].network",
            )
        async with self._one_at_a_time:
            lease = await self._lease(found.id, nic, network)
        return _seat(found, nic, lease, network)

    def seats(self, guests: Iterable[Guest]) -> list[Seat]:
        """Of those cards of these guests that were attached before, each where it was then: a
        change that was interrupted is brought about by whoever made it.
        """
        return [
            _seat(guest, nic, lease, self._view.networks.get(lease.network))
            for guest in guests
            for nic in guest.spec.nics
            if nic.network != BUILTIN and (lease := lease_of(self._view, guest.id, nic.index))
        ]

    async def forget(self, guest: str) -> None:
        """The guest is deleted: others may have its addresses."""
        async with self._one_at_a_time:
            mine = [lease for lease in self._view.leases.values() if lease.guest == guest]
            if mine:
                ops = [self._documents.leases.delete_op(lease.id) for lease in mine]
                await self._view.wait_for(await self._documents.store.commit(ops))
                for lease in mine:
                    await self._remove_copy("leases", lease.id)

    async def forget_card(self, guest: str, index: int) -> None:
        """The card is gone, or is on another network: others may have its addresses."""
        async with self._one_at_a_time:
            lease = lease_of(self._view, guest, index)
            if lease is not None:
                op = self._documents.leases.delete_op(lease.id)
                await self._view.wait_for(await self._documents.store.commit([op]))
                await self._remove_copy("leases", lease.id)

    async def _lease(self, guest: str, nic: Nic, network: Network) -> Lease:
        """:raise Conflict: no address is left. :raise InvalidInput:"""
        before = lease_of(self._view, guest, nic.index)
        here = before if before is not None and before.network == network.id else None
        lease = choose(self._view, guest, nic, network, here)
        if lease == here:
            return lease
        gone = [self._documents.leases.delete_op(before.id)] if before and before != here else []
        if here is None:
            lease = msgspec.structs.replace(lease, id=new_id(), since=time.time())
            ops = [self._documents.leases.put_op(lease, expect=ABSENT)]
        else:
            ops = [self._documents.leases.put_op(lease)]
        # The next one who asks must see it, or it would be given the same addresses.
        await self._view.wait_for(await self._documents.store.commit([*ops, *gone]))
        if gone and before is not None:
            await self._remove_copy("leases", before.id)
        return lease


def _seat(guest: Guest, nic: Nic, lease: Lease, network: Network | None) -> Seat:
    return Seat(
        guest=guest.id,
        index=nic.index,
        name=guest.name,
        number=guest.number,
        mac=nic.mac,
        network=lease.network,
        addresses=tuple(text for text in (lease.address4, lease.address6) if text),
        firewall=guest.spec.firewall,
        any_address=network is not None and network.kind is NetworkKind.BRIDGED,
        ports=nic.ports,
        impairment=nic.impairment,
    )


def _shut(group: str) -> SecurityGroup:
    nobody = Rule(name="unreadable", action=Action.DROP)
    return SecurityGroup(id=group, name=group.lower(), rules=(nobody,), created_at=0.0)


async def open_network(network: HouseNetwork, records: StoreRecords, view: View) -> None:
    """Find what stands of the house's network; where it has none, nothing is begun.

    A host that does not let us have one says why to whoever starts a guest on it.
    """
    living = _living(view)
    seats = records.seats(guest for guest, _process in living)
    if not seats and not view.networks:
        return
    try:
        await network.open(seats, (process for _guest, process in living))
    except GuesthouseError as error:
        log.warning("the house's network: %s", error)


async def recover_networks(network: HouseNetwork, records: StoreRecords, view: View) -> None:
    """Documents came back: guests that run have their cards again, and their network its rules."""
    if not network.is_open:
        await open_network(network, records, view)
        return
    try:
        await network.refresh()
    except GuesthouseError as error:
        log.warning("the house's network: %s", error)


def members(view: View) -> tuple[Member, ...]:
    """Processes of guests that live, which lead back into a namespace whose holder was killed."""
    return tuple(process for _guest, process in _living(view))


def _living(view: View) -> list[tuple[Guest, Member]]:
    running = [(guest, guest.launch) for guest in view.guests.values() if guest.launch]
    return [
        (guest, Member(launch.pid, launch.pid_start))
        for guest, launch in running
        if launch.boot_id == boot_id() and is_alive(launch.pid, launch.pid_start)
    ]


async def leave_networks(network: HouseNetwork, records: StoreRecords, guest: str) -> None:
    """Nothing of the guest's cards is kept, nor are its addresses."""
    try:
        await network.leave(guest)
    except GuesthouseError as error:
        log.warning("the house's network: %s", error)
    await records.forget(guest)


async def leave_card(network: HouseNetwork, records: StoreRecords, guest: str, index: int) -> None:
    """As `leave_networks`, for one card."""
    try:
        await network.detach(guest, index)
    except GuesthouseError as error:
        log.warning("the house's network: %s", error)
    await records.forget_card(guest, index)
