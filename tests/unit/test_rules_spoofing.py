"""What a card may not pretend: each lie as a real frame, and the same lie without the rules.

Only that control run proves that a frame was dropped for being a lie.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator

import pytest

from guesthouse.network.rules.compiling import compile_ruleset

from ..firewall_house import house
from ..firewall_kernel import KernelHouse, arp, echo, ethernet, ip, kernel_house, udp

pytestmark = pytest.mark.root

ALL = "ff:ff:ff:ff:ff:ff"
NODES = "33:33:00:00:00:01"
EVIL, GOOD = "52:67:68:00:00:01", "52:67:68:00:00:02"
EVIL4, GOOD4, GATEWAY4 = "10.200.1.11", "10.200.1.12", "10.200.1.1"
EVIL6, GOOD6, GATEWAY6 = "fd42:200:1::1001", "fd42:200:1::1002", "fd42:200:1::1"
EVIL_LOCAL, GOOD_LOCAL = "fe80::5067:68ff:fe00:1", "fe80::5067:68ff:fe00:2"
RANDOM_LOCAL, LEARNED_LOCAL = "fe80::1234:5678:9abc:def0", "fe80::42"
HOUSE = house({"guests": {"evil": {}, "good": {"link_locals": [LEARNED_LOCAL]}}})
MARK = b"guesthouse-spoof"


def four(
    source: str, body: bytes, protocol: int = 17, *, to: str = GOOD4, mac: str = GOOD
) -> bytes:
    return ethernet(EVIL, mac, 0x0800, ip(source, to, protocol, body))


def six(source: str, body: bytes, protocol: int = 58, *, to: str = GOOD6, mac: str = GOOD) -> bytes:
    return ethernet(EVIL, mac, 0x86DD, ip(source, to, protocol, body))


def icmp6(kind: int, body: bytes = b"") -> bytes:
    """Flags or reserved bits, then what the type has."""
    return struct.pack("!BBHI", kind, 0, 0, 0) + body + MARK


def advert(target: str) -> bytes:
    option = b"\x02\x01" + bytes.fromhex(EVIL.replace(":", ""))
    return icmp6(136, ipaddress.IPv6Address(target).packed + option)


def fragment(source: str, offset: int) -> bytes:
    """A router advertisement, or what might be its end, behind a fragment header."""
    header = struct.pack("!BBHI", 58, 0, offset << 3 | (not offset), 7)
    return ethernet(EVIL, NODES, 0x86DD, ip(source, "ff02::1", 44, header + icmp6(134)))


PLAIN = udp(5000, 5001, MARK)
PLAIN4 = ip(EVIL4, GOOD4, 17, PLAIN)
LIES = {
    "mac": ("spoof/mac", ethernet("52:67:68:00:00:77", GOOD, 0x0800, PLAIN4)),
    "mac-of-the-other": ("spoof/mac", ethernet(GOOD, ALL, 0x0800, PLAIN4)),
    "ipv4": ("spoof/ipv4", four(GATEWAY4, PLAIN)),
    "ipv4-of-the-other": ("spoof/ipv4", four("10.200.1.99", PLAIN)),
    "ipv6": ("spoof/ipv6", six("fd42:200:1::99", udp(5000, 5001, MARK), 17)),
    "ipv6-elsewhere": ("spoof/ipv6", six("2001:db8::1", udp(5000, 5001, MARK), 17)),
    "gateway-link-local": ("spoof/ipv6", six("fe80::1", udp(5000, 5001, MARK), 17)),
    "link-local-of-the-other": ("spoof/ipv6", six(GOOD_LOCAL, udp(5000, 5001, MARK), 17)),
    "learned-link-local": ("spoof/ipv6", six(LEARNED_LOCAL, udp(5000, 5001, MARK), 17)),
    "arp-address": ("spoof/arp", ethernet(EVIL, ALL, 0x0806, arp(EVIL, GATEWAY4, GOOD4) + MARK)),
    "arp-mac": ("spoof/arp", ethernet(EVIL, ALL, 0x0806, arp(GOOD, EVIL4, GOOD4) + MARK)),
    "arp-reply": (
        "spoof/arp",
        ethernet(EVIL, GOOD, 0x0806, arp(EVIL, GATEWAY4, GOOD4, operation=2) + MARK),
    ),
    "arp-reply-of-nobody": (
        "spoof/arp",
        ethernet(EVIL, GOOD, 0x0806, arp(EVIL, "0.0.0.0", GOOD4, operation=2) + MARK),
    ),
    "dhcp-server": ("spoof/dhcp-server", four(EVIL4, udp(67, 68, MARK))),
    "dhcp-server-to-all": (
        "spoof/dhcp-server",
        four(EVIL4, udp(67, 68, MARK), to="255.255.255.255", mac=ALL),
    ),
    "dhcp6-server": ("spoof/dhcp-server", six(EVIL_LOCAL, udp(547, 546, MARK), 17)),
    "router-advert": (
        "spoof/router-advert",
        six(EVIL_LOCAL, icmp6(134, b"\0" * 8), to="ff02::1", mac=NODES),
    ),
    "router-advert-to-one": ("spoof/router-advert", six(EVIL_LOCAL, icmp6(134, b"\0" * 8))),
    "router-advert-in-pieces": ("spoof/router-advert", fragment(EVIL_LOCAL, 0)),
    "second-piece": ("spoof/fragment", fragment(EVIL_LOCAL, 1)),
    "redirect": ("spoof/redirect", four(EVIL4, echo(4, 1, MARK, kind=5), 1)),
    "redirect6": ("spoof/redirect", six(EVIL_LOCAL, icmp6(137, bytes(32)))),
    "neighbour-of-gateway": (
        "spoof/neighbour-advert",
        six(EVIL6, advert(GATEWAY6), to="ff02::1", mac=NODES),
    ),
    "neighbour-of-the-other": ("spoof/neighbour-advert", six(EVIL_LOCAL, advert(GOOD_LOCAL))),
    "neighbour-gateway-local": ("spoof/neighbour-advert", six(EVIL_LOCAL, advert("fe80::1"))),
    "mld-query": (
        "spoof/mld-query",
        six(EVIL_LOCAL, icmp6(130, bytes(16)), to="ff02::1", mac=NODES),
    ),
    "vlan": (
        "spoof/ethertype",
        ethernet(EVIL, GOOD, 0x8100, b"\0\x05\x08\0" + ip(GOOD4, GOOD4, 17, PLAIN)),
    ),
    "lldp": ("spoof/ethertype", ethernet(EVIL, GOOD, 0x88B5, MARK * 4)),
    "to-one-shown-to-all": (
        "spoof/flooded",
        six(EVIL_LOCAL, udp(5000, 5001, MARK), 17, to=GOOD_LOCAL, mac=NODES),
    ),
}  # fmt: skip
TRUTHS = {
    "ipv4": four(EVIL4, PLAIN),
    "ipv6": six(EVIL6, udp(5000, 5001, MARK), 17),
    "own-link-local": six(EVIL_LOCAL, udp(5000, 5001, MARK), 17),
    "made-up-link-local": six(RANDOM_LOCAL, udp(5000, 5001, MARK), 17),
    "arp-request": ethernet(EVIL, ALL, 0x0806, arp(EVIL, EVIL4, GOOD4) + MARK),
    "arp-reply": ethernet(EVIL, GOOD, 0x0806, arp(EVIL, EVIL4, GOOD4, operation=2) + MARK),
    "arp-probe": ethernet(EVIL, ALL, 0x0806, arp(EVIL, "0.0.0.0", EVIL4) + MARK),
    "dhcp-discover": four("0.0.0.0", udp(68, 67, MARK), to="255.255.255.255", mac=ALL),
    "dhcp6-solicit": six(EVIL_LOCAL, udp(546, 547, MARK), 17, to="ff02::1:2", mac=NODES),
    "address-in-use": six(
        "::",
        icmp6(135, ipaddress.IPv6Address(EVIL6).packed),
        to="ff02::1:ff00:1001",
        mac="33:33:ff:00:10:01",
    ),
    "router-solicit": six(EVIL_LOCAL, icmp6(133), to="ff02::2", mac="33:33:00:00:00:02"),
    "neighbour": six(EVIL6, advert(EVIL6)),
    "neighbour-local": six(EVIL_LOCAL, advert(EVIL_LOCAL)),
    "neighbour-made-up": six(RANDOM_LOCAL, advert(RANDOM_LOCAL)),
    "to-all": four(EVIL4, PLAIN, to="10.200.1.255", mac=ALL),
}


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelHouse]:
    with kernel_house(HOUSE) as made:
        # Frames to groups reach all cards, whoever asked for them.
        for network in HOUSE.networks:
            made.space.ok(*f"ip link set {network.bridge} type bridge mcast_snooping 0".split())
        made.settings(
            {f"net.bridge.bridge-nf-call-{what}tables": "0" for what in ("ip", "ip6", "arp")}
        )
        yield made


def arrives(kernel: KernelHouse, frame: bytes) -> bool:
    kernel.drain()
    kernel.send("t1-0", frame)
    return any(f.at == "t2-0" and MARK in f.data for f in kernel.seen(0.1))


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_dropped_and_counted(kernel: KernelHouse, name: str) -> None:
    key, frame = LIES[name]
    kernel.space.ok("nft", "flush", "ruleset")
    assert arrives(kernel, frame), "the control run: without rules it gets through"
    kernel.load(compile_ruleset(HOUSE))
    assert not arrives(kernel, frame)
    assert kernel.counters()[key].packets == 1


@pytest.mark.parametrize("name", TRUTHS)
def test_the_truth_passes(kernel: KernelHouse, name: str) -> None:
    kernel.load(compile_ruleset(HOUSE))
    assert arrives(kernel, TRUTHS[name])
    dropped = {k: c.packets for k, c in kernel.counters().items() if k.startswith("spoof/")}
    assert not any(dropped.values())


def test_a_card_whose_addresses_are_not_known_keeps_its_mac_and_is_no_server(
    kernel: KernelHouse,
) -> None:
    free = house({"guests": {"evil": {"any_address": True, "addresses": []}, "good": {}}})
    kernel.load(compile_ruleset(free))
    assert arrives(kernel, four("192.168.5.5", PLAIN))
    assert arrives(kernel, six("2001:db8::5", udp(5000, 5001, MARK), 17))
    assert arrives(kernel, ethernet(EVIL, ALL, 0x0806, arp(EVIL, "192.168.5.5", GOOD4) + MARK))
    for name in ("mac", "dhcp-server", "router-advert", "gateway-link-local"):
        assert not arrives(kernel, LIES[name][1]), name
