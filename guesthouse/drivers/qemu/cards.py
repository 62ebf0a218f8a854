"""The network cards of one process: which there are, and how they come, move and go while it runs.

Facts: netdev_add, device_add and device_del of qapi/net.json and qapi/qdev.json (7.2 to 10.0). The
guest is asked by ACPI to let go of a card, and its kernel answers when it has; QEMU then says
DEVICE_DELETED.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping

from guesthouse.drivers.base import DriverEvent
from guesthouse.drivers.qemu import places
from guesthouse.drivers.qemu.argv import nic_id
from guesthouse.drivers.qemu.session import Session
from guesthouse.errors import (
    Conflict,
    DeadlineExceeded,
    EngineError,
    GuesthouseError,
    InvalidInput,
    InvalidTransition,
    NotFound,
    QmpFailed,
)
from guesthouse.model.device import Nic
from guesthouse.model.guest import Guest
from guesthouse.network.base import Attachment, NetworkBackend
from guesthouse.network.builtin import netdev_id

log = logging.getLogger(__name__)

UNPLUG_SECONDS = 30.0
"""For a guest to let go of a card; an emulated one on a busy host takes two."""
_LOOK_SECONDS = 1.0
"""After which it is looked whether the card has gone: its event is lost with a connection."""
_CARRIER_SECONDS = 0.5
"""Without a link, so that the guest notices."""

Events = AsyncIterator[DriverEvent]


class Cards:
    """Of one incarnation of a guest. `networks` by name."""

    def __init__(self, guest: Guest, networks: Mapping[str, NetworkBackend]) -> None:
        self.guest = guest
        self._networks = networks
        self._nics = {nic.index: nic for nic in guest.spec.nics}

    def network(self, index: int) -> NetworkBackend:
        """Of the card of that number. :raise InvalidInput: there is no such card."""
        nic = self._nics.get(index)
        if nic is None:
            raise InvalidInput(f"The guest has no network card {index}.", field="nic")
        return network_of(self._networks, nic.network)

    async def rest(self) -> None:
        """The guest's process has ended, or did not come up: nothing leads to it any more."""
        for index, nic in self._nics.items():
            network = self._networks.get(nic.network)
            if network is None:
                continue
            try:
                await network.rest(self.guest.id, index)
            except GuesthouseError as error:
                log.warning("ports of guest %s stay open: %s", self.guest.name, error)

    async def plug(self, nic: Nic, session: Session) -> None:
        """Raises as `Running.plug_nic`."""
        if nic.plug is None:
            raise InvalidInput(f"Card {nic.index} has no hot-plug port.", field="plug")
        network = network_of(self._networks, nic.network)
        who = (self.guest.id, nic, nic.index)
        if await _is_there(session, nic.index):
            there = self._nics.get(nic.index, nic)
            if (there.mac, there.plug) != (nic.mac, nic.plug):
                raise Conflict(f"The guest has another network card {nic.index}.")
            # An attempt before got this far.
            self._nics[nic.index] = nic
            await network.change(*who, hostname=self.guest.name)
        else:
            # What an attempt before left would hold the tap.
            await _drop_netdev(session, nic.index)
            attached = await network.attach(*who, hostname=self.guest.name)
            self._nics[nic.index] = nic
            try:
                await _add(session, nic, attached)
            except BaseException:
                self._nics.pop(nic.index, None)
                await asyncio.shield(network.detach(self.guest.id, nic.index))
                raise
        await set_link(session, nic.index, up=nic.link == "up")

    async def unplug(self, index: int, session: Session, events: Events) -> None:
        """Raises as `Running.unplug_nic`. :param events: from now on."""
        nic = self._nics.get(index)
        if await _is_there(session, index):
            if nic is not None and nic.plug is None:
                raise InvalidTransition(
                    f"Card {index} was there before the guest's first start: it cannot be pulled "
                    "while the guest runs.",
                    hint=f"Stop the guest first, or pull its cable: guest nic set "
                    f"{self.guest.name} {index} link=down",
                    guest=self.guest.name,
                )
            await _ask(session, index)
            await _gone(session, index, events, self.guest.name)
        await _drop_netdev(session, index)
        if nic is not None:
            del self._nics[index]
            await network_of(self._networks, nic.network).detach(self.guest.id, index)

    async def move(self, nic: Nic, session: Session) -> None:
        """Raises as `Running.move_nic`."""
        before = self._nics.get(nic.index)
        if before is None or not await _is_there(session, nic.index):
            raise NotFound(f"The running guest has no network card {nic.index}.")
        network = network_of(self._networks, nic.network)
        if network_of(self._networks, before.network) is not network:
            raise InvalidTransition(
                f"Card {nic.index} cannot come from or to a network of the guest's own while the "
                "guest runs.",
                hint="Stop the guest first, or add another card: guest nic add "
                f"{self.guest.name} --network NAME",
                guest=self.guest.name,
            )
        await set_link(session, nic.index, up=False)
        try:
            await network.change(self.guest.id, nic, nic.index, hostname=self.guest.name)
            self._nics[nic.index] = nic
            await asyncio.sleep(_CARRIER_SECONDS)
        finally:
            now = self._nics[nic.index]
            await asyncio.shield(set_link(session, nic.index, up=now.link == "up"))

    async def link(self, index: int, session: Session, *, up: bool) -> None:
        """Raises as `Running.set_link`."""
        if index not in self._nics:
            raise NotFound(f"The running guest has no network card {index}.")
        await set_link(session, index, up=up)


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


