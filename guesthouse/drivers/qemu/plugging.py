"""Virtio-serial ports that come and go while the guest runs. Shared folders go through them."""

from __future__ import annotations

import asyncio

from guesthouse.drivers.qemu.session import Session
from guesthouse.errors import QmpFailed

_TURNS, _PAUSE = 100, 0.02
"""How often, and seconds after which, a chardev that is still held is tried again."""


def _id(name: str) -> str:
    """Of device, chardev and descriptor; QEMU's ids begin with a letter and know dots."""
    return f"port.{name}"


async def plug(session: Session, name: str, connection: int, seen_as: str) -> None:
    """A port that the guest knows as `seen_as`; its bytes go through the connected socket. It takes
    the place of an older one of that name.

    :raise QmpFailed: QEMU refused it: all ports are taken.
    """
    await unplug(session, name)
    known = _id(name)
    await session.pass_fd(connection, "getfd", {"fdname": known})
    address = {"type": "fd", "data": {"str": known}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    await session.execute("chardev-add", {"id": known, "backend": backend})
    try:
        await session.execute(
            "device_add",
            {
                "driver": "virtserialport",
                "id": known,
                "bus": "ports.0",
                "chardev": known,
                "name": seen_as,
            },
        )
    except QmpFailed:
        await session.execute("chardev-remove", {"id": known})
        raise


async def unplug(session: Session, name: str) -> None:
    """Take the port away; not there is fine. The guest is not asked: a port goes at once."""
    known = {"id": _id(name)}
    try:
        await session.execute("device_del", known)
    except QmpFailed as error:
        if "not found" not in str(error):
            raise
    for turn in range(_TURNS + 1):
        try:
            await session.execute("chardev-remove", known)
            return
        except QmpFailed as error:
            if "not found" in str(error):
                return
            # The device lets go of it a moment after it has gone.
            if "busy" not in str(error) or turn == _TURNS:
                raise
        await asyncio.sleep(_PAUSE)
