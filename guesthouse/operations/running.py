"""Bringing a guest's process up and recording how it went: shared by every verb that starts one."""

from __future__ import annotations

import asyncio
import time

import msgspec

from guesthouse.drivers.base import AGENT_SOCKET, SSH_SOCKET, DiskSource, Resources, Running
from guesthouse.guestos.agent import Agent
from guesthouse.guestos.keys import ensure_key, public_line
from guesthouse.guestos.seed import seed_text
from guesthouse.guestos.ssh import GuestSsh
from guesthouse.host.folders import prepare_guest
from guesthouse.jobs.context import JobContext
from guesthouse.model.guest import BootPath, Guest, GuestStatus
from guesthouse.model.image import Seed
from guesthouse.model.states import GuestState, check_transition
from guesthouse.operations.live import LiveGuest
from guesthouse.operations.memory import check_start
from guesthouse.operations.ports import check_ports
from guesthouse.operations.rooms import Rooms
from guesthouse.shares.attached import GuestShares

S = GuestState


def with_state(guest: Guest, state: GuestState, reason: str, message: str) -> Guest:
    """The guest in another state. :raise InvalidTransition: the table does not allow it."""
    if guest.state is state:
        return guest
    check_transition(guest.name, guest.state, state)
    status = msgspec.structs.replace(
        guest.status, state=state, reason=reason, message=message, since=time.time()
    )
    return msgspec.structs.replace(guest, status=status)


def end_status(guest: Guest, state: GuestState, reason: str, message: str) -> Guest:
    """The guest without a process."""
    if guest.state is state and guest.status.pid is None:
        return guest
    if guest.state is not state:
        check_transition(guest.name, guest.state, state)
    status = GuestStatus(state=state, reason=reason, message=message, since=time.time())
    return msgspec.structs.replace(guest, status=status)


def boot_path(guest: Guest, *, booted: bool) -> BootPath:
    """The path to take now: the first boot of an image that allows it goes by its kernel."""
    if guest.spec.boot is BootPath.KERNEL:
        return BootPath.KERNEL
    if guest.spec.boot is BootPath.FIRST_KERNEL and not booted:
        return BootPath.KERNEL
    return BootPath.DISK


async def launch_guest(
    rooms: Rooms,
    ctx: JobContext,
    guest: Guest,
    *,
    paused: bool = False,
    booted: bool = False,
    new: bool = False,
) -> Guest:
    """One step of a job: a process for a guest that has none, recorded. Safe to run again.

    :param new: the guest goes again when it cannot be started.
    :param booted: it is known to have booted before, so its own boot loader takes over.
    """
    incarnation = guest.launch.incarnation + 1 if guest.launch else 1
    booted = booted or guest.booted

    def starting(current: Guest) -> Guest:
        return msgspec.structs.replace(
            with_state(current, S.STARTING, "user", "starting"), booted=booted
        )

    again = ctx.has_step("launch")
    ids = await ctx.step("launch", incarnation=str(incarnation))
    incarnation = int(ids["incarnation"])
    if again:
        if guest.launch and guest.launch.incarnation == incarnation and guest.status.pid:
            return guest  # the attempt before got this far; the supervisor took it up
        await end_unrecorded(rooms, guest, incarnation)

    async def undo() -> None:
        await rooms.documents.guests.update(guest.id, lambda g: _not_started(g, incarnation))

    # Registered first: a cancellation may come while the write below is already durable.
    ctx.undo(undo)
    guest = (await rooms.documents.guests.update(guest.id, starting)).doc
    await check_ports(rooms, guest)
    check_start(guest, rooms.facts(), new=new)
    ctx.progress(None, "starting its process")
    running = await rooms.driver.launch(
        guest,
        await resources(rooms, guest, boot_path(guest, booted=booted)),
        incarnation=incarnation,
        paused=paused,
    )
    ctx.undo(running.kill)
    return await record_launch(rooms, guest, running, paused=paused)


