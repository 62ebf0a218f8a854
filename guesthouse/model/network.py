"""Networks that guests join, and the addresses that they have there."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Iterator, Sequence
from enum import StrEnum

from guesthouse.errors import Conflict, InvalidInput
from guesthouse.model.bridging import check_bridged
from guesthouse.model.document import Document, Noun
from guesthouse.model.firewall import Firewall, Subnet, check_firewall, parse_cidr
from guesthouse.model.names import check_name

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

GATEWAY_LINK_LOCAL = "fe80::1"
"""Every bridge of the house has this IPv6 address beside its own: routers are known by it."""

UPLINK_SUBNETS = ("10.0.2.0/24", "fd00::/64")
"""The uplink's own networks (slirp4netns(1)); guests must not have them."""

# Where subnets are looked for, in this order. The first is the half of 10.0.0.0/8 that other tools
# use least: Docker takes 172.17.0.0/16 and on, libvirt 192.168.122.0/24, Kubernetes 10.96.0.0/12.
_POOLS = ("10.128.0.0/9", "172.16.0.0/12", "192.168.0.0/16", "10.0.0.0/9")

# A route shorter than this is somebody's default route: a VPN splits 0.0.0.0/0 into two halves.
_SHORTEST = {4: 8, 6: 8}


class NetworkKind(StrEnum):
    """How a network reaches the world.

    `nat`: by the house's uplink, under its address. `isolated`: not at all. `routed`: by the
    uplink, under the guests' own addresses, to which somebody must route. `bridged`: it is the
    network of one of the host's interfaces, which also gives the addresses.
    """

    NAT = "nat"
    ISOLATED = "isolated"
    ROUTED = "routed"
    BRIDGED = "bridged"


class DhcpRange(Noun, kw_only=True, frozen=True):
    """IPv4 addresses that guests get without asking for one: from `first` to `last`."""

    first: str
    last: str


class Network(Document, kw_only=True, frozen=True):
    """:ivar subnet4: CIDR; empty for a network without IPv4. `subnet6`: likewise, a /64.

    :ivar dhcp: None gives no address out: each card has a fixed one.
    :ivar domain: DNS domain in which the guests find one another by name.
    :ivar mtu: bytes.
    :ivar uplink: of `bridged` the host's interface; empty otherwise. `vlan`: of it; 0 for none.
    :ivar host_access: guests reach the host's own addresses without a rule.
    :ivar lan_access: guests reach the networks that the host is attached to without a rule.
    :ivar connected: the host has a route to its guests, and asks the house for their names.
    :ivar firewall: of all its guests.
    """

    name: str
    kind: NetworkKind = NetworkKind.NAT
    subnet4: str = ""
    subnet6: str = ""
    dhcp: DhcpRange | None = None
    domain: str = ""
    mtu: int = 1500
    uplink: str = ""
    vlan: int = 0
    host_access: bool = False
    lan_access: bool = True
    connected: bool = False
    firewall: Firewall = Firewall()
    created_at: float

    @property
    def bridge(self) -> str:
        """Name of its bridge on the kernel: the random tail of the id keeps them apart."""
        return f"br-{self.id[-8:].lower()}"

    @property
    def port(self) -> str:
        """Of `bridged`: the port of that bridge which leads to the host's interface."""
        return f"u-{self.id[-8:].lower()}" if self.kind is NetworkKind.BRIDGED else ""

    @property
    def gateway4(self) -> str:
        """The house's own address there: the first."""
        return str(ipaddress.ip_network(self.subnet4)[1]) if self.subnet4 else ""

    @property
    def gateway6(self) -> str:
        return str(ipaddress.ip_network(self.subnet6)[1]) if self.subnet6 else ""

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        return tuple(ipaddress.ip_network(text) for text in (self.subnet4, self.subnet6) if text)


class Lease(Document, kw_only=True, frozen=True):
    """The addresses of one card, which it keeps across starts.

    :ivar network: id. :ivar guest: id. :ivar nic: 0 is the guest's first card.
    :ivar fixed: asked for by the user; otherwise the house chose it.
    :ivar since: seconds since the epoch.
    """

    network: str
    guest: str
    nic: int
    mac: str
    address4: str = ""
    address6: str = ""
    fixed: bool = False
    since: float


def check_network(network: Network) -> None:
    """:raise InvalidInput: it cannot be right; `detail["field"]` says where."""
    check_name(network.name)
    if network.kind is NetworkKind.BRIDGED:
        check_bridged(
            network.uplink,
            network.vlan,
            {"subnet4": network.subnet4, "subnet6": network.subnet6, "dhcp": network.dhcp},
        )
    else:
        _check_own(network)
    if network.domain and (len(network.domain) > 200 or network.domain.endswith(".")):
        raise InvalidInput(f"{network.domain!r} is not a DNS domain.", field="domain")
    for label in network.domain.split(".") if network.domain else ():
        check_name(label, field="domain")
    least = 1280 if network.subnet6 else 576  # RFC 8200 section 5, RFC 791
    if not least <= network.mtu <= 65520:
        raise InvalidInput(
            f"An MTU of {network.mtu} bytes is not possible here.",
            hint=f"Use {least} to 65520.",
            field="mtu",
        )
    check_firewall(network.firewall)


