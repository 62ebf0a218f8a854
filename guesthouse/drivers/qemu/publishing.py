"""Opening and closing published ports of a running guest, through the network of the card."""

from __future__ import annotations

from guesthouse.drivers.qemu.cards import Cards
from guesthouse.errors import PortTaken
from guesthouse.model.device import Publish
from guesthouse.network.base import Monitor
from guesthouse.network.ports import find_holder, reserve

_ATTEMPTS = 5
"""A free port may be taken by another program between looking and opening."""


async def open_port(cards: Cards, nic: int, port: Publish, monitor: Monitor) -> Publish:
    """Open it; with its real `host_port`.

    :raise PortTaken: names the holder. :raise InvalidInput: no such card, or not possible.
    """
    network = cards.network(nic)
    for _attempt in range(_ATTEMPTS if port.host_port == 0 else 1):
        # Guests have no capabilities, whoever runs the daemon.
        real = await reserve(port, {}, privileged=False)
        try:
            await network.publish(cards.guest.id, nic, real, monitor)
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


async def close_port(cards: Cards, nic: int, port: Publish, monitor: Monitor) -> None:
    """Raises as `NetworkBackend.unpublish`."""
    await cards.network(nic).unpublish(cards.guest.id, nic, port, monitor)
