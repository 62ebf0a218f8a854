"""From the interfaces that are there to those that should be."""

from __future__ import annotations

import msgspec
import pytest

from guesthouse.errors import ToolFailed
from guesthouse.network.house.dnsmasq import configuration
from guesthouse.network.house.hostside import host_side
from guesthouse.network.house.links import Link, changes, read_links, wanted_links

from ..golden.test_house_network import seat, taps
from ..house_network import network

LAN = network()
WEB = seat("web", 1, of=LAN)
WANTED = wanted_links([LAN], [WEB])


def test_nothing_is_done_where_nothing_differs() -> None:
    assert changes(WANTED, WANTED) == []
    assert changes({**WANTED, "lo": Link(), "tap0": Link(), "docker0": Link()}, WANTED) == []


def test_only_what_is_ours_is_removed() -> None:
    there = {**WANTED, "t9-0": Link(), "br-0123abcd": Link(), "br0": Link(), "tap0": Link()}
    assert changes(there, WANTED) == ["link delete dev t9-0", "link delete dev br-0123abcd"]


def test_a_bridge_is_there_before_its_taps() -> None:
    lines = changes(taps([WEB]), WANTED)
    first = next(i for i, line in enumerate(lines) if line.startswith("link add"))
    assert first < next(i for i, line in enumerate(lines) if "master" in line)


def test_a_guest_and_its_tap_have_different_addresses() -> None:
    assert WANTED[WEB.tap].mac == "fe:67:68:00:00:01" != WEB.mac


def test_what_somebody_changed_is_put_right() -> None:
    bridge = LAN.bridge
    there = {
        bridge: msgspec.structs.replace(
            WANTED[bridge], mtu=1300, addresses=frozenset({"1.2.3.4/8"})
        ),
        WEB.tap: msgspec.structs.replace(WANTED[WEB.tap], master=""),
    }
    assert changes(there, WANTED) == [
        f"link set dev {bridge} mtu 1500",
        f"address delete 1.2.3.4/8 dev {bridge}",
        f"address add 10.201.1.1/24 dev {bridge}",
        f"address add fd42:201:1::1/64 dev {bridge} nodad",
        f"address add fe80::1/64 dev {bridge} nodad",
        f"link set dev {WEB.tap} master {bridge}",
    ]


def test_a_kernel_without_ipv6_is_asked_for_none() -> None:
    wanted = wanted_links([LAN], [WEB], ipv6=False)
    assert wanted[LAN.bridge].addresses == {"10.201.1.1/24"}
    lines = changes(taps([WEB]), wanted, ipv6=False)
    assert not [line for line in lines if "addrgenmode" in line or "::" in line]
    told = configuration(LAN, ipv6=False)
    assert "fd" not in told and "enable-ra" not in told


def test_what_ip_prints_is_read() -> None:
    text = (
        b'[{"ifname":"br-x","flags":["UP","LOWER_UP"],"mtu":1500,"address":"52:67:69:00:00:01",'
        b'"addr_info":[{"family":"inet","local":"10.1.1.1","prefixlen":24}]},{},'
        b'{"ifname":"t1-0","master":"br-x","flags":[],"mtu":9000,"addr_info":[]}]'
    )
    assert read_links(text) == {
        "br-x": Link(mac="52:67:69:00:00:01", up=True, addresses=frozenset({"10.1.1.1/24"})),
        "t1-0": Link(mtu=9000, master="br-x"),
    }
    assert read_links(b"") == {}
    with pytest.raises(ToolFailed):
        read_links(b"Cannot open netlink socket")


def test_the_hosts_own_addresses() -> None:
    addresses = {"127.0.0.1/8", "::1/128", "fe80::1/64", "192.0.2.7/24", "2001:db8::7/64"}
    found = host_side({"eth0": Link(addresses=frozenset(addresses))})
    assert found.addresses == ("192.0.2.7", "2001:db8::7")
    assert found.networks == ("192.0.2.0/24", "2001:db8::/64")
    alone = host_side({"wg0": Link(addresses=frozenset({"10.9.9.9/32"}))})
    assert alone[:2] == (("10.9.9.9",), ()), "a tunnel's own address is no network"
