"""Routed networks, and those that the host is connected to: packets go as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from guesthouse.model.network import NetworkKind
from guesthouse.network.house.direct import ends_of, host_end
from guesthouse.network.house.hostside import routes

from ..bridged_host import ADDRESS, ADDRESS6, GATEWAY, BridgedHost, in_host
from ..firewall_kernel import Space
from ..house_network import ASK, SAY, TestHouse, network, test_house
from .namespace_house import need_ids, need_tun

pytestmark = pytest.mark.root

WHO = """
import socket, sys
with socket.create_server((sys.argv[1], 7070)) as server:
    server.settimeout(20)
    end, address = server.accept()
    end.sendall(address[0].encode())
"""


@pytest.fixture
def host() -> Iterator[BridgedHost]:
    need_ids()
    need_tun()
    with in_host() as made:
        made.host.ok("sysctl", "-qw", "net.ipv4.ip_forward=1")
        made.lan.ok("ip", "route", "add", "10.201.0.0/16", "via", ADDRESS)
        yield made


async def says(who: Space, address: str, port: int) -> str:
    argv = ("python3", "-c", SAY, address, str(port), "3")
    return (await asyncio.to_thread(who.run, *argv)).stdout.strip()


async def asks(who: Space, server: str, name: str) -> str:
    return (
        await asyncio.to_thread(who.run, "python3", "-c", ASK, server, name, "1")
    ).stdout.strip()


async def test_routed_guests_are_seen_as_they_are(host: BridgedHost, tmp_path: Path) -> None:
    before = host.state()
    routed = network(kind=NetworkKind.ROUTED)
    async with test_house(tmp_path, routed, network(2, "nat")) as house:
        web = await house.boot("web")
        await web.echo(7000)
        assert await says(host.lan, web.address, 7000) == "hello", "from the network outside"
        assert await says(host.host, web.address, 7000) == "hello", "and from the host"
        server = asyncio.create_task(asyncio.to_thread(host.lan.run, "python3", "-c", WHO, GATEWAY))
        await asyncio.sleep(0.5)
        assert await web.say(GATEWAY, 7070) == web.address, "no translation"
        await server
        assert not await web.ping(ADDRESS, wait=1.0), "the host's own addresses stay shut"
        assert (await house.network.counters())["wall/host"].packets > 0
        other = await house.boot("other", "nat")
        assert await other.ping("10.201.2.1")
        assert await web.ask("10.201.1.1", "web") == f"0 {web.address}"
        assert "10.201.1.0/24" not in await routes(), "its own route is no clash"
        await house.daemon_dies()
        assert await says(host.lan, web.address, 7000) == "hello"
        await house.another_daemon()
        assert await says(host.lan, web.address, 7000) == "hello"
        house.records.own[0] = msgspec.structs.replace(routed, lan_access=False)
        await house.network.refresh()
        assert not await web.ping(GATEWAY, wait=1.0), "the wall before the host's networks holds"
        await house.network.detach(web.id, 0)
        assert host_end(tmp_path) not in host.state()
    assert host.state() == before


async def test_the_host_is_connected_and_nobody_else(host: BridgedHost, tmp_path: Path) -> None:
    lan = network()
    async with test_house(tmp_path, lan) as house:
        web = await house.boot("web")
        await web.echo(7000)
        assert not await says(host.host, web.address, 7000), "there is no way in by itself"
        house.records.own[0] = msgspec.structs.replace(lan, connected=True)
        await house.network.refresh()
        assert await says(host.host, web.address, 7000) == "hello"
        assert await asks(host.host, "10.201.1.1", "web") == f"0 {web.address}"
        assert not await says(host.lan, web.address, 7000), "only the host"
        await web.echo(7006, ip="::")
        assert await says(host.host, web.address6, 7006) == "hello"
        host.host.ok("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
        host.lan.ok("ip", "route", "add", "fd42:201:1::/64", "via", ADDRESS6)
        before = (await house.network.counters())["wall/unsolicited"].packets
        assert not await says(host.lan, web.address6, 7006), "nor by IPv6"
        assert (await house.network.counters())["wall/unsolicited"].packets > before
        assert not await web.ping(ADDRESS, wait=1.0), "and it is no way out to the host"
        house.records.own[0] = lan
        await house.network.refresh()
        assert not await says(host.host, web.address, 7000)
        assert host_end(tmp_path) not in host.state()


def test_the_ends_are_the_first_two_addresses() -> None:
    ends = ends_of("10.9.8.16/29", "fd12:3456:789a:1::/64")
    assert ends.words == {
        "host4": "10.9.8.17",
        "house4": "10.9.8.18",
        "host6": "fd12:3456:789a:1::1",
        "house6": "fd12:3456:789a:1::2",
    }


@pytest.mark.usefixtures("host")
async def test_several_and_their_end(tmp_path: Path) -> None:
    one, two = network(kind=NetworkKind.ROUTED), network(2, "two", kind=NetworkKind.ROUTED)
    async with test_house(tmp_path, one, two) as house:
        assert isinstance(house, TestHouse)
        web, db = await house.boot("web"), await house.boot("db", "two")
        assert await web.ping(GATEWAY) and await db.ping(GATEWAY)
        await house.network.detach(web.id, 0)
        assert await db.ping(GATEWAY)
        rules = (await house.namespace.run(["ip", "-4", "rule"])).text
        assert "10.201.2.0/24" in rules and "10.201.1.0/24" not in rules
