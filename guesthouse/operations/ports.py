"""Ports of the host that lead into guests: who holds which."""

from __future__ import annotations

import os

from guesthouse.model.device import Publish
from guesthouse.model.guest import Guest
from guesthouse.model.networking import BUILTIN
from guesthouse.network.ports import no_ipv6, reserve
from guesthouse.operations.rooms import Rooms


def published(rooms: Rooms, *, but: str = "") -> dict[Publish, str]:
    """Every published port of every guest `but` one, and the guest's name.

    Guests in the trash hold none.
    """
    return {
        port: guest.name
        for guest in rooms.view.guests.values()
        if guest.id != but and not guest.in_trash
        for nic in guest.spec.nics
        for port in nic.ports
    }


async def check_ports(rooms: Rooms, guest: Guest) -> None:
    """Before its process starts, while the holder can still be named. Raises as `free_port`."""
    for nic in guest.spec.nics:
        for port in nic.ports:
            await free_port(rooms, port, nic.network, but=guest.id)


async def free_port(
    rooms: Rooms, port: Publish, network: str = BUILTIN, *, but: str = ""
) -> Publish:
    """`port` with its real number, when nobody holds it.

    :param network: of the card that it leads to.
    :param but: id of the guest that may hold it in its document, since it is for that one.

    :raise PortTaken: names the guest or process that holds it. :raise Forbidden: privileged.
    :raise InvalidInput: no address of this host, or one that guests here cannot have ports on.
    """
    builtin = network == BUILTIN
    if ":" in port.host_ip and builtin and not rooms.driver.capabilities.ipv6_publish:
        raise no_ipv6(port)
    # On a network of the house its uplink listens, which is the daemon's user; else the guest's own
    # process.
    privileged = not builtin and os.geteuid() == 0
    return await reserve(port, published(rooms, but=but), privileged=privileged)
