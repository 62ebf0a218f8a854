"""Sharing folders with guests: `guest share add|rm|ls`. A running guest has them at once."""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import Sequence

import msgspec

from guesthouse.errors import AgentUnsupported, GuesthouseError, NotFound
from guesthouse.jobs.context import JobContext
from guesthouse.model.folders import Folders
from guesthouse.model.guest import Guest
from guesthouse.model.share import (
    Share,
    Way,
    check_path,
    check_shares,
    check_source,
    check_target,
    share_name,
)
from guesthouse.model.sharing import ShareRequest, ShareState, ShareView
from guesthouse.operations.lifecycle import GuestOperation, GuestParams
from guesthouse.operations.live import LiveGuest
from guesthouse.operations.rooms import Rooms
from guesthouse.shares.serving import look_at


class ShareParams(GuestParams, kw_only=True, frozen=True):
    share: Share


class AddShare(GuestOperation[ShareParams]):
    """Share a folder; with a running guest at once, and from then on whenever it runs."""

    kind = "guest.share"
    Params = ShareParams

    async def run(self, ctx: JobContext, params: ShareParams) -> dict[str, str]:
        share = params.share
        guest = await self.rooms.guest(params.guest)
        others = [one for one in guest.spec.shares if one != share]
        await check_wanted(self.rooms, [*others, share], guest.name, ssh_port=guest.spec.ssh_port)
        await ctx.step("share")
        live = self.rooms.live.get(guest.id)
        reason = ""
        if live is not None and live.shares is not None:
            ctx.progress(None, "mounting it in the guest")
            ctx.undo(lambda: _take_back(live, share))
            reason = (await live.shares.mount(share)).reason
            live.share_problems.pop(share.name, None)
        await change_shares(self.rooms, guest.id, add=share)
        return {"name": share.name, "reason": reason}


class UnshareParams(GuestParams, kw_only=True, frozen=True):
    share: str
    force: bool = False


class RemoveShare(GuestOperation[UnshareParams]):
    """Take a share back. In use in the guest, it stays, and who uses it is named."""

    kind = "guest.unshare"
    Params = UnshareParams

    async def run(self, ctx: JobContext, params: UnshareParams) -> None:
        guest = await self.rooms.guest(params.guest)
        found = next((one for one in guest.spec.shares if one.name == params.share), None)
        if found is None:
            if ctx.resumed:
                return
            raise NotFound(
                f"Guest {guest.name!r} has no share {params.share!r}.",
                hint=f"See its shares: guest share ls {guest.name}",
            )
        await ctx.step("unshare")
        live = self.rooms.live.get(guest.id)
        if live is not None and live.shares is not None:
            try:
                await live.shares.unmount(found)
            except GuesthouseError:
                if not params.force:
                    raise
                await live.shares.dropped(found)
            live.share_problems.pop(found.name, None)
        await change_shares(self.rooms, guest.id, remove=found)


async def check_wanted(
    rooms: Rooms, shares: Sequence[Share], guest: str, *, ssh_port: bool
) -> None:
    """Whether a guest may have all these; `ssh_port` says whether its image has ours.

    :raise AgentUnsupported: it could not mount them. :raise Conflict: they cover each other.
    :raise InvalidInput: too many, or the last one's folder is not there or not to be shared.
    """
    if not shares:
        return
    if not ssh_port:
        raise AgentUnsupported(
            f"Guest {guest!r} cannot mount shares: its image has no ssh port of ours.",
            hint="Use an image that Guesthouse built: guest image ls",
        )
    check_shares(shares)
    await asyncio.to_thread(_check_source, rooms.folders, shares[-1])


def shares_of(requests: Sequence[ShareRequest], requester: str) -> tuple[Share, ...]:
    """The shares of a guest that is to be made. Raises as `share_of`."""
    made: list[Share] = []
    for request in requests:
        made.append(share_of(request, requester, [one.name for one in made]))
    return tuple(made)


def share_of(request: ShareRequest, requester: str, taken: Sequence[str]) -> Share:
    """The share that is asked for, with its name and the user who shares.

    :param taken: names of the guest's other shares.
    :raise InvalidInput: paths that cannot be.
    """
    target = check_path(request.target, field="target", where="guest")
    check_target(target, field="target")
    uid = _uid(requester)
    try:
        gid = pwd.getpwuid(uid).pw_gid
    except KeyError:
        gid = uid
    return Share(
        name=share_name(target, taken),
        source=check_path(request.source, field="source", where="host"),
        target=target,
        read_only=request.read_only,
        way=request.way,
        host_uid=uid,
        host_gid=gid if os.geteuid() == 0 else os.getegid(),
        guest_user=request.guest_user,
        system_folder=request.system_folder,
    )


async def views(rooms: Rooms, guest: Guest) -> list[ShareView]:
    """Every share of the guest, and how it is. The guest is not asked."""
    live = rooms.live.get(guest.id)
    return await asyncio.to_thread(lambda: [_view(live, share) for share in guest.spec.shares])


async def change_shares(
    rooms: Rooms, guest_id: str, *, add: Share | None = None, remove: Share | None = None
) -> Guest:
    """Change the shares in the document."""

    def changed(guest: Guest) -> Guest:
        gone = {share.name for share in (add, remove) if share is not None}
        shares = tuple(one for one in guest.spec.shares if one.name not in gone)
        shares += (add,) if add is not None else ()
        return msgspec.structs.replace(
            guest, spec=msgspec.structs.replace(guest.spec, shares=shares)
        )

    return (await rooms.documents.guests.update(guest_id, changed)).doc


async def _take_back(live: LiveGuest, share: Share) -> None:
    assert live.shares is not None
    await live.shares.unmount(share)


def _check_source(folders: Folders, share: Share) -> None:
    """Links are resolved first: a link to /etc is /etc."""
    found = look_at(share.source)
    check_source(
        found.path,
        asked_twice=share.system_folder,
        private=[os.path.realpath(folder) for folder in _private(folders)],
    )


def _private(folders: Folders) -> Sequence[str]:
    return [str(folders.state), str(folders.runtime)]


def _uid(requester: str) -> int:
    """Root's daemon shares as whoever asked; an ordinary user's can only share as that user."""
    kind, _, number = requester.partition(":")
    if os.geteuid() == 0 and kind == "uid" and number.isdigit():
        return int(number)
    return os.geteuid()


def _view(live: LiveGuest | None, share: Share) -> ShareView:
    state, message = ShareState.WAITING, ""
    way, reason = share.way or Way.SFTP, ""
    walls: tuple[str, ...] = ()
    if live is not None and live.shares is not None:
        record = live.shares.server(share)
        message = live.share_problems.get(share.name, "")
        if message:
            state = ShareState.FAILED
        elif record is not None and record.mounted:
            state, walls = ShareState.MOUNTED, record.walls
            way, reason = record.way, record.reason
    fields = {**msgspec.structs.asdict(share), "way": way}
    return ShareView(**fields, state=state, message=message, reason=reason, walls=walls)
