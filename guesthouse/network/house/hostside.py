"""The host: its addresses, which guests reach only as allowed; routes; resolver; their changes."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import socket
from collections.abc import Callable
from typing import NamedTuple

from guesthouse.host.namespace.entering import tool_environment
from guesthouse.host.spawn import run
from guesthouse.network.house import resolver
from guesthouse.network.house.links import LIST, Link, read_links
from guesthouse.network.house.resolver import Resolver, ResolverWatch

# linux/rtnetlink.h: RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE
_GROUPS = 0x10 | 0x100 | 0x40 | 0x400
_ROUTES = ("ip", "-json", "route", "show", "table", "all")
_HOUSES = re.compile(r"ghu-[0-9a-f]{8}")
"""Ends of houses' direct ways to this host, see `direct`."""
_SETTLE_SECONDS = 1.5
"""Addresses come in bursts: a VPN, a docking station. And the uplink asks the resolver from before
for up to a second (libslirp's get_dns_addr), whose answers nobody shall remember."""


class HostSide(NamedTuple):
    """:ivar addresses: of the host. :ivar networks: that it is attached to, as CIDRs.

    :ivar resolver: whom it asks for names.
    """

    addresses: tuple[str, ...]
    networks: tuple[str, ...]
    resolver: Resolver = Resolver()


async def look() -> HostSide:
    """:raise HostLacks: `ip` is not installed. :raise ToolFailed:"""
    done = await run(LIST, env=tool_environment())
    asked = await asyncio.to_thread(resolver.look)
    return host_side(read_links(done.out))._replace(resolver=asked)


def host_side(links: dict[str, Link]) -> HostSide:
    """Without loopback and link-local ones, which the rules know of themselves."""
    found = sorted({a for link in links.values() for a in link.addresses})
    interfaces = [ipaddress.ip_interface(text) for text in found]
    own = [i for i in interfaces if not i.is_loopback and not i.is_link_local]
    attached = {str(i.network) for i in own if i.network.num_addresses > 1}
    return HostSide(tuple(str(i.ip) for i in own), tuple(sorted(attached)))


async def routes() -> tuple[str, ...]:
    """Where the host's routes lead, as CIDRs and `default`: subnets of ours must not be there.

    :raise HostLacks: `ip` is not installed. :raise ToolFailed:
    """
    env = tool_environment()
    found: dict[str, None] = {}
    for family in ("-4", "-6"):
        done = await run([_ROUTES[0], family, *_ROUTES[1:]], env=env)
        for route in json.loads(done.out or b"[]"):
            if "gateway" in route and _HOUSES.fullmatch(route.get("dev", "")):
                continue  # to a network of a house's own
            found[str(route.get("dst", ""))] = None
    return tuple(found)


class Changes:
    """Tells when addresses, routes or the resolver of the host change, until it is closed."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._soon: asyncio.TimerHandle | None = None
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, _GROUPS))
        self._loop.add_reader(self._socket, self._read)
        self._resolver = ResolverWatch(self._tell_soon)

    def close(self) -> None:
        self._resolver.close()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        if self._soon is not None:
            self._soon.cancel()

    def _read(self) -> None:
        try:
            self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            pass  # more came than the socket holds (ENOBUFS): something changed
        self._tell_soon()

    def _tell_soon(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
        self._soon = self._loop.call_later(_SETTLE_SECONDS, self._changed)
