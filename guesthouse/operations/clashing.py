"""Subnets of networks that have come to lie where routes of this host lead.

A subnet is free when its network is made. Later a VPN comes up, or the laptop is at another place:
then guests cannot reach what is there under the same addresses. It is told, not mended: guests have
their addresses in the subnet.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress

from guesthouse.errors import GuesthouseError
from guesthouse.model.checkup import Check, Health
from guesthouse.model.network import Network, clashes
from guesthouse.network.house.hostside import Changes

log = logging.getLogger(__name__)

Routes = Callable[[], Awaitable[Sequence[str]]]


class Clashes:
    """Looks again whenever routes of the host change, once it is started.

    :param networks: all that there are. :param routes: of the host, as CIDRs.
    """

    def __init__(self, networks: Callable[[], Iterable[Network]], routes: Routes) -> None:
        self._networks, self._routes = networks, routes
        self._found: dict[str, tuple[str, ...]] = {}
        self._changes: Changes | None = None
        self._looking: asyncio.Task[None] | None = None

    def of(self, network: str) -> tuple[str, ...]:
        """Routes that lead into its subnets, as CIDRs, by the last look. :param network: id."""
        return self._found.get(network, ())

    async def start(self) -> None:
        with suppress(OSError):  # without netlink nobody tells; `guest doctor` looks by itself
            self._changes = Changes(self._soon)
        await self._look_quietly()

    async def close(self) -> None:
        if self._changes is not None:
            self._changes.close()
            self._changes = None
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def look(self) -> dict[str, tuple[str, ...]]:
        """By the network's id; only those that clash. :raise GuesthouseError: `ip` does not say."""
        routes = await self._routes()
        networks = list(self._networks())
        found = {one.id: hit for one in networks if (hit := clashes(one, routes))}
        for network in networks:
            if network.id in found and found[network.id] != self._found.get(network.id):
                log.warning("%s", said(network, found[network.id]))
        self._found = found
        return found

    async def checks(self) -> list[Check]:
        """For `guest doctor`: nothing where there are no networks."""
        networks = {one.id: one for one in self._networks()}
        if not networks:
            return []
        try:
            found = await self.look()
        except GuesthouseError as error:
            return [Check(name="subnets", health=Health.NOTICE, message=error.message)]
        if not found:
            message = "No route of this host leads into a subnet of a network."
            return [Check(name="subnets", health=Health.FINE, message=message)]
        return [
            Check(
                name="subnets",
                health=Health.NOTICE,
                message=said(networks[network], routes),
                cure="Remove that route; or make another network, which finds a free subnet, and "
                "launch guests there: guest network create NAME",
            )
            for network, routes in found.items()
            if network in networks
        ]

    def _soon(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_quietly())

    async def _look_quietly(self) -> None:
        try:
            await self.look()
        except GuesthouseError as error:
            log.warning("subnets were not looked at: %s", error)


def said(network: Network, routes: Sequence[str]) -> str:
    """The finding in a sentence."""
    own = " and ".join(text for text in (network.subnet4, network.subnet6) if text)
    return (
        f"Guests on network {network.name} ({own}) cannot reach what this host has routes to: "
        f"{', '.join(routes)}."
    )
