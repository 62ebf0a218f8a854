"""Bridges and taps: what is there, what should be, and lines for `ip -batch` between them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

import msgspec

from guesthouse.errors import ToolFailed
from guesthouse.model.document import Noun
from guesthouse.model.network import GATEWAY_LINK_LOCAL, Network
from guesthouse.network.house.seats import Seat

LIST = ("ip", "-j", "address")
BATCH = ("ip", "-batch", "-")

# Locally administered, and beside the prefix of guests: no card can have a bridge's address.
_BRIDGE_PREFIX = "52:67:69"
_PORT_PREFIX = "52:67:6a"
_OURS = re.compile(r"br-[0-9a-z]{8}|u-[0-9a-z]{8}|t\d+-\d+")


def is_ours(name: str) -> bool:
    """Whether a bridge, a tap, or a port that leads to the host's, has such a name."""
    return bool(_OURS.fullmatch(name))


class Link(Noun, kw_only=True, frozen=True):
    """An interface. :ivar master: name of its bridge. :ivar addresses: with their prefix length."""

    mac: str = ""
    mtu: int = 1500
    master: str = ""
    up: bool = False
    addresses: frozenset[str] = frozenset()


Links = dict[str, Link]


class _Address(msgspec.Struct):
    local: str = ""
    prefixlen: int = 0


class _Listed(msgspec.Struct):
    ifname: str = ""
    address: str = ""
    mtu: int = 1500
    master: str = ""
    flags: tuple[str, ...] = ()
    addr_info: tuple[_Address, ...] = ()


def read_links(output: bytes) -> Links:
    """What `LIST` prints. :raise ToolFailed: it is something else."""
    try:
        listed = msgspec.json.decode(output or b"[]", type=list[_Listed])
    except msgspec.DecodeError as error:
        raise ToolFailed(f"What ip listed cannot be read: {error}.") from None
    return {
        one.ifname: Link(
            mac=one.address,
            mtu=one.mtu,
            master=one.master,
            up="UP" in one.flags,
            addresses=frozenset(f"{a.local}/{a.prefixlen}" for a in one.addr_info if a.local),
        )
        for one in listed
        if one.ifname
    }


def wanted_links(networks: Iterable[Network], seats: Iterable[Seat], *, ipv6: bool = True) -> Links:
    """What should be there for these networks, and for the seats that are on one of them.

    :param ipv6: the kernel has it.
    """
    by_id = {network.id: network for network in networks}
    links = {network.bridge: _bridge(network, ipv6) for network in by_id.values()}
    for network in by_id.values():
        if network.port:
            mac = _mac(_PORT_PREFIX, network)
            links[network.port] = Link(mac=mac, mtu=network.mtu, master=network.bridge, up=True)
    for seat in seats:
        network = by_id[seat.network]
        # A bridge takes frames to its port's own address for itself, so it is not the guest's.
        mac = f"fe{seat.mac[2:]}"
        links[seat.tap] = Link(mac=mac, mtu=network.mtu, master=network.bridge, up=True)
    return links


def _bridge(network: Network, ipv6: bool) -> Link:
    # On a bridged network the house is nobody: it would be in its routers' way.
    addresses = {f"{GATEWAY_LINK_LOCAL}/64"} if ipv6 and not network.port else set()
    if network.subnet4:
        addresses.add(f"{network.gateway4}/{network.subnet4.partition('/')[2]}")
    if network.subnet6 and ipv6:
        addresses.add(f"{network.gateway6}/64")
    mac = _mac(_BRIDGE_PREFIX, network)
    return Link(mac=mac, mtu=network.mtu, up=True, addresses=frozenset(addresses))


def _mac(prefix: str, network: Network) -> str:
    return f"{prefix}:{hashlib.sha256(network.id.encode()).digest()[:3].hex(':')}"


def mute_settings(network: Network, *, ipv6: bool) -> dict[str, str]:
    """Of a bridged network's bridge, below /proc/sys/net: the house answers nobody there, and
    carries nothing from there to its other networks."""
    four, six = f"ipv4/conf/{network.bridge}", f"ipv6/conf/{network.bridge}"
    mute = {f"{four}/arp_ignore": "1", f"{four}/forwarding": "0"}
    return mute | ({f"{six}/disable_ipv6": "1"} if ipv6 else {})


def changes(
    there: Mapping[str, Link], wanted: Mapping[str, Link], *, ipv6: bool = True
) -> list[str]:
    """Lines for `BATCH` that make `wanted` of what is there; none if nothing differs.

    Only interfaces with names of ours are removed. Taps and ports that are wanted must be there
    already: whoever opens them makes them.
    """
    lines = [f"link delete dev {name}" for name in there if is_ours(name) and name not in wanted]
    for name in sorted(wanted):  # bridges (`br-`) come before taps (`t`)
        lines += _change(name, there.get(name), wanted[name])
    return lines if ipv6 else [line for line in lines if "addrgenmode" not in line]


def _change(name: str, before: Link | None, link: Link) -> list[str]:
    if before == link:
        return []
    lines = []
    if before is None and not link.master:
        lines.append(
            f"link add {name} address {link.mac} mtu {link.mtu} type bridge "
            "stp_state 0 forward_delay 0"
        )
    if before is None or not before.up:
        # Before it comes up, so that it never makes up an address of its own.
        lines.append(f"link set dev {name} addrgenmode none")
    if before is None and link.master:
        lines.append(f"link set dev {name} address {link.mac} mtu {link.mtu} master {link.master}")
    elif before is not None:
        lines += _set(name, before, link)
    if before is None or not before.up:
        lines.append(f"link set dev {name} up")
    old = before.addresses if before else frozenset()
    lines += [f"address delete {gone} dev {name}" for gone in sorted(old - link.addresses)]
    lines += [_add(name, new) for new in sorted(link.addresses - old)]
    return lines


def _set(name: str, before: Link, link: Link) -> list[str]:
    words = []
    if before.mac != link.mac:
        words.append(f"address {link.mac}")
    if before.mtu != link.mtu:
        words.append(f"mtu {link.mtu}")
    if before.master != link.master:
        words.append(f"master {link.master}")
    return [f"link set dev {name} {' '.join(words)}"] if words else []


def _add(name: str, address: str) -> str:
    # Nobody else can have it, and to wait for objections (DAD) would take a second.
    return f"address add {address} dev {name}{' nodad' if ':' in address else ''}"
