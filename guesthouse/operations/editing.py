"""Changing what a guest is: its name, its resources, its ports."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from guesthouse.drivers.base import Running
from guesthouse.errors import InvalidInput, InvalidTransition, NotFound, RevisionConflict
from guesthouse.jobs.context import JobContext
from guesthouse.model.device import Disk, Protocol, Publish
from guesthouse.model.guest import (
    Autostart,
    Firmware,
    Guest,
    OnPanic,
    ShutdownAction,
    check_spec,
    pending_changes,
)
from guesthouse.model.ids import new_id
from guesthouse.model.names import check_name
from guesthouse.model.states import LIVE
from guesthouse.model.units import format_size
from guesthouse.operations.creation import name_taken
from guesthouse.operations.joining import port_card
from guesthouse.operations.lifecycle import GuestOperation, GuestParams
from guesthouse.operations.nvram import create_nvram, has_nvram, nvram_disk
from guesthouse.operations.ports import free_port
from guesthouse.operations.rooms import Rooms
from guesthouse.store.contract import ABSENT, Op


class SetParams(GuestParams, kw_only=True, frozen=True):
    """None leaves a field alone. :ivar disk: the root disk's new size in bytes."""

    cpus: int | None = None
    memory: int | None = None
    disk: int | None = None
    description: str | None = None
    cpu: str | None = None
    autostart: Autostart | None = None
    autostart_order: int | None = None
    autostart_delay: float | None = None
    shutdown_action: ShutdownAction | None = None
    shutdown_timeout: float | None = None
    display: bool | None = None
    firmware: Firmware | None = None
    accelerator: str | None = None
    on_panic: OnPanic | None = None
    protected: bool | None = None


