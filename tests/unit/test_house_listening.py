"""Rules that another hand changes come back; packets that rules log are written down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from guesthouse.model.firewall import Action, Firewall, Policy, Rule, SecurityGroup, Traffic
from guesthouse.model.firewalling import LoggedPacket
from guesthouse.network.rules.text import NAMES

from ..firewall_house import ident
from ..house_network import TestHouse, test_house
from .namespace_house import need_ids, need_tun

pytestmark = pytest.mark.rootless
CLOSED = Policy(incoming=Action.DROP)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[TestHouse]:
    need_ids()
    need_tun()
    async with test_house(tmp_path) as made:
        yield made


async def listed(house: TestHouse) -> str:
    return (await house.namespace.run(["nft", "list", "ruleset"])).text


async def heals(house: TestHouse, line: str) -> None:
    """Until the kernel has it again, though nobody asked."""
    async with asyncio.timeout(30):
        while line not in await listed(house):  # noqa: ASYNC110  # the kernel is asked
            await asyncio.sleep(0.1)


def packets(house: TestHouse) -> list[LoggedPacket]:
    lines = house.log.read_bytes().splitlines() if house.log.exists() else []
    return [msgspec.json.decode(line, type=LoggedPacket) for line in lines]


async def more_packets(house: TestHouse, *, than: int) -> None:
    async with asyncio.timeout(30):
        while len(packets(house)) <= than:  # noqa: ASYNC110  # the kernel is asked
            await asyncio.sleep(0.1)


async def test_what_another_hand_does_to_our_rules_does_not_last(house: TestHouse) -> None:
    house.records.firewalls["db"] = Firewall(
        rules=(Rule(name="ssh", protocol=Traffic.TCP, ports=("22",)),), policy=CLOSED
    )
    web, db = await house.boot("web"), await house.boot("db")
    key = f"guest/{db.id}/ssh"
    assert key in await listed(house)
    assert not await web.ping(db.address, wait=1)
    await house.namespace.run(["nft", "flush", "ruleset"])
    await heals(house, key)
    assert not await web.ping(db.address, wait=1)
    before = (await house.network.counters())[f"guest/{db.id}/policy-in"]
    there = await listed(house)
    table = next(name for name in NAMES if f"table inet {name} " in there)
    await house.namespace.run(["nft", "flush", "chain", "inet", table, "received"])
    await heals(house, "ether daddr vmap @receivers")
    assert not await web.ping(db.address, wait=1)
    after = (await house.network.counters())[f"guest/{db.id}/policy-in"]
    assert after.packets > before.packets, "counters went on"


async def test_our_own_changes_and_those_of_others_wake_nobody(
    house: TestHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[str] = []
    monkeypatch.setattr(house.network._listening, "_changed", lambda: woken.append("woken"))
    await house.boot("web")
    db = await house.boot("db")
    await house.network.reload({db.id: Firewall(policy=CLOSED)})
    await house.namespace.run(["nft", "add", "table", "inet", "somebody_else"])
    await asyncio.sleep(1)
    assert not woken
    await house.namespace.run(["nft", "flush", "ruleset"])
    await asyncio.sleep(1)
    assert woken == ["woken"]


async def test_packets_that_a_rule_logs_are_written_down(house: TestHouse) -> None:
    web, db = await house.boot("web"), await house.boot("db")
    await db.echo(80)
    assert await web.say(db.address, 80) == "hello"
    rule = Rule(name="no-web", action=Action.DROP, protocol=Traffic.TCP, ports=("80",), log=True)
    await house.network.reload({db.id: Firewall(rules=(rule,))})
    assert await web.say(db.address, 80, wait=1) == ""
    await more_packets(house, than=0)
    first = packets(house)[0]
    assert (first.rule, first.action) == (f"guest/{db.id}/no-web", Action.DROP)
    assert (first.source, first.destination) == (web.address, db.address)
    assert (first.protocol, first.port, first.sender, first.receiver) == ("tcp", 80, web.id, db.id)
    assert first.source_port and first.length >= 40
    # The next daemon listens too.
    seen = len(packets(house))
    house.records.firewalls["db"] = Firewall(rules=(rule,))
    house.records.seats[db.id, 0] = msgspec.structs.replace(
        db.seat, firewall=house.records.firewalls["db"]
    )
    await house.daemon_dies()
    await house.another_daemon()
    assert await web.say(db.address, 80, wait=1) == ""
    await more_packets(house, than=seen)


async def test_a_changed_firewall_holds_at_once_or_not_at_all(house: TestHouse) -> None:
    web, db = await house.boot("web"), await house.boot("db")
    assert await web.ping(db.address)
    await house.network.reload({db.id: Firewall(policy=CLOSED)})
    assert not await web.ping(db.address, wait=1)
    nowhere = Firewall(groups=(ident("group", "nowhere"),))
    with pytest.raises(Exception, match="not there"):
        await house.network.reload({db.id: nowhere})
    assert not await web.ping(db.address, wait=1)
    assert house.network.holds(db.id) and not house.network.holds("nobody")
    group = SecurityGroup(
        id=nowhere.groups[0], name="friends", rules=(Rule(name="all"),), created_at=0.0
    )
    house.records.own_groups.append(group)
    await house.network.reload(
        {db.id: Firewall(groups=nowhere.groups, policy=CLOSED), web.id: Firewall()}
    )
    assert await web.ping(db.address)
