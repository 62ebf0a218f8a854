"""Guests on the network of the host's interface: a LAN with its own DHCP server and router."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from guesthouse.errors import Conflict, InvalidInput
from guesthouse.model.device import Publish
from guesthouse.model.network import Network, NetworkKind
from guesthouse.network.bridged.attaching import FOLDER, HostBridges
from guesthouse.network.bridged.mover import answers
from guesthouse.network.bridged.plan import Names

from ..bridged_host import ADDRESS, GATEWAY, BridgedHost, in_host
from ..firewall_house import ident
from ..firewall_kernel import Space
from ..house_network import SAY, TestGuest, TestHouse, network, test_house
from .namespace_house import need_ids, need_tun

pytestmark = pytest.mark.root

UDHCPC = """\
[ "$1" = bound ] || exit 0
ip address add $ip/24 dev eth0
ip route add default via $router
"""


def office(uplink: str = "eth0") -> Network:
    return Network(
        id=ident("network", "office"),
        name="office",
        kind=NetworkKind.BRIDGED,
        uplink=uplink,
        host_access=True,
        created_at=0.0,
    )


@pytest.fixture
def host() -> Iterator[BridgedHost]:
    need_ids()
    need_tun()
    with in_host() as made:
        server = subprocess.Popen(
            ["nsenter", f"--target={made.lan.pid}", "--net", "dnsmasq", "--keep-in-foreground",
             "--conf-file=/dev/null", "--port=0", "--interface=wall", "--bind-interfaces",
             "--dhcp-range=192.0.2.100,192.0.2.150,1h", "--dhcp-authoritative", "--user=root",
             "--pid-file=", "--dhcp-leasefile=/dev/null"],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield made
        finally:
            server.kill()
            server.wait()


@pytest.fixture
async def house(host: BridgedHost, tmp_path: Path) -> AsyncIterator[TestHouse]:
    async with test_house(tmp_path, office(), network()) as made:
        yield made
    await HostBridges(tmp_path / FOLDER).remove(office().id)


async def dhcp(guest: TestGuest, folder: Path) -> str:
    """The address that the network outside gives the guest, which it takes."""
    script = folder / "udhcpc.sh"
    script.write_text(f"#!/bin/sh\n{UDHCPC}")
    script.chmod(0o755)
    # The house's /run hides the rest of the test's folder from nobody: it is below /tmp.
    argv = ["busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "10", "-T", "1", "-A", "1"]
    await guest.run(*argv, "-s", str(script))
    listed = json.loads((await guest.run("ip", "-j", "-4", "address", "show", "dev", "eth0")).out)
    found: str = listed[0]["addr_info"][0]["local"]
    return found


async def test_guests_are_on_the_lan(host: BridgedHost, house: TestHouse, tmp_path: Path) -> None:
    web = await house.boot("web", configure=False)
    address = await dhcp(web, tmp_path)
    assert address.startswith("192.0.2.1") and web.seat.addresses == ()
    assert await web.ping(GATEWAY) and await web.ping(ADDRESS), "the host is a neighbour"
    db = await house.boot("db", configure=False)
    assert await web.ping(await dhcp(db, tmp_path))
    # Whoever is out there sees the guest itself, and reaches it.
    await web.echo(7000)
    assert await says(host.lan, address, 7000) == "hello\n"
    entry = json.loads(host.lan.ok("ip", "-j", "neighbour", "show", "to", address))[0]
    assert entry["lladdr"] == web.nic.mac
    assert await says(host.host, address, 7000) == "hello\n"
    with pytest.raises(InvalidInput, match="addresses of their own"):
        await house.network.publish(web.id, 0, Publish(host_port=0, guest_port=80), nobody)


async def says(who: Space, address: str, port: int) -> str:
    """What an echo at a guest answers; this loop carries the guest's frames meanwhile."""
    argv = ("python3", "-c", SAY, address, str(port), "3")
    return (await asyncio.to_thread(who.run, *argv)).stdout


async def nobody(*_line: str) -> str:
    raise AssertionError("the house's network needs no monitor")


