"""Cards get addresses from the store, keep them, and give them back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from guesthouse.errors import Conflict, InvalidInput, NotFound
from guesthouse.model.guest import Guest
from guesthouse.model.network import DhcpRange
from guesthouse.network.house.seats import Records
from guesthouse.operations.networks import StoreRecords
from guesthouse.store.documents import Documents
from guesthouse.store.sqlite import SqliteStore
from guesthouse.store.view import View

from ..contract.driver_house import make_guest, nic
from ..house_network import network

LAN, DMZ = network(1, "lan"), network(2, "dmz")
TINY = network(3, "tiny", dhcp=DhcpRange(first="10.201.3.5", last="10.201.3.6"))


class Office:
    def __init__(self, documents: Documents, view: View) -> None:
        self.documents, self.view = documents, view
        self.records = StoreRecords(documents, view)
        self.contract: Records = self.records

    async def guest(self, name: str, number: int, *homes: str) -> Guest:
        cards = tuple(nic(network=home) for home in homes)
        made = make_guest(name=name, number=number, nics=cards)
        put = self.documents.guests.put_op(made)
        await self.view.wait_for(await self.documents.store.commit([put]))
        return made

    async def seat(self, guest: Guest, index: int = 0):  # type: ignore[no-untyped-def]  # a Seat
        card = guest.spec.nics[index]
        return await self.contract.seat(guest.id, card, index, hostname=guest.name)


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    store = await SqliteStore.open(tmp_path / "house.db")
    view = await View.open(store)
    documents = Documents(store)
    puts = [documents.networks.put_op(one) for one in (LAN, DMZ, TINY)]
    await view.wait_for(await store.commit(puts))
    yield Office(documents, view)
    await view.close()
    await store.close()


async def test_a_card_keeps_its_addresses(office: Office) -> None:
    web = await office.guest("web", 7, LAN.id)
    seat = await office.seat(web)
    assert (seat.tap, seat.name, seat.network) == ("t7-0", "web", LAN.id)
    assert seat.addresses == ("10.201.1.25", "fd42:201:1::1000")
    assert await office.seat(web) == seat
    other = StoreRecords(office.documents, office.view)
    assert other.seats([web]) == [seat], "after the daemon was started again"


async def test_many_at_once_get_different_ones(office: Office) -> None:
    guests = [await office.guest(f"g{number}", number, LAN.id, DMZ.id) for number in range(1, 9)]
    seats = await asyncio.gather(*(office.seat(one, index) for one in guests for index in (0, 1)))
    addresses = [address for seat in seats for address in seat.addresses]
    assert len(addresses) == len(set(addresses)) == 32


async def test_addresses_go_with_their_guest(office: Office) -> None:
    one, two, three = [await office.guest(f"g{n}", n, TINY.id) for n in (1, 2, 3)]
    first = await office.seat(one)
    await office.seat(two)
    with pytest.raises(Conflict, match="no address left"):
        await office.seat(three)
    await office.records.forget(one.id)
    await office.records.forget(one.id)
    assert (await office.seat(three)).addresses == first.addresses


async def test_a_card_that_moves_gets_another_lease(office: Office) -> None:
    web = await office.guest("web", 7, LAN.id)
    await office.seat(web)
    card = msgspec.structs.replace(web.spec.nics[0], network=DMZ.id)
    seat = await office.contract.seat(web.id, card, 0, hostname="web")
    assert seat.network == DMZ.id and seat.addresses[0].startswith("10.201.2.")
    assert [lease.network for lease in office.view.leases.values()] == [DMZ.id]
    again = msgspec.structs.replace(card, mac="52:67:68:aa:aa:aa")
    assert (
        await office.contract.seat(web.id, again, 0, hostname="web")
    ).addresses == seat.addresses


async def test_what_is_not_there(office: Office) -> None:
    web = await office.guest("web", 7, "builtin")
    with pytest.raises(InvalidInput, match="not there"):
        await office.seat(web)
    with pytest.raises(NotFound):
        await office.contract.seat(make_guest().id, nic(network=LAN.id), 0, hostname="x")
    assert office.view.network("lan") == LAN


async def test_fixed_addresses_are_had_and_given_up(office: Office) -> None:
    web = await office.guest("web", 7, LAN.id)
    free = await office.seat(web)
    card = web.spec.nics[0]

    async def now(**fields: str) -> tuple[str, ...]:
        wanted = msgspec.structs.replace(card, **fields)
        return (await office.contract.seat(web.id, wanted, 0, hostname="web")).addresses

    assert await now(address4="10.201.1.9") == ("10.201.1.9", free.addresses[1])
    [lease] = office.view.leases.values()
    assert lease.fixed and lease.mac == card.mac
    assert await now(address4="10.201.1.9", address6="fd42:201:1::9") == (
        "10.201.1.9",
        "fd42:201:1::9",
    )
    assert await now() == free.addresses, "the lowest of the range again"
    with pytest.raises(InvalidInput, match="not an address for a guest"):
        await now(address4="10.201.2.9")
    [lease] = office.view.leases.values()
    assert not lease.fixed


async def test_what_somebody_chose_is_nobody_else_s(office: Office) -> None:
    """Also before its guest was started."""
    one = await office.guest("one", 1, TINY.id)
    fixed = msgspec.structs.replace(one.spec.nics[0], address4="10.201.3.5")
    put = office.documents.guests.put_op(
        msgspec.structs.replace(one, spec=one.spec.with_nic(fixed))
    )
    await office.view.wait_for(await office.documents.store.commit([put]))
    two = await office.guest("two", 2, TINY.id)
    assert (await office.seat(two)).addresses[0] == "10.201.3.6"
    three = await office.guest("three", 3, TINY.id)
    wanted = msgspec.structs.replace(three.spec.nics[0], address4="10.201.3.5")
    with pytest.raises(Conflict, match="card 0 of guest 'one'"):
        await office.contract.seat(three.id, wanted, 0, hostname="three")


async def test_a_card_that_goes_leaves_the_others(office: Office) -> None:
    web = await office.guest("web", 7, LAN.id, LAN.id, DMZ.id)
    seats = [await office.seat(web, index) for index in range(3)]
    await office.records.forget_card(web.id, 1)
    await office.records.forget_card(web.id, 1)
    left = msgspec.structs.replace(web, spec=web.spec.without_nic(1))
    assert office.records.seats([left]) == [seats[0], seats[2]]
    assert seats[2].tap == "t7-2"


async def test_a_move_that_was_interrupted_keeps_the_card_where_it_is(office: Office) -> None:
    """Or its tap would be taken away under the guest."""
    web = await office.guest("web", 7, LAN.id)
    seat = await office.seat(web)
    moved = msgspec.structs.replace(web.spec.nics[0], network=DMZ.id)
    document = msgspec.structs.replace(web, spec=web.spec.with_nic(moved))
    assert office.records.seats([document]) == [seat]
