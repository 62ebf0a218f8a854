"""Removing a guest: documents first, then files."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable

from guesthouse.guestos.keys import delete_key
from guesthouse.jobs.context import JobContext
from guesthouse.model.states import LIVE, GuestState, require_state
from guesthouse.operations.lifecycle import GuestOperation, GuestParams, StopParams, stop_guest
from guesthouse.operations.rooms import Rooms
from guesthouse.operations.running import with_state
from guesthouse.storage.usage import layers_in_use
from guesthouse.store.contract import Delete, Op

S = GuestState
NUMBERS = "numbers/guests/"
"""Where the index of guests' numbers lies in the store."""
DELETABLE = frozenset({S.STOPPED, S.FAILED, S.SUSPENDED, S.DELETING, S.CREATING})


class DeleteParams(GuestParams, kw_only=True, frozen=True):
    """:ivar force: kill the guest first when it runs."""

    force: bool = False


class DeleteGuest(GuestOperation[DeleteParams]):
    kind = "guest.delete"
    Params = DeleteParams
    may_cancel = False

    async def run(self, ctx: JobContext, params: DeleteParams) -> None:
        found = await self.rooms.documents.guests.get(params.guest)
        if found is None and not ctx.resumed:
            await self.rooms.guest(params.guest)  # says what is missing
        volumes: list[str] = []
        if found is not None:
            guest = found.doc
            if guest.state in LIVE and params.force:
                await stop_guest(self.rooms, ctx, guest, StopParams(guest=guest.id, force=True))
                guest = await self.rooms.guest(guest.id)
            require_state(guest.name, guest.state, DELETABLE, verb="remove it")
            volumes = [disk.volume for disk in guest.spec.disks]
        ids = await ctx.step("delete", volumes=",".join(volumes))
        volumes = [volume for volume in ids["volumes"].split(",") if volume]
        if found is not None:
            await self.rooms.documents.guests.update(
                params.guest, lambda g: with_state(g, S.DELETING, "user", "being removed")
            )
        ctx.keep()
        await remove_guest(self.rooms, params.guest, volumes)


async def remove_guest(rooms: Rooms, guest_id: str, volumes: Iterable[str]) -> None:
    """Remove a guest and those of its `volumes` that nothing else uses. Safe to run again.

    Documents go first: an interruption then leaves files, which this removes when it is run
    again, and never a document that names a missing disk.
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
            documents.guests.release_op(guest.name),
            Delete(number_key(guest.number)),
        ]
    if ops:
        await rooms.view.wait_for(await documents.store.commit(ops))
    for volume in unused:
        await rooms.pool.delete(volume)
        await rooms.pool.remove_copy("volumes", volume)
    await rooms.pool.remove_copy("guests", guest_id)
    await asyncio.to_thread(delete_key, rooms.secrets, guest_id)
    for folder in (rooms.folders.guest_runtime(guest_id), rooms.folders.guest_state(guest_id)):
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def number_key(number: int) -> str:
    """The index entry that keeps two guests from having the same number, hence the same uid."""
    return f"{NUMBERS}{number:06}"
