"""Ports of the host that lead to guests: by the uplink, some by a relay to it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from guesthouse.errors import EngineError, GuesthouseError, InvalidInput
from guesthouse.host.launcher import Confinement, confine, tool_identity
from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.model.device import Protocol, Publish
from guesthouse.network.house.seats import Seat
from guesthouse.network.house.services import Services, start
from guesthouse.network.house.uplink import Refused, Uplink
from guesthouse.network.ports import reserve
from guesthouse.network.rules.ruleset import Published

log = logging.getLogger(__name__)

PREFIX = "relay-"
_RELAY = Path(__file__).parent / "relay.py"
_NEAR = "127.0.0.1"
_FIRST_UPLINK_PORT = 1024
_BACKLOG = 128

Where = tuple[Protocol, str, int]


class Opening(NamedTuple):
    """An open port. :ivar port: of the host. :ivar ident: what the uplink calls its forward.

    :ivar uplink_port: to which it is led at the uplink's address in the house.
    :ivar near: the port of 127.0.0.1 to which a relay leads it; 0 without a relay.
    """

    port: Publish
    ident: int
    uplink_port: int
    near: int = 0


def where(port: Publish) -> Where:
    return port.protocol, port.host_ip, port.host_port


class Publishing:
    """The open ports of the house. Whoever calls has seen to it that the uplink runs."""

    def __init__(self, namespace: HouseNamespace, services: Services, uplink: Uplink) -> None:
        self._namespace, self._services, self._uplink = namespace, services, uplink
        self._open: dict[Where, Opening] = {}
        self._am_root = os.geteuid() == 0

    async def find(self, seats: Iterable[Seat]) -> None:
        """Take up what a daemon before us opened for these seats; `settle` closes the rest."""
        wanted = {where(port): port for seat in seats for port in seat.ports}
        known = {(f.proto, f.host_addr, f.host_port): f for f in await self._uplink.forwards()}
        self._open.clear()
        used: set[int] = set()
        for place, port in wanted.items():
            near = self._relay_to(port)
            ip, number = (_NEAR, near) if near else (port.host_ip, port.host_port)
            found = known.get((port.protocol.value, ip, number))
            if found is not None:
                self._open[place] = Opening(port, found.id, found.guest_port, near)
                used.add(found.id)
        for forward in known.values():
            if forward.id not in used:
                await self._uplink.remove(forward.id)

    async def settle(self, seats: Iterable[Seat], *, lost: bool) -> dict[Where, GuesthouseError]:
        """Exactly the ports of these seats are open; answers those that are not, and why.

        :param lost: the uplink was started anew and listens on nothing.
        """
        wanted = {where(port): (port, seat) for seat in seats for port in seat.ports}
        if lost:
            await self._open_again()
        for place, opening in list(self._open.items()):
            if place not in wanted:
                await self._close(opening)
        for name in self._services.names:
            if name.startswith(PREFIX) and name not in map(relay_name, self._open):
                await self._services.stop(name)
        failed: dict[Where, GuesthouseError] = {}
        taken = {port: seat.name for port, seat in wanted.values()}
        for place, (port, seat) in wanted.items():
            try:
                if not self._is_open(place):
                    others = {p: name for p, name in taken.items() if where(p) != place}
                    await self.open(port, seat, others)
            except GuesthouseError as error:
                failed[place] = error
        return failed

    async def open(self, port: Publish, seat: Seat, taken: Mapping[Publish, str]) -> None:
        """:raise PortTaken: names the holder. :raise Forbidden: a privileged port.

        :raise InvalidInput: no such address here, or the guest has no IPv4 address.
        """
        if not seat.address(4):
            raise InvalidInput(
                f"Guest {seat.name} has no IPv4 address, to which alone ports can be led.",
                hint="Give its network an IPv4 subnet.",
                field="publish",
            )
        await reserve(port, taken, privileged=self._am_root)
        relayed = _needs_relay(port)
        self._open[where(port)] = await (self._relay(port) if relayed else self._direct(port))

    async def close(self, port: Publish) -> None:
        """Nothing happens when it is not open."""
        opening = self._open.get(where(port))
        if opening is not None:
            await self._close(opening)

    def published(self, seats: Iterable[Seat]) -> tuple[Published, ...]:
        """What the rules lead on."""
        return tuple(
            _published(self._open[where(port)], seat)
            for seat in seats
            for port in seat.ports
            if where(port) in self._open
        )

    def forget(self) -> None:
        """The uplink is gone, and everything with it."""
        self._open.clear()

    def _is_open(self, place: Where) -> bool:
        opening = self._open.get(place)
        if opening is None:
            return False
        return not opening.near or self._services.of(relay_name(place)) is not None

    def _uplink_port(self, port: Publish) -> int:
        """The port's own number if nobody has it: that helps whoever reads the rules."""
        used = {o.uplink_port for o in self._open.values() if o.port.protocol is port.protocol}
        if port.host_port not in used:
            return port.host_port
        return next(n for n in range(_FIRST_UPLINK_PORT, 65536) if n not in used)

    async def _direct(self, port: Publish) -> Opening:
        uplink_port = self._uplink_port(port)
        try:
            ident = await self._uplink.add(
                port.protocol.value, port.host_ip, port.host_port, uplink_port
            )
        except Refused as why:
            # Whoever was faster can be named; the uplink says the same for all reasons.
            await reserve(port, {}, privileged=self._am_root)
            raise EngineError(f"The port {port} was not published: {why}.") from None
        return Opening(port, ident, uplink_port)

    async def _relay(self, port: Publish) -> Opening:
        place = where(port)
        await self._services.stop(relay_name(place))
        before = self._open.pop(place, None)
        if before is not None:
            await self._uplink.remove(before.ident)
        near = await reserve(
            msgspec.structs.replace(port, host_ip=_NEAR, host_port=0), {}, privileged=False
        )
        opening = (await self._direct(near))._replace(port=port, near=near.host_port)
        try:
            await self._start_relay(opening)
        except BaseException:
            await self._uplink.remove(opening.ident)
            raise
        return opening

    async def _start_relay(self, opening: Opening) -> None:
        port, holder = opening.port, self._namespace.facts.pid
        kind = port.protocol.value
        subuid, subgid = await asyncio.to_thread(_ranges)
        who = tool_identity(am_root=self._am_root, subuid=subuid, subgid=subgid)
        argv = [sys.executable, "-I", "-S", str(_RELAY), kind, "3", str(opening.near), str(holder)]
        confined = confine(argv, Confinement(uid=who.uid, gid=who.gid), am_root=self._am_root)
        with _listen(port) as listening:
            pid = start(confined, {3: listening.fileno()})
        await self._services.add(relay_name(where(port)), pid, str(opening.near))

    async def _close(self, opening: Opening) -> None:
        place = where(opening.port)
        if opening.near:
            await self._services.stop(relay_name(place))
        await self._uplink.remove(opening.ident)
        self._open.pop(place, None)

    async def _open_again(self) -> None:
        """The same ports at a new uplink, whose rules are the same; relays go on."""
        for place, opening in list(self._open.items()):
            port = opening.port
            ip, number = (_NEAR, opening.near) if opening.near else (port.host_ip, port.host_port)
            try:
                ident = await self._uplink.add(port.protocol.value, ip, number, opening.uplink_port)
            except Refused:
                log.warning("the port %s was lost when the uplink was started again", port)
                del self._open[place]
                continue
            self._open[place] = opening._replace(ident=ident)

    def _relay_to(self, port: Publish) -> int:
        service = self._services.of(relay_name(where(port)))
        return int(service.made_of) if service is not None else 0