class SetGuest(GuestOperation[SetParams]):
    """Change the spec. What a running guest cannot take is pending until its next start."""

    kind = "guest.set"
    Params = SetParams

    async def run(self, ctx: JobContext, params: SetParams) -> dict[str, object]:
        guest = await self.rooms.guest(params.guest)
        named = {
            field: value
            for field, value in msgspec.structs.asdict(params).items()
            if field not in {"guest", "disk"} and value is not None
        }
        check_spec(msgspec.structs.replace(guest.spec, **named))
        disks, ops = guest.spec.disks, list[Op]()
        if params.disk is not None:
            size = await self._grow(ctx, guest, params.disk, ops)
            disks = tuple(
                msgspec.structs.replace(disk, size=size) if disk.name == "root" else disk
                for disk in disks
            )
        if params.firmware is Firmware.UEFI and not has_nvram(guest.spec):
            disks = (*disks, await self._nvram(ctx, guest, ops))
        await ctx.step("set")

        def changed(current: Guest) -> Guest:
            spec = msgspec.structs.replace(current.spec, disks=disks, **named)
            return msgspec.structs.replace(current, spec=spec)

        # In one transaction with the volumes: all that was asked for, or nothing.
        guest = (await self.rooms.documents.guests.update(guest.id, changed, extra_ops=ops)).doc
        return {"pending": list(pending_changes(guest))}

    async def _nvram(self, ctx: JobContext, guest: Guest, ops: list[Op]) -> Disk:
        """A guest made for BIOS has no volume for the firmware's variables yet.

        :param ops: gets what makes the volume durable.
        """
        ids = await ctx.step("nvram", volume=new_id)
        volume = await create_nvram(self.rooms, ids["volume"], guest.name)
        ops.append(self.rooms.documents.volumes.put_op(volume, expect=ABSENT))
        return nvram_disk(volume)

    async def _grow(self, ctx: JobContext, guest: Guest, size: int, ops: list[Op]) -> int:
        """Grow the root disk's file; answers its new size. A file that is larger than its document
        says is harmless, and running this again ends the work.

        :param ops: gets what makes the size durable.
        """
        root = next((disk for disk in guest.spec.disks if disk.name == "root"), None)
        if root is None:
            raise InvalidInput(
                f"Guest {guest.name!r} has no disk to grow.",
                hint="Its image runs from memory.",
                field="disk",
            )
        if size < root.size:
            raise InvalidInput(
                f"The disk of {guest.name!r} has {format_size(root.size)} and cannot shrink"
                f" to {format_size(size)}.",
                hint="Disks only grow. Launch a new guest with a smaller disk and copy the data.",
                field="disk",
            )
        if guest.state in LIVE:
            raise InvalidTransition(
                f"Cannot grow the disk: guest {guest.name!r} is {guest.state.value}.",
                hint=f"Stop it first: guest stop {guest.name}",
                guest=guest.name,
                state=guest.state.value,
            )
        await ctx.step("grow", volume=root.volume)
        size = -(-size // 65536) * 65536
        volume = await self.rooms.documents.volumes.require(root.volume)
        await self.rooms.pool.grow(volume.doc, size)
        grown = msgspec.structs.replace(volume.doc, size=size)
        ops.append(self.rooms.documents.volumes.put_op(grown, expect=volume.revision))
        return size


class RenameParams(GuestParams, kw_only=True, frozen=True):
    name: str


class Rename(GuestOperation[RenameParams]):
    """The name alone: disks and uid stay. The hostname inside follows at the next start."""

    kind = "guest.rename"
    Params = RenameParams

    async def run(self, ctx: JobContext, params: RenameParams) -> None:
        check_name(params.name)
        guests = self.rooms.documents.guests
        guest = await guests.require(params.guest)
        if guest.doc.name == params.name:
            return
        await ctx.step("rename")
        try:
            renamed = await guests.update(
                params.guest,
                lambda g: msgspec.structs.replace(g, name=params.name),
                extra_ops=[
                    guests.claim_op(params.name, params.guest),
                    guests.release_op(guest.doc.name),
                ],
            )
        except RevisionConflict as conflict:
            raise name_taken(conflict, params.name, guests.name_key(params.name)) from None
        await self.rooms.view.wait_for(renamed.revision)


class PublishParams(GuestParams, kw_only=True, frozen=True):
    port: Publish


class PublishPort(GuestOperation[PublishParams]):
    """Publish a port of the first network card that may have any; live when the guest runs."""

    kind = "guest.publish"
    Params = PublishParams

    async def run(self, ctx: JobContext, params: PublishParams) -> dict[str, str]:
        guest = await self.rooms.guest(params.guest)
        if not guest.spec.nics:
            raise InvalidInput(f"Guest {guest.name!r} has no network card.", field="nics")
        card = port_card(guest.spec.nics, self.rooms)
        if card is None:
            raise InvalidInput(
                f"No card of guest {guest.name!r} can have ports: all are on isolated or bridged "
                "networks.",
                hint=f"Give it a card on another one: guest nic add {guest.name} --network default",
                field="publish",
            )
        nic, port = card.index, params.port
        if not ctx.has_step("publish"):
            port = await free_port(self.rooms, port, card.network)
        ids = await ctx.step("publish", host_port=str(port.host_port))
        port = msgspec.structs.replace(port, host_port=int(ids["host_port"]))
        if ctx.resumed and port in card.ports:
            return {"port": str(port)}
        live = self.rooms.live.get(guest.id)
        if live is not None:
            ctx.undo(lambda: close_port(live.running, nic, port))
            if ctx.resumed:  # the attempt before may have opened it
                await live.running.unpublish(nic, port)
            port = await live.running.publish(nic, port)
        await change_ports(self.rooms, guest.id, nic, add=port)
        return {"port": str(port)}


class UnpublishParams(GuestParams, kw_only=True, frozen=True):
    host_ip: str
    host_port: int
    protocol: Protocol = Protocol.TCP


class UnpublishPort(GuestOperation[UnpublishParams]):
    kind = "guest.unpublish"
    Params = UnpublishParams

    async def run(self, ctx: JobContext, params: UnpublishParams) -> None:
        guest = await self.rooms.guest(params.guest)
        found = [
            (nic.index, port)
            for nic in guest.spec.nics
            for port in nic.ports
            if (port.host_ip, port.host_port, port.protocol)
            == (params.host_ip, params.host_port, params.protocol)
        ]
        if not found and not ctx.resumed:
            raise NotFound(
                f"Guest {guest.name!r} publishes no {params.host_ip}:{params.host_port}"
                f"/{params.protocol.value}.",
                hint=f"See its ports: guest info {guest.name}",
            )
        # Which port of the guest it led to does not matter for closing it.
        first = port_card(guest.spec.nics, self.rooms)
        nic, port = found[0] if found else (first.index if first else 0, _on_host(params))
        await ctx.step("unpublish")
        if found:
            await change_ports(self.rooms, guest.id, nic, remove=port)
        live = self.rooms.live.get(guest.id)
        if live is not None:
            await live.running.unpublish(nic, port)


async def close_port(running: Running, nic: int, port: Publish) -> None:
    """Close it on that card; the ports of a process that has ended are closed."""
    with suppress(NotFound):
        await running.unpublish(nic, port)


def _on_host(params: UnpublishParams) -> Publish:
    return Publish(
        host_ip=params.host_ip,
        host_port=params.host_port,
        guest_port=1,
        protocol=params.protocol,
    )


async def change_ports(
    rooms: Rooms,
    guest_id: str,
    nic: int,
    *,
    add: Publish | None = None,
    remove: Publish | None = None,
) -> Guest:
    """Change the ports of a network card in the document. :param nic: its number."""

    def changed(guest: Guest) -> Guest:
        card = guest.spec.nic(nic)
        if card is None:
            raise NotFound(f"Guest {guest.name!r} has no network card {nic} any more.")
        ports = tuple(p for p in card.ports if p != remove) + ((add,) if add else ())
        spec = guest.spec.with_nic(msgspec.structs.replace(card, ports=ports))
        return msgspec.structs.replace(guest, spec=spec)

    return (await rooms.documents.guests.update(guest_id, changed)).doc
