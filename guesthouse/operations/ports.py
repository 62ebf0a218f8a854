"""Ports of the host that lead into guests: who holds which."""

from __future__ import annotations

from guesthouse.model.device import Publish
from guesthouse.model.guest import Guest
from guesthouse.network.ports import reserve
from guesthouse.operations.rooms import Rooms


def published(rooms: Rooms) -> dict[Publish, str]:
    """Every published port of every guest, and the guest's name."""
    return {
        port: guest.name
        for guest in rooms.view.guests.values()
        for nic in guest.spec.nics
        for port in nic.ports
    }


async def free_port(rooms: Rooms, port: Publish, guest: Guest | None = None) -> Publish:
    """`port` with its real number, when nobody holds it.

    :raise PortTaken: names the guest or process that holds it. :raise Forbidden: privileged.
    """
    taken = published(rooms)
    return await reserve(port, taken, privileged=False)
