"""What is done to the host for a bridged network, and taken back: one file per case (bridged/)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guesthouse.network.bridged.hostlink import HostLink, host_link
from guesthouse.network.bridged.plan import Names, move_plan, port_lines, tagged_lines

from .conftest import Golden

CASES = Path(__file__).parent / "bridged"
NAMES = Names.of("01JDABCDEFGHJKMNPQRSTVWXYZ")
FOREVER = 4294967295


def address(local: str, prefixlen: int = 24, **more: Any) -> dict[str, Any]:
    family = "inet6" if ":" in local else "inet"
    life = {"valid_life_time": FOREVER, "preferred_life_time": FOREVER}
    raw = {"family": family, "local": local, "prefixlen": prefixlen, "scope": "global"}
    return {**raw, **life, **more}


def link(*addresses: dict[str, Any], **more: Any) -> dict[str, Any]:
    raw = {"ifname": "eth0", "address": "52:67:68:ee:00:05", "mtu": 1500, "link_type": "ether"}
    return {**raw, "flags": ["UP"], "addr_info": list(addresses), **more}


LINK_LOCAL = address("fe80::5067:68ff:feee:5", 64, scope="link")
PLAIN = address("192.0.2.5", broadcast="192.0.2.255", label="eth0")
CASES_OF: dict[str, HostLink] = {
    "one-address": host_link(
        link(PLAIN, LINK_LOCAL),
        [
            {"dst": "0.0.0.0/0", "gateway": "192.0.2.1", "protocol": "static"},
            {"dst": "192.0.2.0/24", "protocol": "kernel", "scope": "link", "prefsrc": "192.0.2.5"},
            {"type": "local", "dst": "192.0.2.5", "table": "local", "protocol": "kernel"},
        ],
    ),
    "leased": host_link(
        link({**PLAIN, "valid_life_time": 3600, "preferred_life_time": 3600, "metric": 100}),
        [{"dst": "0.0.0.0/0", "gateway": "192.0.2.1", "protocol": "dhcp", "metric": 100}],
    ),
    "both-versions": host_link(
        link(
            PLAIN,
            address("198.51.100.9", 32, scope="site"),
            address("192.0.2.66", 32, address="192.0.2.67"),
            address("2001:db8:2::5", 64, noprefixroute=True),
            address("2001:db8:2::dead", 64, temporary=True),
            LINK_LOCAL,
            mtu=9000,
        ),
        [
            {"dst": "0.0.0.0/0", "gateway": "192.0.2.1", "flags": ["onlink"]},
            {"dst": "0.0.0.0/0", "via": {"family": "inet6", "host": "fe80::1"}, "metric": 9},
            {"dst": "10.9.0.0/16", "scope": "link", "table": "77", "prefsrc": "192.0.2.5"},
            {"dst": "::/0", "gateway": "fe80::1", "protocol": "ra", "metric": 512, "expires": 1700},
            {"dst": "10.8.0.0/16", "nexthops": [{"gateway": "192.0.2.2"}]},
        ],
    ),
    "nothing-on-it": host_link(link(), []),
}


@pytest.mark.parametrize("name", CASES_OF)
def test_move(name: str, golden: Golden) -> None:
    found = CASES_OF[name]
    plan = move_plan(found, NAMES)
    parts = {
        "forward": plan.forward,
        "back": plan.back,
        "gateways": plan.gateways,
        "leased": ("yes" if found.leased else "no",),
    }
    text = "".join(f"# {title}\n" + "".join(f"{x}\n" for x in all) for title, all in parts.items())
    golden.check(CASES / f"{name}.txt", text)


def test_port_and_vlan(golden: Golden) -> None:
    everything = (NAMES.bridge, NAMES.vlan, NAMES.port)
    parts = {
        "a port, new": port_lines(NAMES, "br0", 1500, 4711, (), inside=False),
        "a port that is there": port_lines(NAMES, "br0", 1400, 4711, everything, inside=True),
        "a port whose other end is gone": port_lines(
            NAMES, "br0", 1500, 4711, everything, inside=False
        ),
        "VLAN 7 of eth0": tagged_lines("eth0", 7, NAMES, ()),
        "VLAN 7 that is there": tagged_lines("eth0", 7, NAMES, everything),
    }
    text = "".join(f"# {title}\n" + "".join(f"{x}\n" for x in all) for title, all in parts.items())
    golden.check(CASES / "port-and-vlan.txt", text)
