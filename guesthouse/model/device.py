"""Disks and network cards of a guest."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from enum import StrEnum

from guesthouse.errors import InvalidInput
from guesthouse.model.document import Noun

# Locally administered unicast prefix of our own (IEEE 802: second-least bit of the first octet).
MAC_PREFIX = "52:67:68"
_SSH = 22
# How this host reaches what listens everywhere.
_NEAR = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # nothing is bound here


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"


class DiskDevice(StrEnum):
    """What a disk looks like inside. `cdrom`: a disc in a drive, which boots after the disks."""

    DISK = "disk"
    CDROM = "cdrom"


class Disk(Noun, kw_only=True, frozen=True):
    """A disk of a guest.

    :ivar name: unique within the guest; `root` is the first.
    :ivar volume: id of the top layer, the only one that the guest writes.
    :ivar size: virtual size in bytes.
    :ivar serial: what the guest sees (at most 20 characters, the limit of virtio-blk).
    """

    name: str
    volume: str
    size: int
    read_only: bool = False
    serial: str = ""
    device: DiskDevice = DiskDevice.DISK


class Publish(Noun, kw_only=True, frozen=True):
    """A port of the host that leads to a port of the guest.

    :ivar host_port: 0 asks for any free port; stored documents hold the real one.
    """

    host_ip: str = "127.0.0.1"
    host_port: int
    guest_port: int
    protocol: Protocol = Protocol.TCP

    def __str__(self) -> str:
        host = f"[{self.host_ip}]" if ":" in self.host_ip else self.host_ip
        return f"{host}:{self.host_port}:{self.guest_port}/{self.protocol.value}"


class PortRequest(Publish, kw_only=True, frozen=True):
    """A port that somebody asks for.

    :ivar host_ip: empty is 127.0.0.1; the system's house wants an address to be named.
    """

    host_ip: str = ""


class Nic(Noun, kw_only=True, frozen=True):
    """A network card.

    :ivar mac: stored, never derived from a name.
    :ivar network: `builtin` is QEMU's own user networking, one per guest; else the id of a network
        of the house, which a new name does not change.
    """

    mac: str
    network: str = "builtin"
    ports: tuple[Publish, ...] = ()


def ssh_login(nics: Iterable[Nic]) -> str:
    """The command that logs in over a published port; empty where none leads to port 22."""
    for port in (port for nic in nics for port in nic.ports):
        if port.guest_port == _SSH and port.protocol is Protocol.TCP:
            host = _NEAR.get(port.host_ip, port.host_ip)
            return f"ssh -p {port.host_port} USER@{host}"
    return ""


def new_mac() -> str:
    """A random address with our prefix."""
    return MAC_PREFIX + "".join(f":{byte:02x}" for byte in os.urandom(3))


def parse_publish(text: str, *, field: str = "publish") -> PortRequest:
    """`[ip:]host:guest[/udp]`, e.g. `8080:80`, `0.0.0.0:53:53/udp`, `[::1]:8080:80`.

    :raise InvalidInput: not of that shape, a port out of range, or not an address.
    """
    body, _, suffix = text.partition("/")
    try:
        protocol = Protocol(suffix or "tcp")
        rest, guest = body.rsplit(":", 1)
        address, _, host = rest.rpartition(":")
        if address.startswith("[") and address.endswith("]"):
            address = address[1:-1]
        if address:
            ipaddress.ip_address(address)
        port = PortRequest(
            host_ip=address, host_port=int(host), guest_port=int(guest), protocol=protocol
        )
    except ValueError:
        raise InvalidInput(
            f"{text!r} does not say which port of the host leads to which of the guest.",
            hint="Write [ip:]host:guest[/udp], for example 8080:80 or 0.0.0.0:5353:53/udp.",
            field=field,
        ) from None
    _check_ports(port, field)
    return port


def named_port(port: PortRequest, *, must_name: bool, field: str = "publish") -> Publish:
    """The port with its address. :param must_name: this house takes none for granted.

    :raise InvalidInput: no address is named where one must be, or what `check_publish` says.
    """
    if must_name and not port.host_ip:
        said = f"{port.host_port}:{port.guest_port}"
        raise InvalidInput(
            f"Say at which of this host's addresses port {port.host_port} shall be: the system's "
            "house opens none on its own account.",
            hint=f"127.0.0.1:{said} for this host alone, 0.0.0.0:{said} for everybody.",
            field=field,
        )
    found = Publish(
        host_ip=port.host_ip or "127.0.0.1",
        host_port=port.host_port,
        guest_port=port.guest_port,
        protocol=port.protocol,
    )
    check_publish(found, field=field)
    return found


def check_publish(port: Publish, *, field: str = "publish") -> None:
    """:raise InvalidInput: an address or a port that cannot be."""
    try:
        ipaddress.ip_address(port.host_ip)
    except ValueError:
        raise InvalidInput(f"{port.host_ip!r} is not an IP address.", field=field) from None
    _check_ports(port, field)


def _check_ports(port: Publish, field: str) -> None:
    for number, low in ((port.host_port, 0), (port.guest_port, 1)):
        if not low <= number <= 65535:
            raise InvalidInput(
                f"{number} is not a port.", hint=f"Ports are {low} to 65535.", field=field
            )
