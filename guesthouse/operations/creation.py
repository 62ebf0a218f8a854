"""Launch: from an image's name to a guest that is ready."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable, Sequence

import msgspec

from guesthouse.errors import LaunchFailed, NameTaken, RevisionConflict, UnknownImage
from guesthouse.guestos import nocloud
from guesthouse.guestos.keys import ensure_key
from guesthouse.images.building import BuildParams
from guesthouse.jobs.context import JobContext
from guesthouse.model.device import Disk, Publish, new_mac
from guesthouse.model.firewall import Firewall
from guesthouse.model.guest import (
    BootPath,
    Firmware,
    Guest,
    GuestSpec,
    GuestStatus,
    OnPanic,
    check_spec,
)
from guesthouse.model.ids import new_id
from guesthouse.model.image import Image, Seed
from guesthouse.model.nics import NicRequest
from guesthouse.model.share import Share
from guesthouse.model.states import GuestState
from guesthouse.model.volume import Volume
from guesthouse.operations.addresses import check_cards
from guesthouse.operations.deletion import NUMBERS, number_key, remove_guest
from guesthouse.operations.disks import Disks, add_nvram, add_root, add_seed, root_volume
from guesthouse.operations.grouping import require_groups, require_rules_hold
from guesthouse.operations.joining import (
    cards,
    chosen,
    mac_names,
    port_network,
    require_networks,
)
from guesthouse.operations.lifecycle import GuestOperation, GuestParams, wait_ready
from guesthouse.operations.ports import free_port
from guesthouse.operations.rooms import Rooms
from guesthouse.operations.running import launch_guest
from guesthouse.operations.sharing import check_wanted
from guesthouse.store.contract import ABSENT, Op, Put
from guesthouse.store.documents import GUESTS

S = GuestState

ROOMY, SMALL = 1 << 30, 256 << 20
"""Bytes of memory for a guest whose launch names none: for an image with a disk, and without."""


class LaunchParams(GuestParams, kw_only=True, frozen=True):
    """As `reports.LaunchRequest`, with the id and the name already settled.

    What is for cloud-init is a secret, and kept as one until its disc is made.
    """

    name: str
    image: str
    cpus: int
    memory: int | None = None
    disk: int | None = None
    publish: tuple[Publish, ...] = ()
    firmware: Firmware = Firmware.BIOS
    accelerator: str = "auto"
    display: bool = True
    user: str = "guest"
    description: str = ""
    start: bool = True
    wait_ready: bool = True
    ready_timeout: float = 300.0
    cpu: str = ""
    on_panic: OnPanic = OnPanic.STOP
    ssh_keys: tuple[str, ...] = ()
    shares: tuple[Share, ...] = ()
    networks: tuple[str, ...] = ()
    nics: tuple[NicRequest, ...] = ()
    groups: tuple[str, ...] = ()


class Launch(GuestOperation[LaunchParams]):
    """Image (built when missing), disk, document, process, readiness.

    A launch that fails before the guest runs leaves nothing. One that runs but does not become
    ready in time stays, so that its user can look why.
    """

    kind = "guest.launch"
    Params = LaunchParams

    async def run(self, ctx: JobContext, params: LaunchParams) -> dict[str, str]:
        ctx.undo(lambda: forget_cloud_init(self.rooms, params.guest))
        image = await self._image(ctx, params)
        for count in range(len(params.shares)):
            wanted = params.shares[: count + 1]
            await check_wanted(self.rooms, wanted, params.name, ssh_port=image.ssh_port)
        guest = await create_guest(self.rooms, ctx, params, image)
        await forget_cloud_init(self.rooms, guest.id)
        if params.start:
            ctx.progress(0.55, "starting")
            guest = await self._start(ctx, guest)
            if params.wait_ready:
                await wait_ready(self.rooms, ctx, guest, params.ready_timeout, start=0.6)
        return {"guest": guest.id, "name": guest.name}

    async def _start(self, ctx: JobContext, guest: Guest) -> Guest:
        try:
            return await launch_guest(self.rooms, ctx, guest, new=True)
        except LaunchFailed as error:  # the engine's log goes with the guest
            for line in str(error.detail.get("stderr", "")).splitlines():
                ctx.log(line)
            error.hint = f"The engine's messages are in the job's log: guest job log {ctx.job.id}"
            raise

    async def _image(self, ctx: JobContext, params: LaunchParams) -> Image:
        """The image; its id is journaled so that a second attempt takes the same."""
        catalogue = self.rooms.catalogue
        try:
            image = catalogue.resolve(params.image)
        except UnknownImage:
            if params.image not in {known.name for known in catalogue.known()}:
                raise
            ctx.progress(0.0, f"building the image {params.image}")
            job = await ctx.submit(
                "image.build", BuildParams(name=params.image), dedupe=params.image
            )
            await ctx.join(job.id, span=(0.0, 0.5))
            image = catalogue.resolve(params.image)
        ids = await ctx.step("image", image=image.id)
        return catalogue.resolve(ids["image"])


async def create_guest(rooms: Rooms, ctx: JobContext, params: LaunchParams, image: Image) -> Guest:
    """Disk, key and document of a new guest; each step is safe to run again."""
    existing = await rooms.documents.guests.get(params.guest)
    if existing is None:
        params = msgspec.structs.replace(params, networks=await chosen(rooms, ctx, params.networks))
        require_rules_hold(rooms, params.groups, params.networks)
    ids = await ctx.step(
        "create",
        volume=new_id,
        nvram=new_id,
        seed=new_id,
        uuid=lambda: str(uuid.uuid4()),
        **dict.fromkeys(mac_names(params.networks), new_mac),
    )
    root = root_volume(image, ids["volume"], params.disk, params.name)

    async def undo() -> None:
        await remove_guest(rooms, params.guest, [ids["volume"], ids["nvram"], ids["seed"]])

    ctx.undo(undo)
    if existing is not None:
        return existing.doc
    leads_to = port_network(rooms, params.networks)
    ports = tuple([await free_port(rooms, port, leads_to) for port in params.publish])
    params = msgspec.structs.replace(params, publish=ports)
    ctx.progress(0.5, "creating its disk")
    await asyncio.to_thread(ensure_key, rooms.secrets, params.guest)
    disks = Disks()
    await add_root(rooms, disks, image, root)
    if params.firmware is Firmware.UEFI:
        await add_nvram(rooms, disks, ids["nvram"], params.name)
    if image.seed is Seed.NOCLOUD:
        await add_seed(rooms, disks, ids["seed"], params.guest, params.name, params.ssh_keys)
    guest = _document(rooms, params, image, ids, disks.disks)
    return await _commit(rooms, guest, image, disks.volumes)


async def forget_cloud_init(rooms: Rooms, guest_id: str) -> None:
    await asyncio.to_thread(nocloud.forget, rooms.secrets, guest_id)


async def forget_orphaned(rooms: Rooms) -> None:
    """At the daemon's start: a launch that was never accepted may have left what was for
    cloud-init.
    """
    active = {job.target for job in rooms.view.jobs.values() if not job.ended}
    for guest in await asyncio.to_thread(nocloud.guests_kept, rooms.secrets):
        if GUESTS.key(guest) not in active:
            await forget_cloud_init(rooms, guest)


async def _commit(rooms: Rooms, guest: Guest, image: Image, volumes: Iterable[Volume]) -> Guest:
    """Make the guest durable, all or nothing, under a number that no other guest has.

    :raise NotFound: a network or a group of its is gone. :raise NameTaken:
    :raise Conflict: an address that it is to have is another card's.
    :raise RevisionConflict: the image changed or went meanwhile.
    """
    documents = rooms.documents
    image_revision = (await documents.images.require(image.id)).revision
    while True:
        number = await free_number(rooms)
        guest = msgspec.structs.replace(guest, number=number)
        ops: list[Op] = [
            documents.guests.put_op(guest, expect=ABSENT),
            documents.guests.claim_op(guest.name, guest.id),
            Put(number_key(number), guest.id.encode(), expect=ABSENT),
            documents.images.check_op(image.id, image_revision),
        ]
        ops += [documents.volumes.put_op(volume, expect=ABSENT) for volume in volumes]
        try:
            async with rooms.rules.change, rooms.networks_change:
                require_groups(rooms, guest.spec.firewall.groups)
                await require_networks(rooms, guest.spec.nics)
                check_cards(rooms.view, guest.id, guest.spec.nics)
                await rooms.view.wait_for(await documents.store.commit(ops))
            return guest
        except RevisionConflict as conflict:
            if conflict.detail.get("key") == number_key(number):
                continue
            name_key = documents.guests.name_key(guest.name)
            raise name_taken(conflict, guest.name, name_key) from None


def name_taken(conflict: RevisionConflict, name: str, key: str) -> Exception:
    """A conflict on the name's index is a taken name; any other conflict stays what it is."""
    if conflict.detail.get("key") != key:
        return conflict
    return NameTaken(
        f"There is already a guest {name!r}.",
        hint=f"Choose another name, or remove that one: guest rm {name}",
        name=name,
    )