async def test_what_guests_claim_is_still_checked(
    host: BridgedHost, house: TestHouse, tmp_path: Path
) -> None:
    web = await house.boot("web", configure=False)
    address = await dhcp(web, tmp_path)
    await web.run("ip", "link", "set", "dev", "eth0", "address", "52:67:68:00:00:99")
    assert not await web.ping(GATEWAY, wait=1.0)
    counters = await house.network.counters()
    assert counters["spoof/mac"].packets > 0
    await web.run("ip", "link", "set", "dev", "eth0", "address", web.nic.mac)
    await web.run("ip", "route", "replace", "default", "via", GATEWAY)
    assert await web.ping(GATEWAY)
    # It answers nobody's DHCP.
    lie = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);" \
          f"s.bind(('{address}', 67)); s.sendto(b'x' * 300, ('{GATEWAY}', 68))"  # fmt: skip
    await web.run("python3", "-c", lie)
    assert (await house.network.counters())["spoof/dhcp-server"].packets == 1


async def test_the_house_is_nobody_on_the_lan(
    host: BridgedHost, house: TestHouse, tmp_path: Path
) -> None:
    """Neither its other networks nor its own addresses are found from there."""
    await house.boot("web", configure=False)
    inner = await house.boot("inner", "lan")
    assert await inner.ping("10.201.1.1")
    bridge = office().bridge
    shown = json.loads((await house.namespace.run(["ip", "-j", "address", "show", bridge])).out)[0]
    assert shown["addr_info"] == []
    host.lan.ok("ip", "address", "add", "10.201.1.200/24", "dev", "wall")
    asked = partial(host.lan.inside, lambda: answers("10.201.1.1", "wall", 1.0))
    assert not await asyncio.to_thread(asked)
    # A frame to the bridge's own address is carried nowhere.
    host.lan.ok(
        "ip", "neighbour", "replace", "10.201.1.1", "lladdr", shown["address"], "dev", "wall"
    )
    host.lan.ok("ip", "route", "replace", inner.address, "via", "10.201.1.1")
    await inner.echo(7001)
    assert not await says(host.lan, inner.address, 7001)


async def test_a_new_daemon_finds_it_and_nothing_is_left(host: BridgedHost, tmp_path: Path) -> None:
    before, names = host.state(), Names.of(office().id)
    async with test_house(tmp_path, office()) as house:
        web = await house.boot("web", configure=False)
        await dhcp(web, tmp_path)
        now = host.state()
        assert now[names.port]["master"] == names.bridge == now["eth0"]["master"]
        await house.daemon_dies()
        assert await web.ping(GATEWAY)
        await house.another_daemon()
        assert host.state() == now and await web.ping(GATEWAY)
        # Somebody cuts the cable between the host and the house.
        host.host.ok("ip", "link", "delete", names.port)
        await house.network.refresh()
        # A packet may come before the new port has its carrier.
        assert await web.ping(GATEWAY, wait=1.0) or await web.ping(GATEWAY)
        await house.network.detach(web.id, 0)
        assert names.port not in host.state()
    assert host.state()[names.bridge]["up"], "while the network is there the host stays on it"
    await HostBridges(tmp_path / FOLDER).remove(office().id)
    assert host.state() == before


async def test_a_bridge_of_the_host_is_joined_as_it_is(host: BridgedHost, tmp_path: Path) -> None:
    lines = ["link add br0 type bridge stp_state 0 forward_delay 0", "link set eth0 master br0",
             "link set br0 up"]  # fmt: skip
    host.host.ok("ip", "-batch", "-", text="\n".join([*lines, ""]))
    before = host.state()
    async with test_house(tmp_path, office("br0")) as house:
        web = await house.boot("web", configure=False)
        await dhcp(web, tmp_path)
        assert await web.ping(GATEWAY)
        now = host.state()
        assert {key: now[key] for key in before} == before
        assert now[Names.of(office().id).port]["master"] == "br0"
    await HostBridges(tmp_path / FOLDER).remove(office().id)
    assert host.state() == before


async def test_an_interface_that_went_is_told_and_no_obstacle_to_others(
    host: BridgedHost, house: TestHouse
) -> None:
    inner = await house.boot("inner", "lan")
    host.host.ok("ip", "link", "set", "dev", "eth0", "down")
    with pytest.raises(Conflict, match="eth0 is down"):
        await house.boot("web", configure=False)
    with suppress(Conflict):
        await house.network.refresh()
    assert await inner.ping("10.201.1.1")