async def set_link(session: Session, index: int, *, up: bool) -> None:
    """:raise NotFound: there is no such card."""
    try:
        await session.execute("set_link", {"name": nic_id(index), "up": up})
    except QmpFailed as error:
        if "not found" in str(error):
            raise NotFound(f"The running guest has no network card {index}.") from None
        raise


async def _is_there(session: Session, index: int) -> bool:
    listed = await session.execute("qom-list", {"path": "/machine/peripheral"})
    return any(one["name"] == nic_id(index) for one in listed)


async def _add(session: Session, nic: Nic, attached: Attachment) -> None:
    """:raise EngineError: it cannot be plugged in; nothing of it is left."""
    netdev = netdev_id(nic.index)
    arguments = dict(attached.live)
    if attached.fd is not None:
        await session.pass_fd(attached.fd, "getfd", {"fdname": netdev})
        arguments["fd"] = netdev
    await session.execute("netdev_add", arguments)
    assert nic.plug is not None  # `plug` refused it
    device = {
        "driver": "virtio-net-pci",
        "id": nic_id(nic.index),
        "netdev": netdev,
        "mac": nic.mac,
        "romfile": "",
        "bus": places.plug_bus(nic.plug),
        "addr": "0x0",
    }
    try:
        await session.execute("device_add", device)
    except QmpFailed as error:
        await _drop_netdev(session, nic.index)
        if f"{places.plug_bus(nic.plug)!r} not found" not in str(error):
            raise
        raise EngineError(
            f"The guest was started without the hot-plug port for card {nic.index}.",
            hint="Stop it, and try again.",
        ) from None


async def _drop_netdev(session: Session, index: int) -> None:
    """What is on the engine's side of a card that is not there."""
    for command, arguments in (
        ("netdev_del", {"id": netdev_id(index)}),
        ("closefd", {"fdname": netdev_id(index)}),
    ):
        try:
            await session.execute(command, arguments)
        except QmpFailed as error:
            if "not found" not in str(error):
                raise


async def _ask(session: Session, index: int) -> None:
    """Ask the guest to let go of a card; it is gone, or was asked before: fine."""
    try:
        await session.execute("device_del", {"id": nic_id(index)})
    except QmpFailed as error:
        if "not found" not in str(error) and "in the process of unplug" not in str(error):
            raise


async def _gone(session: Session, index: int, events: Events, guest: str) -> None:
    """Until the guest has let go of the card. Raises as `Running.unplug_nic`."""
    try:
        async with asyncio.timeout(UNPLUG_SECONDS):
            while await _is_there(session, index):
                try:
                    refused = await asyncio.wait_for(_heard(index, events), _LOOK_SECONDS)
                except TimeoutError:
                    continue
                if refused:
                    raise Conflict(
                        f"The guest does not let go of card {index}.",
                        hint=f"See why: guest exec {guest} -- dmesg",
                        guest=guest,
                    )
    except TimeoutError:
        raise DeadlineExceeded(
            f"The guest has not let go of card {index} within {UNPLUG_SECONDS:.0f} seconds; "
            "it keeps it.",
            hint="Ask again when its system is up, or stop the guest first.",
            guest=guest,
        ) from None


async def _heard(index: int, events: Events) -> bool:
    """Whether the guest refused, once it has answered about that card."""
    async for event in events:
        if event.kind in ("unplugged", "unplug-refused") and (
            event.detail.get("device") == nic_id(index)
        ):
            return event.kind == "unplug-refused"
    return False