def _document(
    rooms: Rooms,
    params: LaunchParams,
    image: Image,
    ids: dict[str, str],
    disks: Sequence[Disk],
) -> Guest:
    facts = rooms.facts()
    spec = GuestSpec(
        image=image.name,
        image_id=image.id,
        cpus=params.cpus,
        memory=params.memory or (ROOMY if image.volume else SMALL),
        disks=tuple(disks),
        nics=cards(rooms, params.networks, ids, params.publish, params.nics),
        firmware=params.firmware,
        boot=_boot(image, params.firmware),
        machine=facts.qemu.machine if facts.qemu else "",
        cpu=params.cpu,
        accelerator=params.accelerator,
        display=params.display,
        on_panic=params.on_panic,
        user=params.user,
        description=params.description,
        seed=image.seed,
        agent=image.agent,
        ssh_port=image.ssh_port,
        keys=params.ssh_keys,
        shares=params.shares,
        firewall=Firewall(groups=params.groups),
    )
    check_spec(spec)
    now = time.time()
    return Guest(
        id=params.guest,
        name=params.name,
        uuid=ids["uuid"],
        number=0,
        created_at=now,
        spec=spec,
        status=GuestStatus(state=S.STOPPED, reason="created", message="created", since=now),
    )


def _boot(image: Image, firmware: Firmware) -> BootPath:
    """UEFI guests boot by their firmware from the start: that is what they are asked for."""
    if image.boot_files is None or (image.volume and firmware is Firmware.UEFI):
        return BootPath.DISK
    return BootPath.FIRST_KERNEL if image.volume else BootPath.KERNEL


async def free_number(rooms: Rooms) -> int:
    """The smallest number that no guest has: it indexes the guests' uids.

    From the index, not from the guests: one whose document cannot be read keeps its number.
    """
    listing = await rooms.documents.store.list(NUMBERS)
    taken = {int(entry.key.removeprefix(NUMBERS)) for entry in listing.entries}
    return next(number for number in range(len(taken) + 1) if number not in taken)
