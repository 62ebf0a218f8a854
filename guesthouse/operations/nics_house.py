"""Network cards of guests: the house's room for them. It keeps `api.facade.Nics`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from guesthouse.errors import InvalidInput
from guesthouse.jobs.runner import JobRunner
from guesthouse.model.device import Nic, check_mac, free_index
from guesthouse.model.document import Noun
from guesthouse.model.guest import Guest
from guesthouse.model.job import Job
from guesthouse.model.network import NetworkKind
from guesthouse.model.networking import BUILTIN
from guesthouse.model.nics import NicChange, NicRequest, NicView, changed_nic, find_nic
from guesthouse.operations.addresses import check_cards, lease_of
from guesthouse.operations.bridging import learned
from guesthouse.operations.joining import networks_of
from guesthouse.operations.nics import (
    AddNicParams,
    RemoveNicParams,
    SetNicParams,
    check_change,
)
from guesthouse.operations.rooms import Rooms
from guesthouse.store.documents import GUESTS


@dataclass(kw_only=True)
class NicsHouse:
    rooms: Rooms
    jobs: JobRunner

    def list(self, ref: str) -> list[NicView]:
        guest, view = self.rooms.view.guest(ref), self.rooms.view
        found = []
        for nic in guest.spec.nics:
            network = view.networks.get(nic.network)
            lease = lease_of(view, guest.id, nic.index)
            if network is not None and network.kind is NetworkKind.BRIDGED:
                known = learned(self.rooms, network)
                lease = next((one for one in known if lease and one.id == lease.id), None)
            found.append(NicView.of(guest, nic, network, lease))
        return found

    async def add(self, ref: str, wanted: NicRequest, requester: str) -> Job:
        guest = self.rooms.view.guest(ref)
        (wanted,) = requested(self.rooms, (wanted,))
        nic = _card(wanted, free_index(guest.spec.nics))
        check_cards(self.rooms.view, guest.id, [*guest.spec.nics, nic])
        params = AddNicParams(guest=guest.id, **msgspec.structs.asdict(wanted))
        return await self._submit("nic.add", params, guest, requester)

    async def change(self, ref: str, which: str, change: NicChange, requester: str) -> Job:
        guest = self.rooms.view.guest(ref)
        nic = find_nic(guest, which)
        network = change.network
        if network is not None:
            (network,) = networks_of(self.rooms, (network,))
        mac = change.mac if change.mac is None else check_mac(change.mac)
        change = msgspec.structs.replace(change, network=network, mac=mac)
        wanted = changed_nic(nic, change, network)
        check_cards(self.rooms.view, guest.id, guest.spec.with_nic(wanted).nics)
        check_change(self.rooms, guest, nic, wanted)
        params = SetNicParams(guest=guest.id, nic=nic.index, change=change)
        return await self._submit("nic.set", params, guest, requester)

    async def remove(self, ref: str, which: str, requester: str) -> Job:
        guest = self.rooms.view.guest(ref)
        params = RemoveNicParams(guest=guest.id, nic=find_nic(guest, which).index)
        return await self._submit("nic.remove", params, guest, requester)

    async def _submit(self, kind: str, params: Noun, guest: Guest, requester: str) -> Job:
        return await self.jobs.submit(
            kind,
            params,
            target=GUESTS.key(guest.id),
            target_name=guest.name,
            requester=requester,
        )


def requested(rooms: Rooms, wishes: Sequence[NicRequest]) -> tuple[NicRequest, ...]:
    """With ids of networks, and addresses as they are stored. Raises as `networks_of`.

    :raise InvalidInput: an address cannot be.
    """
    ids = networks_of(rooms, [wish.network for wish in wishes])
    return tuple(
        msgspec.structs.replace(wish, network=network, mac=check_mac(wish.mac) if wish.mac else "")
        for wish, network in zip(wishes, ids, strict=True)
    )


def requested_at_launch(
    rooms: Rooms, names: Sequence[str], wishes: Sequence[NicRequest]
) -> tuple[NicRequest, ...]:
    """The cards of a guest that is to be made. Raises as `requested`.

    :raise Conflict: an address is another card's.
    """
    if names and wishes:
        raise InvalidInput(
            "A guest is launched with networks or with nics, not with both.", field="nics"
        )
    wishes = requested(rooms, wishes)
    cards = [_card(wish, index) for index, wish in enumerate(wishes)]
    check_cards(rooms.view, "", cards)
    return wishes


def _card(wish: NicRequest, index: int) -> Nic:
    return Nic(
        index=index,
        mac=wish.mac,
        network=wish.network or BUILTIN,
        address4=wish.address4,
        address6=wish.address6,
        link=wish.link,
    )
