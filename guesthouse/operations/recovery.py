"""Recover: bring back what lies beside the disks and is not in the database."""

from __future__ import annotations

import asyncio
import time

import msgspec

from guesthouse.errors import RevisionConflict
from guesthouse.jobs.context import JobContext
from guesthouse.jobs.registry import Operation
from guesthouse.model.document import Noun
from guesthouse.model.guest import Guest, GuestStatus, LaunchRecord
from guesthouse.model.states import LIVE, GuestState
from guesthouse.model.volume import Volume
from guesthouse.operations.creation import free_number
from guesthouse.operations.deletion import number_key
from guesthouse.operations.ports import published
from guesthouse.operations.recovering_networks import (
    leases_back,
    networks_back,
    on_known_networks,
)
from guesthouse.operations.rooms import Rooms
from guesthouse.operations.survey import RECOVER, Survey, free_name, survey
from guesthouse.operations.trash import expires_at, taken_ports, without_ports
from guesthouse.store.contract import ABSENT, Op, Put

S = GuestState
AT_ONCE = 64
"""Volumes that are written at the same time."""


class RecoverParams(Noun, kw_only=True, frozen=True):
    """Nothing is chosen: all comes back that can."""


class Recovered(Noun, kw_only=True, frozen=True):
    """How many came back. :ivar renamed: guests' names, old and new.

    :ivar left: what could not come back, and is left as it is.
    """

    guests: int
    images: int
    volumes: int
    networks: int
    left: int
    renamed: dict[str, str]


class Recover(Operation[RecoverParams]):
    """Documents first, those that others refer to before those; then guests that run are taken up
    as after a restart of the daemon. Running it again brings back what is still missing.
    """

    kind = RECOVER
    Params = RecoverParams
    may_cancel = False

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms

    def locks(self, params: RecoverParams) -> tuple[str, ...]:
        """No garbage is collected meanwhile."""
        return (f"pools/{self.rooms.pool.name}",)

    async def run(self, ctx: JobContext, params: RecoverParams) -> Recovered:
        """:raise KeeperUnavailable: nobody can say which guests run."""
        await ctx.step("recover")
        ctx.progress(0.0, "looking at what lies beside the disks")
        found = await survey(self.rooms)
        for finding in found.findings():
            if finding.problem:
                name = finding.name or finding.id
                ctx.log(f"{finding.kind.value} {name}: {finding.problem}")
        await self._volumes(found)
        for image in found.images.values():
            await self.rooms.catalogue.restore(image)
        await networks_back(self.rooms, found)
        renamed = {}
        for count, guest in enumerate(sorted(found.guests.values(), key=lambda g: g.id)):
            ctx.progress(0.2 + 0.8 * count / len(found.guests), f"bringing back {guest.name}")
            back = await self._guest(ctx, guest, found)
            if back.name != guest.name:
                renamed[guest.name] = back.name
        await leases_back(self.rooms, ctx, found)
        if found.networks or found.running:
            await self.rooms.recover_networks()
        return Recovered(
            guests=len(found.guests),
            images=len(found.images),
            volumes=len(found.volumes),
            networks=len(found.networks),
            left=sum(not finding.back for finding in found.findings()),
            renamed=renamed,
        )

    async def _volumes(self, found: Survey) -> None:
        volumes = list(found.volumes.values())
        for at in range(0, len(volumes), AT_ONCE):
            await asyncio.gather(*(self._volume(one) for one in volumes[at : at + AT_ONCE]))
        await self.rooms.view.wait_for(self.rooms.documents.store.revision)

    async def _volume(self, volume: Volume) -> None:
        documents = self.rooms.documents
        if await documents.volumes.get(volume.id) is None:
            await documents.store.commit([documents.volumes.put_op(volume, expect=ABSENT)])

    async def _guest(self, ctx: JobContext, guest: Guest, found: Survey) -> Guest:
        record = found.running.get(guest.id)
        back = await self._commit(ctx, as_it_is(guest, record, found.lost.get(guest.id, ())))
        if back.status.pid is not None and self.rooms.live.on_found is not None:
            await self.rooms.live.on_found(back)
        return back

    async def _commit(self, ctx: JobContext, guest: Guest) -> Guest:
        """Its document under its name and number, or others where they are taken by now."""
        documents, view = self.rooms.documents, self.rooms.view
        guest = self._kept_in_trash(guest)
        if guest.status.pid is None:  # a process holds its ports, whatever others wish
            guest = on_known_networks(self.rooms, guest)
            lost = taken_ports(guest, published(self.rooms, but=guest.id))
            guest = without_ports(guest, lost)
            for port in lost:
                ctx.log(f"guest {guest.name}: port {port} is published by another guest now")
        wanted, refused = guest.name, set[str]()
        while True:
            if (there := await documents.guests.get(guest.id)) is not None:
                return there.doc
            if not guest.in_trash:
                taken = {one.name for one in view.guests.values() if not one.in_trash}
                guest = msgspec.structs.replace(guest, name=free_name(wanted, taken | refused))
            ops: list[Op] = [
                documents.guests.put_op(guest, expect=ABSENT),
                Put(number_key(guest.number), guest.id.encode(), expect=ABSENT),
            ]
            if not guest.in_trash:
                ops.append(documents.guests.claim_op(guest.name, guest.id))
            try:
                await view.wait_for(await documents.store.commit(ops))
                return guest
            except RevisionConflict as conflict:
                await view.wait_for(documents.store.revision)
                if conflict.detail.get("key") == number_key(guest.number):
                    guest = msgspec.structs.replace(guest, number=await free_number(self.rooms))
                else:  # a guest that cannot be read keeps its name
                    refused.add(guest.name)

    def _kept_in_trash(self, guest: Guest) -> Guest:
        """Its time there begins anew if it is over: whoever recovers wants to have a look."""
        end = expires_at(guest, self.rooms.settings.trash_days)
        if end is None or end > time.time():
            return guest
        return msgspec.structs.replace(guest, deleted_at=time.time())


def as_it_is(guest: Guest, running: LaunchRecord | None, lost: list[str] | tuple[()]) -> Guest:
    """The guest of a copy with the status that it has now.

    One that has, or had, a process is unobserved: its driver tells next what became of that.
    """
    status, now = guest.status, time.time()
    if running is not None or (status.pid is not None and guest.launch is not None):
        launch = running or guest.launch
        assert launch is not None  # one of the two is there
        status = GuestStatus(
            state=S.UNOBSERVED,
            reason="recovered",
            message="its document was recovered; its process is being looked at",
            since=now,
            pid=launch.pid,
            started_at=status.started_at or launch.launched_at,
        )
        return msgspec.structs.replace(guest, status=status, launch=launch, deleted_at=None)
    if lost:
        message = f"its disk {lost[0]} is missing"
        status = GuestStatus(state=S.FAILED, reason="disk-missing", message=message, since=now)
    elif status.state in LIVE | {S.CREATING, S.DELETING}:
        message = "its document was recovered"
        status = GuestStatus(state=S.STOPPED, reason="recovered", message=message, since=now)
    return msgspec.structs.replace(guest, status=status)