async def end_unrecorded(rooms: Rooms, guest: Guest, incarnation: int) -> None:
    """End a process that an interrupted launch started and never recorded."""
    key = f"{guest.id}.{incarnation}"
    if key in await rooms.driver.stray([guest]):
        await rooms.driver.end_stray(key)


def _not_started(guest: Guest, incarnation: int) -> Guest:
    if guest.state is not S.STARTING and (
        guest.launch is None or guest.launch.incarnation != incarnation
    ):
        return guest
    return end_status(guest, S.STOPPED, "launch-failed", "its last start failed and was undone")


async def record_launch(rooms: Rooms, guest: Guest, running: Running, *, paused: bool) -> Guest:
    """Make the process durable and hand it to the supervisor."""
    record = running.record

    def recorded(current: Guest) -> Guest:
        state = S.PAUSED if paused else S.RUNNING
        moved = with_state(current, state, "user", "started paused" if paused else "started")
        status = msgspec.structs.replace(
            moved.status, pid=record.pid, started_at=record.launched_at, ready=()
        )
        return msgspec.structs.replace(moved, status=status, launch=record)

    guest = (await rooms.documents.guests.update(guest.id, recorded)).doc
    take_up(rooms, guest, running)
    return guest


def take_up(rooms: Rooms, guest: Guest, running: Running) -> LiveGuest:
    """Open the channels of a process and have the supervisor follow it."""
    runtime = rooms.folders.guest_runtime(guest.id)
    ssh = _ssh(rooms, guest)
    live = LiveGuest(
        guest_id=guest.id,
        running=running,
        agent=Agent(runtime / AGENT_SOCKET),
        ssh=ssh,
        shares=GuestShares(runtime, ssh, running, user=guest.spec.user) if ssh else None,
    )
    rooms.live.add(guest, live)
    return live


def _ssh(rooms: Rooms, guest: Guest) -> GuestSsh | None:
    """Its way in, if its image carries our port."""
    if not guest.spec.ssh_port:
        return None
    socket = rooms.folders.guest_runtime(guest.id) / SSH_SOCKET
    return GuestSsh(socket, ensure_key(rooms.secrets, guest.id))


async def exited(rooms: Rooms, guest_id: str, incarnation: int) -> None:
    """Forget an incarnation whose process is gone."""
    await rooms.live.remove(guest_id, incarnation)


async def resources(rooms: Rooms, guest: Guest, boot: BootPath) -> Resources:
    """Everything outside the document that a start needs, opened by nobody yet.

    :raise NotFound: a layer or an image's boot files are missing; the disk is not touched.
    """
    volumes = rooms.view.volumes
    disks = tuple(
        DiskSource(
            name=disk.name,
            chain=tuple(rooms.pool.chain(volumes, disk.volume)),
            size=disk.size,
            read_only=disk.read_only,
            serial=disk.serial,
            device=disk.device,
        )
        for disk in guest.spec.disks
    )
    boot_files = None
    if boot is BootPath.KERNEL:
        boot_files = rooms.catalogue.boot_files(guest.spec.image_id)
    seed = await asyncio.to_thread(_prepared, rooms, guest)
    return Resources(
        disks=disks,
        runtime=rooms.folders.guest_runtime(guest.id),
        state=rooms.folders.guest_state(guest.id),
        seed=seed,
        boot=boot,
        boot_files=boot_files,
    )


def _prepared(rooms: Rooms, guest: Guest) -> str:
    """Its folders are there; its seed."""
    prepare_guest(rooms.folders, guest.id)
    return _seed(rooms, guest)


def _seed(rooms: Rooms, guest: Guest) -> str:
    """What our own seed tells it; nothing where nobody reads that."""
    if guest.spec.seed is not Seed.HOUSE:
        return ""
    key = public_line(ensure_key(rooms.secrets, guest.id))
    return seed_text(
        hostname=guest.name,
        user=guest.spec.user,
        public_keys=[key, *guest.spec.keys],
        instance=guest.id,
    )