def _check_own(network: Network) -> None:
    if network.uplink or network.vlan:
        raise InvalidInput(
            f"Only a bridged network has an interface of the host, not one of kind "
            f"{network.kind.value}.",
            field="uplink" if network.uplink else "vlan",
        )
    if not network.subnet4 and not network.subnet6:
        raise InvalidInput("The network has neither IPv4 nor IPv6.", field="subnet4")
    if network.subnet4:
        subnet = parse_cidr(network.subnet4, field="subnet4")
        if subnet.version != 4 or not 8 <= subnet.prefixlen <= 29:
            raise InvalidInput(
                f"{network.subnet4} is not an IPv4 network of /8 to /29.", field="subnet4"
            )
        _check_usable(subnet, network.subnet4, "subnet4")
    if network.subnet6:
        subnet = parse_cidr(network.subnet6, field="subnet6")
        if subnet.version != 6 or subnet.prefixlen != 64:
            raise InvalidInput(
                f"{network.subnet6} is not an IPv6 network of /64, which guests need to make up "
                "addresses (RFC 4291 section 2.5.1).",
                field="subnet6",
            )
        _check_usable(subnet, network.subnet6, "subnet6")
    if network.dhcp:
        _check_dhcp(network, network.dhcp)


def _check_usable(subnet: Subnet, text: str, field: str) -> None:
    if str(subnet) != text:
        raise InvalidInput(
            f"{text!r} is not spelled as usual.", hint=f"Write {subnet}.", field=field
        )
    if subnet.is_multicast or subnet.is_loopback or subnet.is_link_local or subnet.is_unspecified:
        raise InvalidInput(f"{subnet} cannot be the network of guests.", field=field)
    for own in map(ipaddress.ip_network, UPLINK_SUBNETS):
        if own.version == subnet.version and subnet.overlaps(own):
            raise InvalidInput(
                f"{subnet} overlaps {own}, which is the house's own uplink.", field=field
            )


def _check_dhcp(network: Network, dhcp: DhcpRange) -> None:
    if not network.subnet4:
        raise InvalidInput("A DHCP range needs an IPv4 subnet.", field="dhcp")
    subnet = ipaddress.IPv4Network(network.subnet4)
    ends: list[ipaddress.IPv4Address] = []
    for name, text in (("first", dhcp.first), ("last", dhcp.last)):
        try:
            ends.append(ipaddress.IPv4Address(text))
        except ValueError:
            raise InvalidInput(f"{text!r} is not an IPv4 address.", field=f"dhcp.{name}") from None
        if not subnet[1] < ends[-1] < subnet[-1]:
            raise InvalidInput(
                f"{text} is not an address for a guest of {subnet}.",
                hint=f"Use {subnet[2]} to {subnet[-2]}.",
                field=f"dhcp.{name}",
            )
    if ends[0] > ends[1]:
        raise InvalidInput("The range ends before it begins.", field="dhcp.last")


