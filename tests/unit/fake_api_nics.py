"""Network cards in the fake API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from guesthouse.errors import NotFound
from guesthouse.model.device import Nic, free_index, free_plug
from guesthouse.model.guest import Guest
from guesthouse.model.ids import new_id
from guesthouse.model.network import Lease
from guesthouse.model.networking import BUILTIN
from guesthouse.model.nics import NicChange, NicRequest, NicView, changed_nic, find_nic

from .fake_traffic import capture, impaired

if TYPE_CHECKING:
    from .fake_api import _Handler
    from .fake_house import FakeHouse


def route_nics(handler: _Handler, parts: list[str], query: Mapping[str, Any], body: Any) -> bool:
    """Whether it was about cards, and answered."""
    if parts[:1] != ["guests"] or parts[2:3] != ["nics"]:
        return False
    house, guest = handler.house, handler.house.guest(parts[1])
    match [handler.command, *parts[3:]]:
        case ["GET"]:
            handler._json([_view(house, guest, nic) for nic in guest.spec.nics])
        case ["POST"]:
            wanted = msgspec.convert(body, NicRequest)
            nic = _new(house, guest, wanted)
            _write(house, guest, nic)
            house.results["nic.add"] = {"result": {"index": nic.index, "mac": nic.mac}}
            handler._job("nic.add", guest)
        case ["PATCH", which]:
            change = msgspec.convert(body, NicChange)
            network = None if change.network is None else _network(house, change.network)
            _write(house, guest, changed_nic(find_nic(guest, which), change, network))
            handler._job("nic.set", guest)
        case ["DELETE", which]:
            spec = guest.spec.without_nic(find_nic(guest, which).index)
            house.guests[guest.id] = msgspec.structs.replace(guest, spec=spec)
            handler._job("nic.remove", guest)
        case ["PUT", which, "impairment"]:
            _write(house, guest, impaired(find_nic(guest, which), body))
            handler._job("nic.impair", guest)
        case ["GET", which, "capture"]:
            find_nic(guest, which)
            handler._streamed("application/octet-stream")
            capture(house, handler._chunk, bounded="packets" in query)
        case _:
            raise NotFound(f"There is nothing at {handler.path}.")
    return True


def _new(house: FakeHouse, guest: Guest, wanted: NicRequest) -> Nic:
    return Nic(
        index=free_index(guest.spec.nics),
        plug=free_plug(guest.spec.nics),
        mac=wanted.mac or "52:67:68:00:00:99",
        network=_network(house, wanted.network),
        address4=wanted.address4,
        address6=wanted.address6,
        link=wanted.link,
    )


def _write(house: FakeHouse, guest: Guest, nic: Nic) -> None:
    house.guests[guest.id] = msgspec.structs.replace(guest, spec=guest.spec.with_nic(nic))


def _network(house: FakeHouse, ref: str) -> str:
    return ref if ref == BUILTIN else house.network(ref).id


def _view(house: FakeHouse, guest: Guest, nic: Nic) -> NicView:
    """Only a guest's first card has an address that nobody chose."""
    if nic.network not in house.networks:
        return NicView.of(guest, nic, None, None)
    network = house.network(nic.network)
    member = next(m for m in network.members if (m.guest, m.nic) == (guest.name, nic.index))
    lease = Lease(
        id=new_id(),
        network=nic.network,
        guest=guest.id,
        nic=nic.index,
        mac=nic.mac,
        address4=member.address4,
        since=0.0,
    )
    return NicView.of(guest, nic, network, lease)
