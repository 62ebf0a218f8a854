"""Ports of this host: whether one can be published, and who holds it when not."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import pwd
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from guesthouse.errors import EngineError, Forbidden, InvalidInput, PortTaken, Shortage
from guesthouse.model.device import Protocol, Publish

Taken = Mapping[Publish, str]
"""Ports that the house itself has given away, each with the name of the guest."""

_ATTEMPTS = 32
_LISTEN = "0A"
"""State TCP_LISTEN in /proc/net/tcp (include/net/tcp_states.h)."""


async def reserve(port: Publish, taken: Taken, *, privileged: bool) -> Publish:
    """`port` with a real host port that can be bound now; 0 becomes a free one.

    The port is not held: whoever binds it later may still be beaten to it.

    :param privileged: whether the guest's process may bind ports below
        net.ipv4.ip_unprivileged_port_start.
    :raise PortTaken: names the holder where that can be told. :raise Forbidden: a privileged port.
    :raise InvalidInput: no address of this host. :raise Shortage: no port is free.
    """
    if port.host_port:
        _check_privilege(port, privileged)
        guest = _own_holder(port, taken)
        if guest:
            raise _taken(port, f"guest {guest}")
        if not await asyncio.to_thread(_can_bind, port):
            raise _taken(port, await find_holder(port.host_ip, port.host_port, port.protocol))
        return port
    for _ in range(_ATTEMPTS):
        candidate = msgspec.structs.replace(port, host_port=_free_port(port))
        if not _own_holder(candidate, taken):
            return candidate
    raise Shortage(f"No free port was found on {port.host_ip}.", hint="Name one: --publish 8080:80")


def no_ipv6(port: Publish) -> InvalidInput:
    """For a network that cannot publish on such an address."""
    return InvalidInput(
        f"The builtin network cannot publish on the IPv6 address {port.host_ip}.",
        hint="Publish on an IPv4 address of the host: 127.0.0.1, 0.0.0.0 or that of one interface.",
        field="publish",
    )


async def find_holder(
    ip: str, port: int, protocol: Protocol, *, taken: Taken | None = None
) -> str | None:
    """Who holds a port: `guest web`, `process nginx (pid 812)`, `a process of user www-data`; None
    when nobody does as far as this network namespace shows.
    """
    wanted = Publish(host_ip=ip, host_port=port, guest_port=1, protocol=protocol)
    guest = _own_holder(wanted, taken or {})
    if guest:
        return f"guest {guest}"
    return await asyncio.to_thread(_foreign_holder, wanted)


def unprivileged_port_start() -> int:
    """The first port that any process may bind (ip(7), ip_unprivileged_port_start)."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    except (OSError, ValueError):
        return 1024


def overlap(one: Publish, other: Publish) -> bool:
    """Whether two published ports cannot be open at once. Guest ports do not matter."""
    if one.protocol != other.protocol or one.host_port != other.host_port or not one.host_port:
        return False
    a, b = _address(one.host_ip), _address(other.host_ip)
    # Ours take one family each (IPV6_V6ONLY), so the two wildcards go together.
    return a.version == b.version and _covers(a, b)


class _Bound(NamedTuple):
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    uid: int
    inode: str


def _check_privilege(port: Publish, privileged: bool) -> None:
    start = unprivileged_port_start()
    if privileged or port.host_port >= start:
        return
    raise Forbidden(
        f"Port {port.host_port} is privileged: what listens for this guest is an ordinary user's, "
        f"which may open ports from {start} on.",
        hint=f"Publish a higher port, such as {port.host_port + 8000}:{port.guest_port}, or allow "
        f"all programs of this host lower ones: "
        f"sysctl net.ipv4.ip_unprivileged_port_start={port.host_port}",
        field="publish",
    )


def _own_holder(port: Publish, taken: Taken) -> str:
    return next((name for other, name in taken.items() if overlap(port, other)), "")


