"""Removing a guest: to the trash, or for good."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterable

import msgspec

from guesthouse.errors import Conflict
from guesthouse.guestos.keys import delete_key
from guesthouse.jobs.context import JobContext
from guesthouse.model.firewall import EndpointKind
from guesthouse.model.guest import Guest
from guesthouse.model.states import LIVE, GuestState, require_state
from guesthouse.operations.firewall_names import log_naming
from guesthouse.operations.lifecycle import GuestOperation, GuestParams, StopParams, stop_guest
from guesthouse.operations.rooms import Rooms
from guesthouse.operations.running import end_status, with_state
from guesthouse.storage.usage import layers_in_use
from guesthouse.store.contract import Delete, Op

S = GuestState
NUMBERS = "numbers/guests/"
"""Where the index of guests' numbers lies in the store."""
DELETABLE = frozenset({S.STOPPED, S.FAILED, S.SUSPENDED, S.DELETING, S.CREATING})


IN_THE_WAY = dict.fromkeys(
    (S.RUNNING, S.PAUSED), "Stop it first (guest stop {name}), or kill it: guest rm --force {name}"
)


class DeleteParams(GuestParams, kw_only=True, frozen=True):
    """:ivar force: kill the guest first when it runs. :ivar now: do not keep it in the trash."""

    force: bool = False
    now: bool = False


class DeleteGuest(GuestOperation[DeleteParams]):
    kind = "guest.delete"
    Params = DeleteParams
    may_cancel = False

    async def run(self, ctx: JobContext, params: DeleteParams) -> dict[str, object]:
        """:raise Conflict: the guest is protected. :raise InvalidTransition: it runs."""
        if not (ctx.has_step("trash") or ctx.has_step("delete")):
            await self._prepare(ctx, params)
        if params.now:
            await delete_for_good(self.rooms, ctx, params.guest)
            return {"trashed": False}
        guest = await move_to_trash(self.rooms, ctx, params.guest)
        return {"trashed": True, "deleted_at": guest.deleted_at}

    async def _prepare(self, ctx: JobContext, params: DeleteParams) -> None:
        guest = await self.rooms.guest(params.guest)
        refuse_protected(guest)
        if guest.state in LIVE and params.force:
            await stop_guest(self.rooms, ctx, guest, StopParams(guest=guest.id, force=True))
            guest = await self.rooms.guest(guest.id)
        require_state(guest.name, guest.state, DELETABLE, verb="remove it", cures=IN_THE_WAY)


def refuse_protected(guest: Guest) -> None:
    """:raise Conflict: nobody may remove it until that is taken back."""
    if guest.spec.protected:
        raise Conflict(
            f"Guest {guest.name!r} is protected and cannot be removed.",
            hint=f"If you mean it: guest set {guest.name} protected=false",
            guest=guest.name,
            protected=True,
        )


async def move_to_trash(rooms: Rooms, ctx: JobContext, guest_id: str) -> Guest:
    """Take its name and put it aside with all that it has. Safe to run again."""
    await ctx.step("trash")
    guest = (await rooms.documents.guests.require(guest_id)).doc
    if guest.in_trash:
        return guest

    def trashed(current: Guest) -> Guest:
        if current.state in {S.CREATING, S.DELETING}:  # what was begun then is called off
            current = end_status(current, S.STOPPED, "user", "stopped")
        return msgspec.structs.replace(current, deleted_at=time.time())

    release = rooms.documents.guests.release_op(guest.name)
    moved = await rooms.documents.guests.update(guest_id, trashed, extra_ops=[release])
    await rooms.view.wait_for(moved.revision)
    return moved.doc


async def delete_for_good(rooms: Rooms, ctx: JobContext, guest_id: str) -> None:
    """Delete it with its disks and its key. Safe to run again."""
    found = await rooms.documents.guests.get(guest_id)
    volumes = [disk.volume for disk in found.doc.spec.disks] if found else []
    ids = await ctx.step("delete", volumes=",".join(volumes))
    ctx.keep()
    if found is not None:
        ctx.undo(lambda: _call_off(rooms, guest_id))
        await rooms.documents.guests.update(
            guest_id, lambda g: with_state(g, S.DELETING, "user", "being removed")
        )
    await remove_guest(rooms, guest_id, [volume for volume in ids["volumes"].split(",") if volume])
    log_naming(ctx, rooms.view, EndpointKind.GUEST, guest_id)


async def _call_off(rooms: Rooms, guest_id: str) -> None:
    """The removal failed: a guest that still has its document stays, with all that it has."""

    def back(guest: Guest) -> Guest:
        if guest.state is not S.DELETING:
            return guest
        return end_status(guest, S.STOPPED, "user", "its removal failed")

    if await rooms.documents.guests.get(guest_id) is not None:
        await rooms.documents.guests.update(guest_id, back)


async def remove_guest(rooms: Rooms, guest_id: str, volumes: Iterable[str]) -> None:
    """Remove a guest and those of its `volumes` that nothing else uses. Safe to run again.

    Documents go first: an interruption then leaves files, which this removes when it is run
    again, and never a document that names a missing disk. Their copies come next, so that a
    database that is lost now comes back either with the whole guest or without it.
    """
    documents = rooms.documents
    others = [guest for guest in rooms.view.guests.values() if guest.id != guest_id]
    used = layers_in_use(others, rooms.view.images.values(), rooms.view.volumes.values())
    unused = [volume for volume in volumes if volume not in used]
    found = await documents.guests.get(guest_id)
    ops: list[Op] = [Delete(documents.volumes.key(volume)) for volume in unused]
    if found is not None:
        guest = found.doc
        ops += [
            documents.guests.delete_op(guest_id, expect=found.revision),
            Delete(number_key(guest.number)),
        ]
        if not guest.in_trash:  # there its name may be another's
            ops.append(documents.guests.release_op(guest.name))
    if ops:
        await rooms.view.wait_for(await documents.store.commit(ops))
    await rooms.leave_networks(guest_id)
    await rooms.give_back_ids(guest_id)
    await rooms.pool.remove_copy("guests", guest_id)
    for volume in unused:
        await rooms.pool.remove_copy("volumes", volume)
        await rooms.pool.delete(volume)
    await asyncio.to_thread(delete_key, rooms.secrets, guest_id)
    for folder in (rooms.folders.guest_runtime(guest_id), rooms.folders.guest_state(guest_id)):
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def number_key(number: int) -> str:
    """The index entry that keeps two guests from having the same number, hence the same uid."""
    return f"{NUMBERS}{number:06}"