def default_range(subnet4: str) -> DhcpRange:
    """The upper nine tenths of a subnet; the lower tenth is left for fixed addresses."""
    subnet = ipaddress.IPv4Network(subnet4)
    first = max(2, min(subnet.num_addresses // 10, 100))
    return DhcpRange(first=str(subnet[first]), last=str(subnet[-2]))


def choose_subnet(
    taken: Iterable[str], *, version: int = 4, prefix: int = 24, seed: str = ""
) -> str:
    """A private subnet that overlaps none of `taken`.

    Pure: the same routes and seed give the same subnet. Different seeds (the network's id) start
    the search elsewhere, so that two houses that are joined one day seldom collide.

    :param taken: the host's routes and the subnets of other networks, as CIDRs; default routes,
        whole or in halves, are no obstacle, and what is no CIDR (`default`) is skipped.
    :param prefix: of IPv4; IPv6 is always a /64 of a unique local prefix (RFC 4193).
    :raise Conflict: nothing is left. :raise InvalidInput: `prefix` is not 8 to 29.
    """
    if not 8 <= prefix <= 29:
        raise InvalidInput(f"A subnet of /{prefix} is not possible.", field="prefix")
    routes = [route for route in _routes((*taken, *UPLINK_SUBNETS)) if route.version == version]
    found = _free4(routes, prefix, seed) if version == 4 else _free6(routes, seed)
    if found:
        return str(found)
    raise Conflict(
        f"No private IPv{version} subnet is free: this host has routes for all of them.",
        hint="Name a subnet that you know to be unused.",
    )


def clashes(network: Network, taken: Iterable[str]) -> tuple[str, ...]:
    """Those of `taken` (see `choose_subnet`) that overlap the network's subnets."""
    return tuple(
        str(route)
        for route in _routes(taken)
        if any(route.version == own.version and route.overlaps(own) for own in network.subnets)
    )


def _routes(taken: Iterable[str]) -> Iterator[Subnet]:
    for text in taken:
        try:
            route = ipaddress.ip_network(text, strict=False)
        except ValueError:
            continue
        if route.prefixlen >= _SHORTEST[route.version]:
            yield route


def _free4(routes: Sequence[Subnet], prefix: int, seed: str) -> Subnet | None:
    """The first free one from where the seed says, round once; steps over whole routes."""
    taken = sorted((int(route[0]), int(route[-1])) for route in routes)
    for pool in map(ipaddress.IPv4Network, _POOLS):
        if prefix < pool.prefixlen:
            continue
        size = 1 << (32 - prefix)
        count = pool.num_addresses // size
        start = int.from_bytes(_digest(seed, 0)[:8]) % count if seed else 0
        first, end = int(pool[0]), int(pool[-1]) + 1
        middle = first + start * size
        for low, high in ((middle, end), (first, middle)):
            base = low
            while base < high:
                last = max((b for a, b in taken if a < base + size and b >= base), default=-1)
                if last < 0:
                    return ipaddress.IPv4Network((base, prefix))
                base = (last // size + 1) * size
    return None


def _free6(routes: Sequence[Subnet], seed: str) -> Subnet | None:
    """RFC 4193 section 3.2: fd, 40 bits that look random, then a subnet of 16 bits."""
    for attempt in range(1000):
        prefix = b"\xfd" + _digest(seed, attempt)[:7]
        candidate = ipaddress.IPv6Network((int.from_bytes(prefix) << 64, 64))
        if not any(candidate.overlaps(route) for route in routes):
            return candidate
    return None


def _digest(seed: str, attempt: int) -> bytes:
    return hashlib.sha256(f"{seed}/{attempt}".encode()).digest()


def free_address4(network: Network, taken: Collection[str]) -> str:
    """The lowest address of the DHCP range (without one: of the subnet) that is not in `taken`.

    :raise Conflict: all are.
    """
    subnet = ipaddress.IPv4Network(network.subnet4)
    ends = network.dhcp or DhcpRange(first=str(subnet[2]), last=str(subnet[-2]))
    first, last = ipaddress.IPv4Address(ends.first), ipaddress.IPv4Address(ends.last)
    used = {int(ipaddress.IPv4Address(text)) for text in taken}
    for number in range(int(first), int(last) + 1):
        if number not in used:
            return str(ipaddress.IPv4Address(number))
    raise Conflict(
        f"Network {network.name} has no address left between {first} and {last}.",
        hint="Remove guests that are not needed, or widen its DHCP range.",
    )


def free_address6(network: Network, taken: Collection[str]) -> str:
    """The lowest address from ::1000 on that is not in `taken`."""
    subnet = ipaddress.IPv6Network(network.subnet6)
    used = {int(ipaddress.IPv6Address(text)) for text in taken}
    number = int(subnet.network_address) + 0x1000
    while number in used:
        number += 1
    return str(ipaddress.IPv6Address(number))


def check_lease(lease: Lease, network: Network, others: Sequence[Lease] = ()) -> None:
    """:raise InvalidInput: an address is not one of the network. :raise Conflict: it is taken."""
    for version, field, text, own, gateway in (
        (4, "address4", lease.address4, network.subnet4, network.gateway4),
        (6, "address6", lease.address6, network.subnet6, network.gateway6),
    ):
        if not text:
            continue
        _check_address(text, version, own, gateway, network, field)
        for other in others:
            if other.id != lease.id and other.network == network.id and text in _addresses(other):
                raise Conflict(
                    f"{text} belongs to another guest of network {network.name}.",
                    hint="Choose another address, or none.",
                    guest=other.guest,
                )


def _check_address(
    text: str, version: int, own: str, gateway: str, network: Network, field: str
) -> None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise InvalidInput(f"{text!r} is not an IP address.", field=field) from None
    if address.version != version or str(address) != text:
        raise InvalidInput(
            f"{text!r} is not an IPv{version} address in its usual spelling.", field=field
        )
    if network.kind is NetworkKind.BRIDGED:
        return
    subnet = ipaddress.ip_network(own) if own else None
    ends = {subnet[0], subnet[-1]} if subnet else set()
    if subnet is None or address not in subnet or text == gateway or address in ends:
        raise InvalidInput(
            f"{text} is not an address for a guest of network {network.name} ({own or 'none'}).",
            field=field,
        )


def _addresses(lease: Lease) -> tuple[str, ...]:
    return tuple(text for text in (lease.address4, lease.address6) if text)


def made_up_address(prefix: str, mac: str) -> str:
    """The address that a guest makes up from its MAC in a /64 (RFC 4291 appendix A)."""
    octets = [int(part, 16) for part in mac.split(":")]
    octets[0] ^= 2  # the universal/local bit is inverted
    tail = bytes([*octets[:3], 0xFF, 0xFE, *octets[3:]])
    base = int(ipaddress.IPv6Network(prefix).network_address)
    return str(ipaddress.IPv6Address(base | int.from_bytes(tail)))


def link_local(mac: str) -> str:
    """The link-local address that a guest makes up from its MAC."""
    return made_up_address("fe80::/64", mac)