def _taken(port: Publish, holder: str | None) -> PortTaken:
    return PortTaken(
        f"Port {port.host_ip}:{port.host_port}/{port.protocol.value} is held by "
        f"{holder or 'another program'}.",
        hint="Publish another port, or stop the holder.",
        host_ip=port.host_ip,
        host_port=port.host_port,
        protocol=port.protocol.value,
        holder=holder or "",
    )


def _socket(port: Publish) -> socket.socket:
    family = socket.AF_INET6 if _address(port.host_ip).version == 6 else socket.AF_INET
    udp = port.protocol is Protocol.UDP
    sock = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if not udp:
        # As the engines do: connections in TIME_WAIT are no obstacle, listeners are. For UDP the
        # option would mean sharing the port with its holder.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return sock


def _can_bind(port: Publish) -> bool:
    with _socket(port) as sock:
        try:
            sock.bind((port.host_ip, port.host_port))
            if port.protocol is Protocol.TCP:
                sock.listen(1)  # two may bind with SO_REUSEADDR, one may listen
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            if error.errno == errno.EACCES:
                # This process may not, so nothing is learnt; the guest's own may.
                return True
            raise _bind_error(port, error) from error
    return True


def _free_port(port: Publish) -> int:
    with _socket(port) as sock:
        try:
            sock.bind((port.host_ip, 0))
        except OSError as error:
            raise _bind_error(port, error) from error
        return int(sock.getsockname()[1])


def _bind_error(port: Publish, error: OSError) -> Exception:
    if error.errno == errno.EADDRNOTAVAIL:
        return InvalidInput(
            f"{port.host_ip} is not an address of this host.",
            hint="Use 127.0.0.1, 0.0.0.0 or one that 'ip address' shows.",
            field="publish",
        )
    if error.errno == errno.EADDRINUSE:
        return Shortage(f"No port of {port.host_ip} is free.", hint="Stop some programs.")
    return EngineError(f"Port {port} could not be tried: {error.strerror}.")


def _foreign_holder(wanted: Publish) -> str | None:
    address = _address(wanted.host_ip)
    for bound in _bound(wanted.protocol):
        if bound.port == wanted.host_port and _covers(address, bound.address):
            owner = _process_of(bound.inode)
            return owner or f"a process of user {_user_name(bound.uid)}"
    return None


def _bound(protocol: Protocol) -> Iterator[_Bound]:
    """Sockets that hold a port. proc_net_tcp in the kernel's documentation has the columns."""
    for name in (protocol.value, f"{protocol.value}6"):
        try:
            lines = Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if protocol is Protocol.TCP and fields[3] != _LISTEN:
                continue
            packed, _, port = fields[1].rpartition(":")
            yield _Bound(_unpack(packed), int(port, 16), int(fields[7]), fields[9])


def _unpack(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Each group of 32 bits is printed as a number in the host's byte order."""
    groups = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    raw = b"".join(group.to_bytes(4, sys.byteorder) for group in groups)
    found = ipaddress.ip_address(raw)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def _process_of(inode: str) -> str | None:
    """The process that has the socket open, if we may look into it."""
    target = f"socket:[{inode}]"
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            for fd in (folder / "fd").iterdir():
                if str(fd.readlink()) == target:
                    name = (folder / "comm").read_text().strip()
                    return f"process {_printable(name)} (pid {folder.name})"
        except OSError:
            continue  # it ended, or it is another user's
    return None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(text)


def _covers(
    one: ipaddress.IPv4Address | ipaddress.IPv6Address,
    other: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> bool:
    """Whether sockets on the two addresses get into each other's way.

    The IPv6 wildcard usually takes IPv4 as well; /proc does not show whether it does.
    """
    if one.version != other.version:
        six = one if one.version == 6 else other
        return six.is_unspecified
    return one == other or one.is_unspecified or other.is_unspecified


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _printable(name: str) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", name)
