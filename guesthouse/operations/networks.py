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
from guesthouse.model.firewall import AddressSet, SecurityGroup
from guesthouse.model.guest import Guest
from guesthouse.model.ids import new_id
from guesthouse.model.network import Lease, Network, NetworkKind, free_address4, free_address6
from guesthouse.network.house.backend import HouseNetwork
from guesthouse.network.house.seats import Seat
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
        return tuple(self._view.groups.values())

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
            lease = await self._lease(found.id, nic, index, network)
        return _seat(found, nic, index, lease, network)

    def seats(self, guests: Iterable[Guest]) -> list[Seat]:
        """Of those cards of these guests that were attached before."""
        return [
            _seat(guest, nic, index, lease, self._view.networks.get(lease.network))
            for guest in guests
            for index, nic in enumerate(guest.spec.nics)
            if (lease := self._known(guest.id, index)) is not None and lease.network == nic.network
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

    def _known(self, guest: str, index: int) -> Lease | None:
        every = self._view.leases.values()
        return next((one for one in every if (one.guest, one.nic) == (guest, index)), None)

    async def _lease(self, guest: str, nic: Nic, index: int, network: Network) -> Lease:
        """:raise Conflict: no address is left."""
        before = self._known(guest, index)
        if before is not None and (before.network, before.mac) == (network.id, nic.mac):
            return before
        if before is not None and before.network == network.id:
            lease = msgspec.structs.replace(before, mac=nic.mac)
            op = self._documents.leases.put_op(lease)
            await self._view.wait_for(await self._documents.store.commit([op]))
            return lease
        others = [one for one in self._view.leases.values() if one.network == network.id]
        lease = Lease(
            id=new_id(),
            network=network.id,
            guest=guest,
            nic=index,
            mac=nic.mac,
            address4=_free4(network, others),
            address6=_free6(network, others),
            since=time.time(),
        )
        ops = [self._documents.leases.put_op(lease, expect=ABSENT)]
        gone = [self._documents.leases.delete_op(before.id)] if before is not None else []
        # The next one who asks must see it, or it would be given the same addresses.
        await self._view.wait_for(await self._documents.store.commit([*ops, *gone]))
        if before is not None:
            await self._remove_copy("leases", before.id)
        return lease


def _free4(network: Network, others: Sequence[Lease]) -> str:
    taken = {lease.address4 for lease in others if lease.address4} | {network.gateway4}
    return free_address4(network, taken) if network.subnet4 else ""


def _free6(network: Network, others: Sequence[Lease]) -> str:
    taken = {lease.address6 for lease in others if lease.address6}
    return free_address6(network, taken) if network.subnet6 else ""


def _seat(guest: Guest, nic: Nic, index: int, lease: Lease, network: Network | None) -> Seat:
    return Seat(
        guest=guest.id,
        index=index,
        name=guest.name,
        number=guest.number,
        mac=nic.mac,
        network=lease.network,
        addresses=tuple(text for text in (lease.address4, lease.address6) if text),
        any_address=network is not None and network.kind is NetworkKind.BRIDGED,
        ports=nic.ports,
    )


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
