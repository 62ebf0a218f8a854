"""Cards of the house's network impaired and captured, for real: as root and as an ordinary user."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from guesthouse.errors import HostLacks, NotFound
from guesthouse.model.impairment import Impairment, NicImpairment
from guesthouse.network.capture import Packet
from guesthouse.network.house.impairing import IMPAIRMENTS
from guesthouse.network.house.sniffing import Sniffer, sniff
from guesthouse.network.impairment import Shaping, table_name

from ..house_network import TestGuest, TestHouse, test_house
from .namespace_house import need_ids, need_tun

pytestmark = pytest.mark.rootless

DEAF = NicImpairment(incoming=Impairment(loss=1.0))
DUMB = NicImpairment(outgoing=Impairment(loss=1.0))
SLOW = NicImpairment(incoming=Impairment(rate=8_000_000))
FAR = NicImpairment(incoming=Impairment(latency=0.08))


@pytest.fixture(autouse=True)
def _needs() -> None:
    need_ids()
    need_tun()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[TestHouse]:
    async with test_house(tmp_path) as made:
        yield made


async def impair(house: TestHouse, guest: TestGuest, wanted: NicImpairment) -> None:
    seat = msgspec.structs.replace(guest.seat, impairment=wanted)
    await house.network.update(seat)
    house.records.seats[guest.id, 0] = seat


async def there(house: TestHouse, guest: TestGuest) -> tuple[bool, bool]:
    """Whether the kernel has a table with lots for the card, and a queue with a rate."""
    tables = (await house.namespace.run(["nft", "list", "tables"])).text
    queues = (await house.namespace.run(["tc", "qdisc", "show"])).text
    tap = guest.seat.tap
    return table_name(tap) in tables, "rate 8Mbit" in queues


async def answered(one: TestGuest, whom: str, count: int = 24) -> int:
    """How many of so many pings, each tried for itself."""
    tried = [await one.ping(whom, wait=0.3) for _ in range(count)]
    return sum(tried)


async def test_loss_seen_from_inside(house: TestHouse) -> None:
    web, db = await house.boot("web"), await house.boot("db")
    assert await web.ping(db.address)
    for wanted in (DEAF, DUMB):
        await impair(house, web, wanted)
        assert await there(house, web) == (True, False)
        assert not await web.ping(db.address, wait=1)
        assert not await web.ping(db.address6, wait=1)
        assert not await web.ping("10.201.1.1", wait=1), "nor does the house answer"
        assert await db.ping("10.201.1.1"), "others do not suffer"
    await impair(house, web, NicImpairment(incoming=Impairment(loss=0.5)))
    assert 2 <= await answered(web, db.address) <= 22
    await impair(house, web, NicImpairment())
    assert await there(house, web) == (False, False)
    assert await answered(web, db.address) == 24


async def test_it_comes_with_the_card_and_goes_with_it(house: TestHouse) -> None:
    web, db = await house.boot("web"), await house.boot("db")
    both = NicImpairment(incoming=Impairment(loss=1.0, rate=8_000_000))
    await impair(house, web, both)
    assert await there(house, web) == (True, True)
    await house.network.rest(web.id, 0)
    assert await there(house, web) == (True, True), "the next incarnation has it"
    await house.network.detach(web.id, 0)
    assert await there(house, web) == (False, False)
    web.crash()
    await house.network.detach(db.id, 0)
    record = json.loads((house.folder / IMPAIRMENTS).read_text())
    assert record["done"] == {}


async def test_a_card_is_attached_impaired(house: TestHouse) -> None:
    web = house.guest("web")
    seat = house.records.seat

    async def impaired(*args: object, **rest: object) -> object:
        made = await seat(*args, **rest)  # type: ignore[arg-type]  # as it was called
        return msgspec.structs.replace(made, impairment=DEAF)

    house.records.seat = impaired  # type: ignore[method-assign,assignment]  # a test's shorthand
    await web.attach()
    assert await there(house, web) == (True, False)


async def test_another_daemon_finds_it_and_does_nothing(house: TestHouse) -> None:
    web, db = await house.boot("web"), await house.boot("db")
    await impair(house, web, DEAF)
    await house.daemon_dies()
    ran: list[str] = []
    run = type(house.namespace).run

    async def noting(self: object, argv: list[str], **rest: object) -> object:
        ran.append(" ".join(argv))
        return await run(self, argv, **rest)  # type: ignore[arg-type]  # as it was called

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(house.namespace), "run", noting)
        await house.another_daemon()
    assert [line for line in ran if line.startswith("tc")] == ["tc -j qdisc show"], "only looked at"
    assert await there(house, web) == (True, False)
    assert not await web.ping(db.address, wait=1)


async def test_a_daemon_that_knows_nothing_makes_it_right(house: TestHouse) -> None:
    web, db = await house.boot("web"), await house.boot("db")
    await impair(house, web, DEAF)
    await house.daemon_dies()
    (house.folder / IMPAIRMENTS).unlink()
    house.records.seats[web.id, 0] = msgspec.structs.replace(web.seat, impairment=NicImpairment())
    await house.another_daemon()
    assert await there(house, web) == (False, False)
    assert await web.ping(db.address)


async def test_one_that_died_in_the_middle_is_made_right(house: TestHouse) -> None:
    web, db = await house.boot("web"), await house.boot("db")
    await impair(house, web, DEAF)
    record = json.loads((house.folder / IMPAIRMENTS).read_text())
    assert record["done"][web.seat.tap]["incoming"]["loss"] == 1.0
    record["done"][web.seat.tap] = None  # as while it is being changed
    await house.daemon_dies()
    (house.folder / IMPAIRMENTS).write_text(json.dumps(record))
    house.records.seats[web.id, 0] = msgspec.structs.replace(web.seat, impairment=NicImpairment())
    await house.another_daemon()
    assert await web.ping(db.address)


async def test_what_is_lost_is_brought_back(house: TestHouse) -> None:
    web = await house.boot("web")
    both = NicImpairment(incoming=Impairment(loss=1.0, rate=8_000_000))
    await impair(house, web, both)
    await house.namespace.run(["nft", "flush", "ruleset"])
    async with asyncio.timeout(30):
        while await there(house, web) != (True, True):  # noqa: ASYNC110  # the kernel is asked
            await asyncio.sleep(0.1)
    await house.namespace.run(["tc", "qdisc", "del", "dev", web.seat.tap, "root"])
    assert await there(house, web) == (True, False)
    await house.daemon_dies()
    await house.another_daemon()
    assert await there(house, web) == (True, True)


async def test_what_the_kernel_lacks_is_refused_and_what_was_stays(
    house: TestHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = await house.boot("web")
    await impair(house, web, DEAF)

    async def poor(_run: object) -> Shaping:
        return Shaping(numgen=True)

    monkeypatch.setattr("guesthouse.network.house.impairing.probe", poor)
    impairing = house.network.impairing
    impairing._kernel = Shaping(numgen=True)
    with pytest.raises(HostLacks) as raised:
        await impairing.check(FAR)
    assert raised.value.detail["capability"] == "netem"
    with pytest.raises(HostLacks, match="CONFIG_NET_SCH_NETEM"):
        await impair(house, web, FAR)
    assert house.network._seats[web.id, 0].impairment == DEAF
    assert await there(house, web) == (True, False)
    names = {one.name for one in house.network.kernel_capabilities if not one.available}
    assert {"netem", "tbf", "ifb"} <= names


async def test_a_start_that_cannot_have_it_says_how_to_do_without(
    house: TestHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def poor(_run: object) -> Shaping:
        return Shaping()

    await house.boot("db")
    monkeypatch.setattr("guesthouse.network.house.impairing.probe", poor)
    house.network.impairing._kernel = Shaping()
    web, seat = house.guest("web"), house.records.seat

    async def impaired(*args: object, **rest: object) -> object:
        made = await seat(*args, **rest)  # type: ignore[arg-type]  # as it was called
        return msgspec.structs.replace(made, impairment=FAR)

    house.records.seat = impaired  # type: ignore[method-assign,assignment]  # a test's shorthand
    with pytest.raises(HostLacks, match="Card 0 of 'web' cannot be impaired") as raised:
        await web.attach()
    assert raised.value.hint == "Let it be as it is: guest nic set web 0 clear"
    assert (web.id, 0) not in house.network._seats


async def test_a_module_loaded_meanwhile_counts(house: TestHouse) -> None:
    await house.boot("web")
    impairing = house.network.impairing
    impairing._kernel = Shaping()
    await impairing.check(DEAF)  # asks again before it refuses
    assert impairing._kernel is not None and impairing._kernel.numgen


async def test_latency_seen_from_inside(house: TestHouse) -> None:
    web, db = await house.boot("web"), await house.boot("db")
    kernel = house.network.impairing._kernel
    assert kernel is not None
    if not kernel.netem:
        pytest.skip("this kernel lacks netem (CONFIG_NET_SCH_NETEM)")
    await impair(house, web, FAR)
    clock = asyncio.get_running_loop().time
    assert await web.ping(db.address)
    started = clock()
    assert await web.ping(db.address, count=10)
    assert clock() - started >= 0.8


def echoes(packets: list[Packet]) -> set[tuple[bool, int]]:
    """Echo requests (8) and answers (0) of IPv4 among them, with whether the card gets them."""
    return {
        (one.inbound, one.data[34])
        for one in packets
        if one.data[12:14] == b"\x08\x00" and one.data[23] == 1
    }


async def taken(sniffer: Sniffer, seconds: float = 1.0) -> list[Packet]:
    found: list[Packet] = []
    try:
        async with asyncio.timeout(seconds):
            while batch := await sniffer.some():
                found += batch
    except TimeoutError:
        pass
    return found


async def test_a_capture_has_both_directions(house: TestHouse) -> None:
    web, db = await house.boot("web"), await house.boot("db")
    sniffer = await sniff(house.namespace, web.seat.tap, snaplen=64)
    assert await web.ping(db.address)
    found = await taken(sniffer)
    assert echoes(found) == {(False, 8), (True, 0)}
    assert all(len(one.data) <= 64 and one.length >= len(one.data) for one in found)
    times = [one.when for one in found]
    assert times == sorted(times) and abs(times[0] / 1e9 - time.time()) < 600
    counts = sniffer.counts()
    assert counts.received >= len(found) and not counts.lost
    # What is lost on its way to the guest it never gets; what it sends it has sent.
    await impair(house, web, NicImpairment(incoming=Impairment(loss=1.0)))
    assert not await web.ping(db.address, wait=1)
    assert echoes(await taken(sniffer)) == {(False, 8)}
    sniffer.close()
    assert list(await sniffer.some()) == []


async def test_a_slow_reader_loses_packets_and_is_told_how_many(house: TestHouse) -> None:
    web, db = await house.boot("web"), await house.boot("db")
    fd = await house.namespace.sniff(web.seat.tap, room=4096)
    sniffer = Sniffer(socket.socket(fileno=fd), snaplen=65536, room=4096)
    assert sniffer._waiting == []
    for _ in range(20):
        assert await web.ping(db.address, count=20)
    first = await taken(sniffer)
    counts = sniffer.counts()
    assert counts.lost and counts.received == len(first) + counts.lost
    assert await web.ping(db.address)
    assert echoes(await taken(sniffer)), "afterwards it goes on"
    sniffer.close()


async def test_the_end_of_the_card_is_the_end(house: TestHouse) -> None:
    web = await house.boot("web")
    sniffer = await sniff(house.namespace, web.seat.tap, snaplen=65536)
    ending = asyncio.create_task(taken(sniffer, 30))
    await asyncio.sleep(0)
    await house.network.detach(web.id, 0)
    web.crash()
    await asyncio.wait_for(ending, 10)
    assert list(await sniffer.some()) == []
    with pytest.raises(NotFound, match="no interface"):
        await sniff(house.namespace, "t99-9", snaplen=64)


async def test_tags_of_vlans_are_put_back(house: TestHouse) -> None:
    web = await house.boot("web")
    sniffer = await sniff(house.namespace, web.seat.tap, snaplen=65536)
    mac = bytes.fromhex(web.nic.mac.replace(":", ""))
    tagged = b"\xff" * 6 + mac + struct.pack("!HHH", 0x8100, 7, 0x0806) + bytes(46)
    # From inside the guest, as its own driver would: behind the header that a tap wants.
    os.write(web._fds[1], bytes(10) + tagged)
    found = [one for one in await taken(sniffer) if one.data[12:14] == b"\x81\x00"]
    assert [one.data for one in found] == [tagged] and found[0].length == len(tagged)
    sniffer.close()
