"""Devices of shared folders (virtiofs) that come and go while the guest runs.

Tried with QEMU 7.2: the guest gives such a device back within 0.1 s. Whose server has died under a
request of the guest it cannot give back any more before it is reset: QEMU's device does not connect
to another server, and the guest's kernel waits for the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from guesthouse.drivers.qemu import places
from guesthouse.drivers.qemu.session import Session
from guesthouse.errors import EngineError, QmpFailed
from guesthouse.host.virtiofsd import STEADY_QEMU

DEVICE = "vhost-user-fs-pci"
_TURNS, _PAUSE = 200, 0.05
"""How often, and seconds after which, it is looked whether the guest has given it back."""


async def lacks(session: Session, argv: Sequence[str]) -> tuple[str, str]:
    """(Why this QEMU takes no such device, why it is better not given one); empty if none.

    :param argv: what it was started with.
    """
    if not any(word.startswith("memory-backend") and "share=on" in word for word in argv):
        return "the guest was started without memory that can be shared", ""
    try:
        # Not qom-list-types: that loads all of QEMU's modules into the guest's process.
        await session.execute("device-list-properties", {"typename": DEVICE})
    except QmpFailed:
        return f"QEMU has no {DEVICE}", ""
    version = (await session.execute("query-version"))["qemu"]
    number = (int(version["major"]), int(version["minor"]))
    if number < STEADY_QEMU:
        text = ".".join(map(str, number))
        return "", f"a mount may hang for ever with QEMU {text}: it needs 8.2"
    return "", ""


async def plug(session: Session, name: str, connection: int) -> None:
    """A device of that name and tag, whose server is at the other end of the connected socket.

    :raise QmpFailed: QEMU refused it, or its server did not greet.
    """
    await session.pass_fd(connection, "getfd", {"fdname": name})
    address = {"type": "fd", "data": {"str": name}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    await session.execute("chardev-add", {"id": name, "backend": backend})
    try:
        await _into_a_free_port(session, device(name))
    except BaseException:
        await asyncio.shield(session.execute("chardev-remove", {"id": name}))
        raise


def device(name: str) -> dict[str, object]:
    """Of `device_add`, without its place."""
    return {"driver": DEVICE, "id": name, "chardev": name, "tag": name, "queue-size": 1024}


async def _into_a_free_port(session: Session, wanted: dict[str, object]) -> None:
    for bus in _free(await session.execute("query-pci")):
        try:
            await session.execute("device_add", {**wanted, "bus": bus})
            return
        except QmpFailed as error:
            # Somebody else was quicker.
            if "not available" not in str(error):
                raise
    raise QmpFailed("All of the guest's places for devices are taken.")


def _free(buses: object) -> list[str]:
    """Root ports without a device, from the answer of `query-pci`; the last first, since network
    cards are given numbers from the first on."""
    assert isinstance(buses, list)
    devices = [one for bus in buses for one in bus["devices"]]
    taken = {one["qdev_id"] for one in devices if one.get("pci_bridge", {}).get("devices")}
    ports = map(places.plug_bus, reversed(range(places.PLUG_PORTS)))
    return [port for port in ports if port not in taken]


async def unplug(session: Session, name: str) -> None:
    """Have the guest give it back; not there is fine.

    :raise EngineError: it does not, in ten seconds.
    """
    known = {"id": name}
    for _turn in range(_TURNS):
        try:
            await session.execute("device_del", known)
        except QmpFailed as error:
            words = str(error)
            if "not found" not in words and "process of unplug" not in words:
                raise
        try:
            await session.execute("chardev-remove", known)
            return
        except QmpFailed as error:
            if "not found" in str(error):
                return
            if "busy" not in str(error):
                raise
        await asyncio.sleep(_PAUSE)
    raise EngineError(
        "The guest does not give the device of the shared folder back.",
        hint="It will with its next restart: guest restart NAME",
    )
