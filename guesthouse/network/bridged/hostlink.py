"""An interface of the host as it is: what it has that must move, and why it cannot be bridged."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guesthouse.errors import Conflict, HostLacks, InvalidInput, NotFound
from guesthouse.host.namespace.entering import tool_environment
from guesthouse.host.spawn import run
from guesthouse.model.document import Noun

_FOREVER = 4294967295
"""Lifetime of an address that nobody takes away (INFINITY_LIFE_TIME, linux/if_addr.h)."""
_SYS = Path("/sys/class/net")
OURS = re.compile(r"gh[bpv]-[0-9a-z]{8}")
"""Interfaces that bridged networks have on the host."""
_CAP_NET_ADMIN = 12
_KERNELS_OWN = frozenset({"kernel"})
_EVERYTHING = ("0.0.0.0/0", "::/0")
_LOCAL_TYPES = frozenset({"local", "broadcast", "multicast", "anycast"})


class HostLink(Noun, kw_only=True, frozen=True):
    """:ivar kind: of a virtual one, as `ip` calls it: `bridge`, `vlan`, `veth`; empty of hardware.

    :ivar master: the bridge or bond that it is a port of. :ivar ethernet: it has a MAC.
    :ivar addresses: words of `ip address add`, without the device; none that are link-local.
    :ivar routes: words of `ip route add`, without the device; those with a gateway come last.
        Not those that come with an address. :ivar gateways: of default routes.
    :ivar shared_routes: where routes lead that share several interfaces, which cannot move.
    :ivar leased: some address runs out unless a DHCP client renews it.
    """

    name: str
    mac: str = ""
    mtu: int = 1500
    kind: str = ""
    master: str = ""
    ethernet: bool = True
    up: bool = True
    addresses: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    shared_routes: tuple[str, ...] = ()
    leased: bool = False


async def look_at(name: str) -> HostLink:
    """:raise NotFound: no such interface. :raise HostLacks: `ip` is not installed."""
    env = tool_environment()
    listed = await run(["ip", "-j", "-d", "address", "show"], env=env)
    links = {one.get("ifname"): one for one in json.loads(listed.out or b"[]")}
    if name not in links:
        others = (one for one in links if one and one != "lo" and not OURS.fullmatch(one))
        known = ", ".join(sorted(others))
        raise NotFound(
            f"This host has no interface {name!r}.", hint=f"Its interfaces: {known or 'none'}"
        )
    routes: list[Mapping[str, Any]] = []
    for family, everything in (("-4", "0.0.0.0/0"), ("-6", "::/0")):
        done = await run(["ip", "-j", family, "route", "show", "table", "all"], env=env)
        for route in json.loads(done.out or b"[]"):
            hops = route.get("nexthops", ())
            if route.get("dev") == name or any(hop.get("dev") == name for hop in hops):
                # `default` alone does not say of which version of IP.
                named = everything if route.get("dst") == "default" else route.get("dst", "")
                routes.append({**route, "dst": named})
    return host_link(links[name], routes)


def host_link(link: Mapping[str, Any], routes: list[Mapping[str, Any]]) -> HostLink:
    """:param link: of `ip -j -d address`. :param routes: of `ip -j route show dev`, default
    ones by their prefix."""
    addresses = [one for one in link.get("addr_info", ()) if _moves(one)]
    kept = [route for route in routes if _is_route(route)]
    kept.sort(key=lambda route: "gateway" in route or "via" in route)
    return HostLink(
        name=link["ifname"],
        mac=link.get("address", ""),
        mtu=link.get("mtu", 1500),
        kind=link.get("linkinfo", {}).get("info_kind", ""),
        master=link.get("master", ""),
        ethernet=link.get("link_type") == "ether",
        up="UP" in link.get("flags", ()),
        addresses=tuple(_address_words(one) for one in addresses),
        routes=tuple(_route_words(route) for route in kept),
        gateways=tuple(
            dict.fromkeys(
                route["gateway"]
                for route in kept
                if route["dst"] in _EVERYTHING and "gateway" in route
            )
        ),
        shared_routes=tuple(route["dst"] for route in routes if "nexthops" in route),
        leased=any(_runs_out(one) for one in addresses if one.get("family") == "inet"),
    )


def _moves(address: Mapping[str, Any]) -> bool:
    """Link-local ones each interface has of its own; temporary ones are made up anew."""
    return address.get("scope") != "link" and not address.get("temporary")


def _runs_out(address: Mapping[str, Any]) -> bool:
    return bool(address.get("valid_life_time", _FOREVER) != _FOREVER)


def _address_words(one: Mapping[str, Any]) -> str:
    words = [f"{one['local']}/{one['prefixlen']}"]
    if "address" in one:  # of the far end
        words = [one["local"], "peer", f"{one['address']}/{one['prefixlen']}"]
    if "broadcast" in one:
        words += ["broadcast", one["broadcast"]]
    if one.get("scope", "global") != "global":
        words += ["scope", one["scope"]]
    if "metric" in one:
        words += ["metric", str(one["metric"])]
    if _runs_out(one):
        words += ["valid_lft", str(one["valid_life_time"])]
        words += ["preferred_lft", str(one.get("preferred_life_time", 0))]
    words += ["noprefixroute"] if one.get("noprefixroute") else []
    # Nobody else got it meanwhile, and to wait for objections would take a second.
    words += ["nodad"] if one.get("family") == "inet6" else []
    return " ".join(words)


def _is_route(route: Mapping[str, Any]) -> bool:
    """Whether it must be made again: not one that the kernel makes with an address."""
    return (
        route.get("protocol") not in _KERNELS_OWN
        and route.get("type", "unicast") not in _LOCAL_TYPES
        and "nexthops" not in route
    )


def _route_words(route: Mapping[str, Any]) -> str:
    words = [route["dst"]]
    if "gateway" in route:
        words += ["via", route["gateway"]]
    elif "via" in route:
        words += ["via", route["via"]["family"], route["via"]["host"]]
    for key, word in (
        ("protocol", "proto"),
        ("metric", "metric"),
        ("table", "table"),
        ("scope", "scope"),
        ("prefsrc", "src"),
        ("expires", "expires"),
    ):
        if key in route:
            words += [word, str(route[key])]
    words += ["onlink"] if "onlink" in route.get("flags", ()) else []
    return " ".join(words)


def check_bridgeable(link: HostLink, *, sys: Path = _SYS) -> None:
    """Whether guests can have their cards on it, beside the host.

    :raise InvalidInput: this kind of interface never can. :raise Conflict: it is not as it must be.
    """
    if (sys / link.name / "wireless").exists() or (sys / link.name / "phy80211").exists():
        raise InvalidInput(
            f"{link.name} is a Wi-Fi interface: its access point drops every frame whose MAC is "
            "not the interface's own, so guests could not be on it (IEEE 802.11).",
            hint="Use a cable; or a network of kind nat, and publish ports.",
            field="uplink",
        )
    if not link.ethernet or not link.mac:
        raise InvalidInput(
            f"{link.name} carries no Ethernet frames, so no guest can have a card on it.",
            hint="Name an Ethernet interface, a bond or a bridge of this host.",
            field="uplink",
        )
    if link.kind in ("tun", "macvlan", "ipvlan"):
        raise InvalidInput(
            f"{link.name} is of kind {link.kind}, which cannot be a port of a bridge here.",
            hint="Name the interface below it, or a bridge of this host.",
            field="uplink",
        )
    if link.master:
        raise Conflict(
            f"{link.name} is a port of {link.master} already.",
            hint=f"Name that one if it is a bridge: --bridge-host {link.master}",
        )
    if link.shared_routes:
        raise Conflict(
            f"A route of this host to {link.shared_routes[0]} leads over {link.name} and others at "
            "once, and cannot move to a bridge.",
            hint="Make a bridge by hand, and name that: --bridge-host br0",
        )
    if not link.up:
        raise Conflict(f"{link.name} is down.", hint=f"Bring it up: ip link set {link.name} up")


def check_may_change(status: Path = Path("/proc/self/status")) -> None:
    """:raise HostLacks: this house may not change the host's own network."""
    if os.geteuid() == 0 and _has_net_admin(status):
        return
    raise HostLacks(
        "Only the machine's house can bridge: it takes the right to change the host's own network "
        "(root, CAP_NET_ADMIN), which this daemon does not have.",
        hint="Use a network of kind nat and publish ports; or the machine's house, as root: "
        "guesthoused --system",
        capability="bridging",
    )


def _has_net_admin(status: Path) -> bool:
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return False
    effective = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> _CAP_NET_ADMIN & 1)
