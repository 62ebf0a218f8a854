"""A host in a network namespace, whose eth0 is on a LAN in another. Needs root.

What a test calls runs in the host's namespace, since this process goes there: nothing is done to
the machine's own interfaces.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .firewall_kernel import CLONE_NEWNET, Space

ADDRESS, GATEWAY = "192.0.2.5", "192.0.2.1"
ADDRESS6, GATEWAY6 = "2001:db8:2::5", "2001:db8:2::1"
MAC = "52:67:68:ee:00:05"
_VARY = (
    "valid_life_time",
    "preferred_life_time",
    "stable-privacy",
    "tentative",
    "nodad",
    "dadfailed",
)


class BridgedHost:
    """:ivar host: with eth0. :ivar lan: with the gateway, at the other end of eth0's cable."""

    def __init__(self) -> None:
        self.host, self.lan = Space(), Space()
        self.lan.ok("ip", "-batch", "-", text=_LAN.format(pid=self.host.pid))
        self.host.ok("ip", "-batch", "-", text=_HOST)

    def close(self) -> None:
        self.host.close()
        self.lan.close()

    def state(self) -> dict[str, Any]:
        """All addresses, routes and interfaces of the host, but for what varies by itself."""
        links = json.loads(self.host.ok("ip", "-j", "address"))
        found: dict[str, Any] = {}
        for link in links:
            addresses = [
                {key: value for key, value in one.items() if key not in _VARY}
                for one in link["addr_info"]
                if one["scope"] != "link"
            ]
            found[link["ifname"]] = {
                "master": link.get("master", ""),
                "mac": link["address"],
                "up": "UP" in link["flags"],
                "addresses": sorted(addresses, key=str),
            }
        for family in ("-4", "-6"):
            routes = json.loads(self.host.ok("ip", "-j", family, "route", "show", "table", "all"))
            kept = [r for r in routes if not r["dst"].startswith(("fe80", "ff00"))]
            found[family] = sorted(map(str, kept))
        return found

    def reaches(self, address: str = GATEWAY) -> bool:
        """Whether the host has its neighbour, asked afresh."""
        self.host.run("ip", "neighbour", "flush", "all")
        from guesthouse.network.bridged.mover import answers

        device = json.loads(self.host.ok("ip", "-j", "route", "get", address))[0]["dev"]
        return self.host.inside(lambda: answers(address, device, 3.0))


@contextmanager
def in_host() -> Iterator[BridgedHost]:
    """This process is in the host's network as long as it lasts."""
    made = BridgedHost()
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/proc/{made.host.pid}/ns/net", os.O_RDONLY)
    try:
        _enter(there)
        try:
            yield made
        finally:
            _enter(own)
    finally:
        os.close(own)
        os.close(there)
        made.close()


def _enter(fd: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


_LAN = f"""\
link set lo up
link add wall type bridge stp_state 0 forward_delay 0
link add port0 type veth peer name eth0 address {MAC} netns {{pid}}
link set port0 master wall up
address add {GATEWAY}/24 dev wall
address add {GATEWAY6}/64 dev wall nodad
link set wall up
"""
_HOST = f"""\
link set lo up
link set eth0 up
address add {ADDRESS}/24 broadcast 192.0.2.255 dev eth0
address add 198.51.100.9/32 dev eth0
address add {ADDRESS6}/64 dev eth0 nodad
route add default via {GATEWAY} dev eth0 proto static metric 100
route add 203.0.113.0/24 via {GATEWAY} dev eth0 src {ADDRESS}
route add 10.9.0.0/16 dev eth0 scope link table 77
route add ::/0 via {GATEWAY6} dev eth0 metric 512
"""
