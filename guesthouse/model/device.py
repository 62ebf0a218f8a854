"""Disks and network cards of a guest."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from guesthouse.errors import Conflict, InvalidInput
from guesthouse.model.document import Noun
from guesthouse.model.impairment import NicImpairment

# Locally administered unicast prefix of our own (IEEE 802: second-least bit of the first octet).
MAC_PREFIX = "52:67:68"
MAX_CARDS = 8
_SSH = 22
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
# Bridges of the house have the first; its end of a guest's card has the second.
_HOUSE_MACS = ("52:67:69:", "fe:")
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


class Link(StrEnum):
    """Of a card: `down` is as if its cable were pulled."""

    UP = "up"
    DOWN = "down"


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
    :ivar index: its number among the guest's cards, by which it is called. It stays when others
        go. Below 0: not numbered yet; a guest's spec numbers it (see `numbered`).
    :ivar plug: the machine's hot-plug port that it is in; null: it is soldered in, and cannot be
        pulled while the guest runs.
    :ivar address4: fixed; empty: the house chooses one, which it keeps. `address6`: likewise.
    :ivar impairment: what is done to its packets on purpose, on a network of the house.
    """

    mac: str
    network: str = "builtin"
    ports: tuple[Publish, ...] = ()
    index: int = -1
    plug: int | None = None
    address4: str = ""
    address6: str = ""
    link: Link = Link.UP
    impairment: NicImpairment = NicImpairment()

    @property
    def fixed(self) -> tuple[str, ...]:
        """The addresses that its user chose."""
        return tuple(text for text in (self.address4, self.address6) if text)


def ssh_login(nics: Iterable[Nic]) -> str:
    """The command that logs in over a published port; empty where none leads to port 22."""
    for port in (port for nic in nics for port in nic.ports):
        if port.guest_port == _SSH and port.protocol is Protocol.TCP:
            host = _NEAR.get(port.host_ip, port.host_ip)
            return f"ssh -p {port.host_port} USER@{host}"
    return ""


def numbered(nics: Iterable[Nic]) -> tuple[Nic, ...]:
    """Those without a number get the lowest that is free: in old documents, their place."""
    nics = tuple(nics)
    taken = {nic.index for nic in nics}
    free = (index for index in range(len(nics)) if index not in taken)
    return tuple(
        nic if nic.index >= 0 else msgspec.structs.replace(nic, index=next(free)) for nic in nics
    )


def free_index(nics: Iterable[Nic]) -> int:
    """Number of a card that comes. :raise Conflict: there are as many as can be."""
    taken = {nic.index for nic in nics}
    for index in range(MAX_CARDS):
        if index not in taken:
            return index
    raise Conflict(
        f"The guest has {MAX_CARDS} network cards already, as many as can be.",
        hint="Remove one first: guest nic rm",
    )


def free_plug(nics: Iterable[Nic]) -> int:
    """The lowest port of the machine that no card is in; there are as many as cards can be."""
    taken = {nic.plug for nic in nics}
    return next(port for port in range(MAX_CARDS) if port not in taken)


def check_mac(text: str, *, field: str = "mac") -> str:
    """The address as it is stored. :raise InvalidInput: no card can have it."""
    mac = text.strip().lower().replace("-", ":")
    if not _MAC.fullmatch(mac) or mac == "00:00:00:00:00:00":
        raise InvalidInput(
            f"{text!r} is not a MAC address.", hint=f"Write six bytes: {new_mac()}", field=field
        )
    if int(mac[:2], 16) & 1:
        raise InvalidInput(
            f"{mac} is the address of a group, not of one card.",
            hint=f"The first byte must be even: {new_mac()}",
            field=field,
        )
    if mac.startswith(_HOUSE_MACS):
        raise InvalidInput(
            f"{mac} begins as the house's own addresses do.",
            hint=f"Use another, for example {new_mac()}",
            field=field,
        )
    return mac


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
