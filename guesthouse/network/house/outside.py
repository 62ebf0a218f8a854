"""What of the house's networks is outside its namespace: ports of bridged networks, and a direct
way to the host."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from guesthouse.errors import GuesthouseError, InvalidInput
from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.model.network import Network, NetworkKind
from guesthouse.network.bridged.attaching import FOLDER, HostBridges
from guesthouse.network.house.direct import Direct, reached_directly
from guesthouse.network.house.wiring import Wiring

log = logging.getLogger(__name__)


class Outside:
    """:param runtime: the house's runtime folder."""

    def __init__(self, namespace: HouseNamespace, wiring: Wiring, runtime: Path) -> None:
        self._namespace, self._wiring = namespace, wiring
        self._bridges = HostBridges(runtime / FOLDER)
        self._direct = Direct(namespace, runtime)
        self._failed: dict[str, GuesthouseError] = {}

    @property
    def direct(self) -> str:
        """The device that leads to the host without translation; empty where there is none."""
        return self._direct.device

    @property
    def direct_hosts(self) -> tuple[str, ...]:
        """The host's addresses there."""
        return self._direct.hosts

    async def settle(self, networks: Sequence[Network]) -> None:
        """Bridged networks have their ports to the host's interfaces, routed and connected ones
        their routes.

        One that cannot have it is no obstacle to the others: it is told, and `require` raises why.
        """
        failed: dict[str, GuesthouseError] = {}
        for network in networks:
            if not network.port:
                continue
            there = self._wiring.has(network.port)
            try:
                pid = self._namespace.facts.pid
                if await self._bridges.settle(network, pid, there=there):
                    self._wiring.came(network.port)
            except GuesthouseError as error:
                failed[network.id] = error
        wanted = reached_directly(networks)
        try:
            await self._direct.settle(wanted)
        except GuesthouseError as error:
            failed |= {network.id: error for network in wanted}
        for network in networks:
            if network.id in failed and network.id not in self._failed:
                log.warning("network %s: %s", network.name, failed[network.id])
        self._failed = failed

    def require(self, network: str) -> None:
        """:param network: id. :raise GuesthouseError: why it does not reach its interface."""
        if network in self._failed:
            raise self._failed[network]

    async def leave(self) -> None:
        """Nobody has a card any more."""
        await self._direct.settle(())


def check_publishable(network: Network) -> None:
    """:raise InvalidInput: no port of the host can lead to guests there."""
    if network.kind is NetworkKind.ISOLATED:
        raise InvalidInput(
            f"Network {network.name} is isolated: nothing comes in from outside.",
            hint="Publish on a card of another network.",
            field="publish",
        )
    if network.kind is NetworkKind.BRIDGED:
        raise InvalidInput(
            f"Network {network.name} is bridged: its guests have addresses of their own in the "
            "network outside, and are reached there.",
            hint="See the guest's addresses: guest info",
            field="publish",
        )
