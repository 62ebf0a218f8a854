"""Network cards come, change and go: `guest nic add|set|rm`. A running guest has it at once.

What a card is stands in the document first, so that a daemon that dies in between finds it there:
the tap of a card that no document knows would be taken away under the guest. Only a card that goes
leaves the guest first.
"""

from __future__ import annotations

from contextlib import suppress

import msgspec

from guesthouse.drivers.base import Running
from guesthouse.errors import InUse, InvalidInput, InvalidTransition, NotFound
from guesthouse.jobs.context import JobContext
from guesthouse.model.device import Link, Nic, free_index, free_plug, new_mac
from guesthouse.model.document import decode_strict, encode
from guesthouse.model.guest import Guest
from guesthouse.model.impairment import NicImpairment
from guesthouse.model.network import NetworkKind
from guesthouse.model.networking import BUILTIN
from guesthouse.model.nics import NicChange, changed_nic
from guesthouse.model.states import LIVE, GuestState
from guesthouse.operations.addresses import check_cards
from guesthouse.operations.joining import require_networks
from guesthouse.operations.lifecycle import GuestOperation, GuestParams
from guesthouse.operations.rooms import Rooms


class AddNicParams(GuestParams, kw_only=True, frozen=True):
    """:ivar network: id, or `builtin`. The others are as in `nics.NicRequest`."""

    network: str
    mac: str = ""
    address4: str = ""
    address6: str = ""
    link: Link = Link.UP


class AddNic(GuestOperation[AddNicParams]):
    """A card more; what has a process gets it plugged in."""

    kind = "nic.add"
    Params = AddNicParams

    async def run(self, ctx: JobContext, params: AddNicParams) -> dict[str, object]:
        """:raise Conflict: an address is another card's, or there are as many as can be."""
        guest = await self.rooms.guest(params.guest)
        running = running_of(self.rooms, guest, verb="add a network card")
        cards = guest.spec.nics
        ids = await ctx.step(
            "add",
            index=lambda: str(free_index(cards)),
            plug=lambda: str(free_plug(cards)),
            mac=lambda: params.mac or new_mac(),
        )
        nic = Nic(
            index=int(ids["index"]),
            plug=int(ids["plug"]),
            mac=ids["mac"],
            network=params.network,
            address4=params.address4,
            address6=params.address6,
            link=params.link,
        )
        ctx.undo(lambda: self._take_back(guest.id, nic, running))
        await write_nic(self.rooms, guest, nic)
        if running is not None:
            ctx.progress(None, "plugging it in")
            await running.plug_nic(nic)
        return {"index": nic.index, "mac": nic.mac}

    async def _take_back(self, guest_id: str, nic: Nic, running: Running | None) -> None:
        if running is not None:
            with suppress(NotFound):
                await running.unplug_nic(nic.index)
        await drop_nic(self.rooms, guest_id, nic.index)


class RemoveNicParams(GuestParams, kw_only=True, frozen=True):
    """:ivar nic: its number."""

    nic: int


class RemoveNic(GuestOperation[RemoveNicParams]):
    """A card less. A running guest is asked to let go of it, and may refuse."""

    kind = "nic.remove"
    Params = RemoveNicParams

    async def run(self, ctx: JobContext, params: RemoveNicParams) -> None:
        """:raise InUse: it has published ports. :raise Conflict: the guest refuses.

        :raise InvalidTransition: it cannot be pulled now. :raise DeadlineExceeded:
        """
        guest = await self.rooms.guest(params.guest)
        nic = guest.spec.nic(params.nic)
        if nic is None:
            if not ctx.has_step("remove"):
                raise NotFound(
                    f"Guest {guest.name!r} has no network card {params.nic}.",
                    hint=f"See its cards: guest nic ls {guest.name}",
                )
            await self.rooms.leave_card(guest.id, params.nic)
            return
        running = running_of(self.rooms, guest, verb="remove a network card")
        if not ctx.has_step("remove"):
            _check_removable(guest, nic)
        await ctx.step("remove")
        if running is not None:
            ctx.undo(lambda: _plug_again(running, nic))
            ctx.progress(None, "waiting for the guest to let go of it")
            await running.unplug_nic(nic.index)
        await ctx.insist(lambda: drop_nic(self.rooms, guest.id, nic.index))


class SetNicParams(GuestParams, kw_only=True, frozen=True):
    """:ivar nic: its number. :ivar change: its `network` is an id, or `builtin`."""

    nic: int
    change: NicChange


