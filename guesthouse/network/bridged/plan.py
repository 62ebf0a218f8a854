"""What is done to the host for a bridged network, and how it is taken back: lines for `ip -batch`.

Pure: the same interface gives the same lines. Those that take back may be run from whatever a crash
left, again and again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from guesthouse.model.document import Noun
from guesthouse.network.bridged.hostlink import HostLink


class Names(Noun, kw_only=True, frozen=True):
    """Interfaces of a bridged network. On the host: `bridge`, `vlan` and `port`, one end of a pair
    whose other end is `inner`, a port of the network's bridge in the house's namespace."""

    bridge: str
    vlan: str
    port: str
    inner: str

    @classmethod
    def of(cls, network: str) -> Names:
        """:param network: id; the random tail keeps them apart, as for `Network.bridge`."""
        tail = network[-8:].lower()
        return cls(bridge=f"ghb-{tail}", vlan=f"ghv-{tail}", port=f"ghp-{tail}", inner=f"u-{tail}")


class Plan(Noun, kw_only=True, frozen=True):
    """:ivar interface: of the host. :ivar bridge: the one that it becomes a port of.

    :ivar forward: lines that bring it there. :ivar back: lines that take all of it back.
    :ivar gateways: whom the host must still reach afterwards, if it did before.
    """

    interface: str
    bridge: str
    forward: tuple[str, ...]
    back: tuple[str, ...]
    gateways: tuple[str, ...] = ()


def move_plan(link: HostLink, names: Names) -> Plan:
    """The interface becomes a port of a new bridge, which takes over its MAC, so that nothing in
    the network outside sees a difference, its addresses and its routes."""
    bridge = names.bridge
    forward = [
        f"link add {bridge} address {link.mac} mtu {link.mtu} type bridge "
        "stp_state 0 forward_delay 0",
        f"link set dev {bridge} up",
        f"link set dev {link.name} master {bridge}",
        *(f"address delete {_bare(address)} dev {link.name}" for address in link.addresses),
        *(f"address add {address} dev {bridge}" for address in link.addresses),
        *(f"route replace {route} dev {bridge}" for route in link.routes),
    ]
    return Plan(
        interface=link.name,
        bridge=bridge,
        forward=tuple(forward),
        back=back_lines(link, names),
        gateways=link.gateways,
    )


def back_lines(link: HostLink, names: Names) -> tuple[str, ...]:
    """To the interface with what is of the bridge, also from a state in the middle.

    :param link: the interface's name, with the addresses and routes that it shall have.
    """
    return (
        f"link delete dev {names.port}",
        f"link set dev {link.name} nomaster",
        f"link delete dev {names.bridge}",
        f"link set dev {link.name} up",
        *(f"address replace {address} dev {link.name}" for address in link.addresses),
        *(f"route replace {route} dev {link.name}" for route in link.routes),
    )


def tagged_lines(interface: str, vlan: int, names: Names, there: Collection[str]) -> list[str]:
    """A bridge of frames with that tag alone; the interface keeps all that it has.

    :param there: interfaces of the host.
    """
    lines = []
    if names.bridge not in there:
        lines.append(f"link add {names.bridge} type bridge stp_state 0 forward_delay 0")
        lines.append(f"link set dev {names.bridge} addrgenmode none")
    if names.vlan not in there:
        lines.append(f"link add link {interface} name {names.vlan} type vlan id {vlan}")
        lines.append(f"link set dev {names.vlan} addrgenmode none")
    lines.append(f"link set dev {names.vlan} master {names.bridge} up")
    return [*lines, f"link set dev {names.bridge} up"]


def port_lines(
    names: Names, bridge: str, mtu: int, holder: int, there: Collection[str], *, inside: bool
) -> list[str]:
    """A port of `bridge`, whose other end is in the namespace of the process `holder`.

    :param there: interfaces of the host. :param inside: the other end is there already.
    """
    lines = []
    if not inside or names.port not in there:
        lines += [f"link delete dev {names.port}"] if names.port in there else []
        # A bridge that was given no MAC takes the lowest of its ports': never this one.
        mac = "fe:67:6b:" + hashlib.sha256(names.port.encode()).digest()[:3].hex(":")
        lines.append(
            f"link add {names.port} address {mac} mtu {mtu} type veth "
            f"peer name {names.inner} mtu {mtu} netns {holder}"
        )
        lines.append(f"link set dev {names.port} addrgenmode none")
    return [*lines, f"link set dev {names.port} mtu {mtu} master {bridge} up"]


def _bare(address: str) -> str:
    """What names it: without how long it lives and the like."""
    words = address.split()
    return " ".join(words[:3]) if words[1:2] == ["peer"] else words[0]
