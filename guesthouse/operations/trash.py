"""The trash: guests that were removed and can be brought back, until they are purged."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from guesthouse.errors import Conflict, NameTaken, NotFound, RevisionConflict
from guesthouse.jobs.context import JobContext
from guesthouse.model.device import Publish
from guesthouse.model.guest import Guest
from guesthouse.model.names import check_name
from guesthouse.model.states import GuestState
from guesthouse.network.ports import overlap
from guesthouse.operations.deletion import delete_for_good
from guesthouse.operations.lifecycle import GuestOperation, GuestParams
from guesthouse.operations.ports import published
from guesthouse.operations.rooms import Rooms
from guesthouse.operations.running import end_status

DAY = 86400.0


def expires_at(guest: Guest, trash_days: int) -> float | None:
    """When it is purged, in seconds since the epoch; None outside the trash."""
    return None if guest.deleted_at is None else guest.deleted_at + trash_days * DAY


class UndeleteParams(GuestParams, kw_only=True, frozen=True):
    """:ivar name: another name than it had; empty keeps that."""

    name: str = ""


class Undelete(GuestOperation[UndeleteParams]):
    """Bring a guest back from the trash, as it was; it does not run."""

    kind = "guest.undelete"
    Params = UndeleteParams
    may_cancel = False

    async def run(self, ctx: JobContext, params: UndeleteParams) -> dict[str, object]:
        """:raise NameTaken: :raise Conflict: it is not in the trash any more."""
        guests = self.rooms.documents.guests
        guest = (await guests.require(params.guest)).doc
        name = params.name or guest.name
        check_name(name)
        if not guest.in_trash:
            if ctx.has_step("undelete") and guest.name == name:
                return {"name": name, "unpublished": []}
            raise Conflict(f"Guest {guest.name!r} is not in the trash.", hint="See: guest ls")
        await ctx.step("undelete")
        lost = taken_ports(guest, published(self.rooms, but=guest.id))
        try:
            back = await guests.update(
                guest.id,
                lambda g: without_ports(brought_back(g, name), lost),
                extra_ops=[guests.claim_op(name, guest.id)],
            )
        except RevisionConflict as conflict:
            if conflict.detail.get("key") == guests.name_key(name):
                raise _taken(guest, name) from None
            raise
        await self.rooms.view.wait_for(back.revision)
        for port in lost:
            ctx.log(f"port {port} is published by another guest now; {name} gave it up")
        return {"name": name, "unpublished": [str(port) for port in lost]}


def brought_back(guest: Guest, name: str) -> Guest:
    """Out of the trash, under `name`; an interrupted purge is called off."""
    if guest.state is GuestState.DELETING:
        guest = end_status(guest, GuestState.STOPPED, "user", "stopped")
    return msgspec.structs.replace(guest, deleted_at=None, name=name)


def taken_ports(guest: Guest, held: Iterable[Publish]) -> list[Publish]:
    """Ports of `guest` that cannot be open together with one of `held`."""
    held = tuple(held)
    mine = (port for nic in guest.spec.nics for port in nic.ports)
    return [port for port in mine if any(overlap(port, other) for other in held)]


def without_ports(guest: Guest, ports: Iterable[Publish]) -> Guest:
    dropped = set(ports)
    nics = tuple(
        msgspec.structs.replace(nic, ports=tuple(p for p in nic.ports if p not in dropped))
        for nic in guest.spec.nics
    )
    return msgspec.structs.replace(guest, spec=msgspec.structs.replace(guest.spec, nics=nics))


def _taken(guest: Guest, name: str) -> NameTaken:
    return NameTaken(
        f"There is already a guest {name!r}.",
        hint=f"Bring this one back under another name: guest undelete {guest.id} --name NEW",
        name=name,
    )


class PurgeParams(GuestParams, kw_only=True, frozen=True):
    """:ivar deleted_at: as it was when this was asked for: whoever brought the guest back and
    removed it again meanwhile means it to stay for another while.
    """

    deleted_at: float


class Purge(GuestOperation[PurgeParams]):
    """Delete a guest of the trash for good."""

    kind = "guest.purge"
    Params = PurgeParams
    may_cancel = False

    async def run(self, ctx: JobContext, params: PurgeParams) -> None:
        """:raise NotFound: it is not in the trash any more."""
        if not ctx.has_step("delete"):
            found = await self.rooms.documents.guests.get(params.guest)
            if found is None or found.doc.deleted_at != params.deleted_at:
                raise NotFound(
                    f"Guest {params.guest} is not in the trash any more.",
                    hint="See what the trash holds: guest trash ls",
                )
        await delete_for_good(self.rooms, ctx, params.guest)


def expired(rooms: Rooms, now: float) -> list[Guest]:
    """Guests whose time in the trash is over; none while documents cannot be read, since those
    may need what would be deleted. :param now: seconds since the epoch.
    """
    if rooms.view.quarantined:
        return []
    days = rooms.settings.trash_days
    return [
        guest
        for guest in rooms.view.guests.values()
        if (end := expires_at(guest, days)) is not None and end <= now
    ]