class SetNic(GuestOperation[SetNicParams]):
    """Another network, other addresses, another MAC, its link. What runs has it at once, but for
    its MAC, and a network of its own.
    """

    kind = "nic.set"
    Params = SetNicParams

    async def run(self, ctx: JobContext, params: SetNicParams) -> None:
        """:raise Conflict: an address is another card's. :raise InvalidInput: it cannot be.

        :raise InvalidTransition: not while the guest runs.
        """
        guest = await self.rooms.guest(params.guest)
        now = guest.spec.nic(params.nic)
        if now is None:
            raise NotFound(
                f"Guest {guest.name!r} has no network card {params.nic}.",
                hint=f"See its cards: guest nic ls {guest.name}",
            )
        running = running_of(self.rooms, guest, verb="change a network card")
        if not ctx.has_step("set"):
            wanted = changed_nic(now, params.change, params.change.network)
            check_change(self.rooms, guest, now, wanted)
        ids = await ctx.step("set", before=lambda: encode(now).decode())
        before = decode_strict(ids["before"].encode(), Nic, what="card")
        wanted = changed_nic(before, params.change, params.change.network)
        ctx.undo(lambda: self._take_back(guest, before, running, instead_of=wanted))
        await self._become(guest, wanted, running, instead_of=before)

    async def _take_back(
        self, guest: Guest, nic: Nic, running: Running | None, *, instead_of: Nic
    ) -> None:
        with suppress(NotFound):  # of a process that has ended nothing is to be taken back
            await self._become(guest, nic, running, instead_of=instead_of)

    async def _become(
        self, guest: Guest, nic: Nic, running: Running | None, *, instead_of: Nic
    ) -> None:
        await write_nic(self.rooms, guest, nic)
        if _place(nic) != _place(instead_of):
            if running is None:
                await self.rooms.leave_card(guest.id, nic.index)
            else:
                await running.move_nic(nic)
        elif running is not None and nic.link is not instead_of.link:
            await running.set_link(nic.index, up=nic.link is Link.UP)


def running_of(rooms: Rooms, guest: Guest, *, verb: str) -> Running | None:
    """Its process, if it has one. :raise InvalidTransition: it has one that does not answer."""
    if guest.status.pid is None and guest.state not in LIVE:
        return None
    return rooms.live.require(guest, verb=verb).running


async def write_nic(rooms: Rooms, guest: Guest, nic: Nic) -> None:
    """The card becomes part of the guest's document, in place of the one of its number.

    :raise NotFound: its network is gone. :raise Conflict: an address of its is another card's.
    """
    async with rooms.networks_change:
        await require_networks(rooms, [nic])
        check_cards(rooms.view, guest.id, guest.spec.with_nic(nic).nics)
        done = await rooms.documents.guests.update(
            guest.id,
            lambda now: msgspec.structs.replace(now, spec=now.spec.with_nic(_as_now(now, nic))),
        )
        await rooms.view.wait_for(done.revision)


async def drop_nic(rooms: Rooms, guest_id: str, index: int) -> None:
    """The guest's document, its network and the book of addresses forget the card."""
    done = await rooms.documents.guests.update(
        guest_id,
        lambda now: msgspec.structs.replace(now, spec=now.spec.without_nic(index)),
    )
    await rooms.view.wait_for(done.revision)
    await rooms.leave_card(guest_id, index)


def check_change(rooms: Rooms, guest: Guest, before: Nic, wanted: Nic) -> None:
    """What can be said at once. Raises as `SetNic.run`."""
    network = rooms.view.networks.get(wanted.network)
    if wanted.ports and network is not None and network.kind is NetworkKind.ISOLATED:
        raise InvalidInput(
            f"Network {network.name} is isolated: nothing comes in from outside, and card "
            f"{before.index} has published ports.",
            hint=f"Close them first: {_unpublish(guest, before)}",
            field="network",
        )
    if wanted.network == BUILTIN and wanted.impairment != NicImpairment():
        raise InvalidInput(
            f"Card {before.index} is impaired, which QEMU's builtin network cannot do.",
            hint=f"End that first: guest nic set {guest.name} {before.index} clear",
            field="network",
        )
    if guest.status.pid is None:
        return
    if wanted.mac != before.mac:
        raise InvalidTransition(
            f"A card's MAC address cannot change while guest {guest.name!r} runs.",
            hint=f"Stop it first: guest stop {guest.name}",
            guest=guest.name,
        )
    if (wanted.network == BUILTIN) is not (before.network == BUILTIN):
        raise InvalidTransition(
            f"Card {before.index} cannot come from or to a network of the guest's own while guest "
            f"{guest.name!r} runs.",
            hint=f"Stop it first: guest stop {guest.name}; or add another card: "
            f"guest nic add {guest.name} --network NAME",
            guest=guest.name,
        )


def _check_removable(guest: Guest, nic: Nic) -> None:
    if nic.ports:
        raise InUse(
            f"Card {nic.index} of guest {guest.name!r} has published ports: "
            f"{', '.join(map(str, nic.ports))}.",
            hint=f"Close them first: {_unpublish(guest, nic)}",
            guest=guest.name,
        )
    if guest.status.pid is None:
        return
    if nic.plug is None:
        raise InvalidTransition(
            f"Card {nic.index} is soldered into guest {guest.name!r}: it cannot be pulled while "
            "the guest runs.",
            hint=f"Stop it first: guest stop {guest.name}; or pull the cable: "
            f"guest nic set {guest.name} {nic.index} link=down",
            guest=guest.name,
        )
    if guest.state is GuestState.PAUSED:
        raise InvalidTransition(
            f"Guest {guest.name!r} is paused, and cannot let go of a card.",
            hint=f"Let it go on first: guest resume {guest.name}",
            guest=guest.name,
        )


async def _plug_again(running: Running, nic: Nic) -> None:
    with suppress(NotFound):
        await running.plug_nic(nic)


def _as_now(guest: Guest, nic: Nic) -> Nic:
    """With the ports that it has by now."""
    now = guest.spec.nic(nic.index)
    return nic if now is None else msgspec.structs.replace(nic, ports=now.ports)


def _place(nic: Nic) -> tuple[str, str, str]:
    return nic.network, nic.address4, nic.address6


def _unpublish(guest: Guest, nic: Nic) -> str:
    return f"guest unpublish {guest.name} {nic.ports[0]}"
