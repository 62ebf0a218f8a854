"""Opening and closing published ports of a running guest, through the network of the card."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from guesthouse.errors import GuesthouseError, InvalidInput, PortTaken
from guesthouse.model.device import Publish
from guesthouse.model.guest import Guest
from guesthouse.network.base import Monitor, NetworkBackend
from guesthouse.network.ports import find_holder, reserve

log = logging.getLogger(__name__)

_ATTEMPTS = 5
"""A free port may be taken by another program between looking and opening."""


class Publisher:
    """For one guest. `networks` by name."""

    def __init__(self, guest: Guest, networks: Mapping[str, NetworkBackend]) -> None:
        self._guest = guest
        self._networks = networks

    async def open(self, nic: int, port: Publish, monitor: Monitor) -> Publish:
        """Open it; with its real `host_port`.

        :raise PortTaken: names the holder. :raise InvalidInput: no such card, or not possible.
        """
        network = self._network(nic)
        for _attempt in range(_ATTEMPTS if port.host_port == 0 else 1):
            # Guests have no capabilities, whoever runs the daemon.
            real = await reserve(port, {}, privileged=False)
            try:
                await network.publish(self._guest.id, nic, real, monitor)
            except PortTaken as error:
                taken = error
                continue
            return real
        holder = await find_holder(port.host_ip, port.host_port, port.protocol)
        raise PortTaken(
            f"{taken.message} It is held by {holder or 'another program'}.",
            hint=taken.hint,
            **taken.detail,
            holder=holder,
        )

    async def close(self, nic: int, port: Publish, monitor: Monitor) -> None:
        await self._network(nic).unpublish(self._guest.id, nic, port, monitor)

    async def rest(self) -> None:
        """The guest's process has ended, or did not come up: nothing leads to it any more."""
        for index, nic in enumerate(self._guest.spec.nics):
            network = self._networks.get(nic.network)
            if network is None:
                continue
            try:
                await network.rest(self._guest.id, index)
            except GuesthouseError as error:
                log.warning("ports of guest %s stay open: %s", self._guest.name, error)

    def _network(self, nic: int) -> NetworkBackend:
        if not 0 <= nic < len(self._guest.spec.nics):
            raise InvalidInput(f"The guest has no network card {nic}.", field="nic")
        return network_of(self._networks, self._guest.spec.nics[nic].network)


def network_of(networks: Mapping[str, NetworkBackend], name: str) -> NetworkBackend:
    """:raise InvalidInput: this house has no network of that name."""
    try:
        return networks[name]
    except KeyError:
        raise InvalidInput(
            f"There is no network {name!r}.",
            hint=f"Networks here: {', '.join(sorted(networks))}.",
            field="network",
        ) from None
