"""Guests on two networks: whom they reach, what they cannot pretend, and how they are reached.

What the house forbids is tried twice, the second time without its rules: only if it works then,
the rules forbade it.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.firewall_kernel import arp, ethernet, ip, udp
from tests.house_network import host_address
from tests.unit.namespace_house import need_ids, need_tun
from tests.unit.test_rules_spoofing import icmp6

from .conftest import gone, until
from .network_house import ECHO, SAY, NetworkHouse, answers, free_port, network_house

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]
ALL, NODES = "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01"


@pytest.fixture(scope="module")
def town() -> Iterator[NetworkHouse]:
    """web and db on the network red, app on blue."""
    need_ids()
    need_tun()
    with network_house() as house:
        for network in ("red", "blue"):
            house.run("network", "create", network)
        for name, network in (("web", "red"), ("db", "red"), ("app", "blue")):
            house.launch(name, network)
        house.begin("db", ECHO, "7")
        for name, network in (("web", "red"), ("db", "red"), ("app", "blue")):
            # Its own address by IPv6 has come.
            house.reaches(name, house.card(name, network)["address6"])
        yield house


def test_names_resolve_to_guests_that_answer(town: NetworkHouse) -> None:
    for one, other in (("web", "db"), ("db", "web")):
        card = town.card(other, "red")
        assert town.asks(one, other) == {card["address4"], card["address6"]}
        assert town.pings(one, other)
        assert town.pings(one, f"-4 {other}")
        assert town.pings(one, f"-6 {other}")


def test_networks_are_apart(town: NetworkHouse) -> None:
    db, app = town.card("db", "red"), town.card("app", "blue")
    assert not town.asks("app", "db")
    ways = [("app", db[version]) for version in ("address4", "address6")]
    ways += [("web", app[version]) for version in ("address4", "address6")]
    assert [way for way in ways if town.pings(*way, seconds=1)] == []
    assert town.perl("app", SAY, db["address4"], "7", "3") == ""
    assert town.pings("web", db["address4"]), "on one network they reach each other"
    assert town.perl("web", SAY, db["address4"], "7", "30") == "hello"
    with town.without_rules():
        assert [way for way in ways if town.pings(*way)] == ways
        assert town.perl("app", SAY, db["address4"], "7", "30") == "hello"
    assert [way for way in ways if town.pings(*way, seconds=1)] == []


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_port_is_published_live_and_closed(town: NetworkHouse, ip: str, kind: str) -> None:
    sort = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    port = free_port(ip, sort)
    assert not answers(ip, port, sort)
    place = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
    town.run("publish", "db", f"{place}:7/{kind}")
    assert answers(ip, port, sort)
    town.run("daemon", "restart")
    assert answers(ip, port, sort)
    town.run("unpublish", "db", f"{place}/{kind}" if kind == "udp" else place)
    assert not answers(ip, port, sort)


@contextmanager
def host_echo() -> Iterator[int]:
    """An echo on all addresses of the host; answers its port."""
    with socket.create_server(("0.0.0.0", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    end = server.accept()[0]
                except OSError:
                    return
                with end:
                    end.sendall(end.recv(100))

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_the_host_is_reached_only_where_that_is_allowed(town: NetworkHouse) -> None:
    town.run("network", "create", "near", "--host-access")
    town.launch("friend", "near")
    address = host_address()
    with host_echo() as port:
        assert answers("127.0.0.1", port)
        assert town.perl("web", SAY, address, str(port), "3") == ""
        assert town.perl("friend", SAY, address, str(port), "30") == "hello"
        for name in ("web", "friend"):
            assert town.perl(name, SAY, "10.0.2.2", str(port), "3") == "", "loopback stays shut"
    town.run("rm", "--yes", "--force", "friend")


# --- lies ---------------------------------------------------------------------------------------


def lies(liar: dict[str, Any], other: dict[str, Any], gateway: tuple[str, str]) -> list[bytes]:
    """Frames from one card to another that pretend something, each with its name as a mark."""
    me, you, me4, you4 = liar["mac"], other["mac"], liar["address4"], other["address4"]
    me6, you6 = liar["address6"], other["address6"]
    octets = bytes.fromhex(me.replace(":", ""))
    local = str(
        ipaddress.IPv6Address(
            b"\xfe\x80" + bytes(6) + bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
        )
    )
    stranger4, stranger6 = (str(ipaddress.ip_address(one) + 98) for one in gateway)

    def plain(mark: str) -> bytes:
        return udp(5000, 5001, f"<{mark}>".encode())

    def four(source: str, body: bytes, *, to: str = you4, mac: str = you) -> bytes:
        return ethernet(me, mac, 0x0800, ip(source, to, 17, body))

    def six(
        source: str, body: bytes, protocol: int = 58, *, to: str = you6, mac: str = you
    ) -> bytes:
        return ethernet(me, mac, 0x86DD, ip(source, to, protocol, body))

    def claim(mark: str, mac: str, address: str, operation: int = 1) -> bytes:
        body = arp(mac, address, you4, operation=operation) + f"<{mark}>".encode()
        return ethernet(me, ALL if operation == 1 else you, 0x0806, body)

    link = b"\x02\x01" + octets
    advert = icmp6(136, ipaddress.IPv6Address(stranger6).packed + link)
    return [
        ethernet("52:67:68:0f:0f:0f", you, 0x0800, ip(me4, you4, 17, plain("mac"))),
        four(stranger4, plain("ipv4")),
        four(gateway[0], plain("ipv4-of-gateway")),
        four("192.0.2.1", plain("ipv4-elsewhere")),
        six(stranger6, plain("ipv6"), 17),
        six("fe80::1", plain("ipv6-of-gateway"), 17),
        claim("arp-request", me, stranger4),
        claim("arp-reply", me, stranger4, operation=2),
        claim("arp-mac", "52:67:68:0f:0f:0f", me4),
        four(me4, udp(67, 68, b"<dhcp>")),
        four(me4, udp(67, 68, b"<dhcp-to-all>"), to="255.255.255.255", mac=ALL),
        six(local, udp(547, 546, b"<dhcp6>"), 17),
        six(local, icmp6(134, bytes(8) + b"<ra>"), to="ff02::1", mac=NODES),
        six(local, icmp6(134, bytes(8) + b"<ra-to-one>")),
        six(me6, advert + b"<neighbour>", to="ff02::1", mac=NODES),
    ]


def truths(liar: dict[str, Any], other: dict[str, Any]) -> list[bytes]:
    body = udp(5000, 5001, b"<truth>")
    me, you = liar["mac"], other["mac"]
    return [
        ethernet(me, you, 0x0800, ip(liar["address4"], other["address4"], 17, body)),
        ethernet(me, you, 0x86DD, ip(liar["address6"], other["address6"], 17, body)),
        ethernet(me, ALL, 0x0806, arp(me, liar["address4"], other["address4"]) + b"<truth>"),
        last(liar, other),
    ]


def last(one: dict[str, Any], other: dict[str, Any], to: str = "") -> bytes:
    body = ip(one["address4"], other["address4"], 17, udp(5000, 5001, b"<last>"))
    return ethernet(one["mac"], to or other["mac"], 0x0800, body)


def test_a_guest_cannot_pretend_to_be_another(town: NetworkHouse) -> None:
    web, db = town.card("web", "red"), town.card("db", "red")
    red = town.json("network", "info", "red")
    pretended = lies(web, db, (red["own_address4"], red["own_address6"]))
    frames = [*pretended, *truths(web, db)]
    names = [frame[frame.rindex(b"<") + 1 : frame.rindex(b">")].decode() for frame in pretended]
    assert len(set(names)) == len(names) == 15

    def heard() -> list[str]:
        with town.heard("db") as marks:
            town.sends("web", *frames)
        return marks

    assert heard() == ["truth", "truth", "truth", "last"]
    with town.without_rules():
        assert heard() == [*names, "truth", "truth", "truth", "last"]
    assert heard() == ["truth", "truth", "truth", "last"]


def test_a_guest_does_not_hear_what_others_say(town: NetworkHouse) -> None:
    """Even with its card listening to everything."""
    web, db = town.card("web", "red"), town.card("db", "red")
    own = town.json("network", "info", "red")["own_address4"]
    assert town.pings("db", own)
    table = town.sh("db", "cat /proc/net/arp")
    gateway = next(line.split()[3] for line in table.splitlines() if line.startswith(f"{own} "))
    secret = ip(db["address4"], own, 17, udp(5000, 5001, b"<secret>"))
    to_web = ip(db["address4"], web["address4"], 17, udp(5000, 5001, b"<to-web>"))
    with town.heard("web") as marks:
        town.sends(
            "db",
            ethernet(db["mac"], gateway, 0x0800, secret),
            ethernet(db["mac"], web["mac"], 0x0800, to_web),
            last(db, web),
        )
    assert marks == ["to-web", "last"]


# --- what a card keeps --------------------------------------------------------------------------


def test_a_guest_that_crashes_or_is_restarted_keeps_its_addresses(town: NetworkHouse) -> None:
    before = town.card("db", "red")

    def answers_as_before() -> None:
        assert town.card("db", "red") == before
        town.reaches("db", before["address6"])
        shown = town.sh("db", "ip address show dev eth0")
        assert before["address4"] in shown and before["address6"] in shown
        assert town.pings("web", "-4 db") and town.pings("web", "-6 db")

    pid = town.pid("db")
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid), say="its process is gone")
    until(lambda: town.status("db")["state"] in ("stopped", "failed"), say="that is seen")
    town.run("start", "db", "--wait")
    answers_as_before()
    town.run("restart", "db")
    until(lambda: town.status("db")["ready"][-1:] == ["ssh"], seconds=120, say="it is up again")
    answers_as_before()