def _needs_relay(port: Publish) -> bool:
    """The uplink listens on no IPv6 address, and answers nobody on loopback by UDP: that would be
    the host's loopback, which it keeps shut (libslirp, sotranslate_out)."""
    address = ipaddress.ip_address(port.host_ip)
    local = address.is_loopback or address.is_unspecified
    return address.version == 6 or (local and port.protocol is Protocol.UDP)


def relay_name(place: Where) -> str:
    protocol, ip, number = place
    return f"{PREFIX}{protocol.value}-{ip}-{number}"


def _published(opening: Opening, seat: Seat) -> Published:
    return Published(
        port=opening.uplink_port,
        protocol=opening.port.protocol,
        address=seat.address(4),
        guest_port=opening.port.guest_port,
    )


def _listen(port: Publish) -> socket.socket:
    """:raise EngineError: somebody was faster."""
    udp = port.protocol is Protocol.UDP
    family = socket.AF_INET6 if ":" in port.host_ip else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if not udp:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((port.host_ip, port.host_port))
        if not udp:
            sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise EngineError(f"The port {port} was not published: {error.strerror}.") from error
    return sock


def _ranges() -> tuple[str, str]:
    texts = []
    for file in (Path("/etc/subuid"), Path("/etc/subgid")):
        try:
            texts.append(file.read_text())
        except OSError:
            texts.append("")
    return texts[0], texts[1]
