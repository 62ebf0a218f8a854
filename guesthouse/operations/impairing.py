"""Impairing a card: its packets are held up, lost or mixed up on purpose."""

from __future__ import annotations

import msgspec

from guesthouse.errors import InvalidInput, NotFound
from guesthouse.jobs.context import JobContext
from guesthouse.model.device import Nic
from guesthouse.model.guest import Guest
from guesthouse.model.impairment import NicImpairment, check_nic_impairment
from guesthouse.model.networking import BUILTIN
from guesthouse.operations.lifecycle import GuestOperation, GuestParams

_NOTHING = NicImpairment()


class ImpairParams(GuestParams, kw_only=True, frozen=True):
    """:ivar nic: 0 is the first card. :ivar impairment: all of it; what is not in it goes."""

    nic: int
    impairment: NicImpairment


class ImpairNic(GuestOperation[ImpairParams]):
    """Impair a card, or no longer; at once where the guest runs."""

    kind = "nic.impair"
    Params = ImpairParams

    async def run(self, ctx: JobContext, params: ImpairParams) -> None:
        guest = await self.rooms.guest(params.guest)
        check_card(guest, params.nic, params.impairment)
        if params.impairment != _NOTHING:
            await self.rooms.traffic.check(params.impairment)
        await ctx.step("impair")
        ctx.undo(lambda: self.rooms.traffic.impair(guest, params.nic))
        await self.rooms.traffic.impair(_impaired(guest, params), params.nic)
        await self.rooms.documents.guests.update(guest.id, lambda now: _impaired(now, params))


def card_of(guest: Guest, index: int) -> Nic:
    """:raise NotFound: it has no such card."""
    nics = guest.spec.nics
    if 0 <= index < len(nics):
        return nics[index]
    has = "no network card" if not nics else f"cards 0 to {len(nics) - 1}" if nics[1:] else "card 0"
    raise NotFound(
        f"Guest {guest.name!r} has no card {index}; it has {has}.",
        hint=f"See its cards: guest info {guest.name}",
        nic=index,
    )


def check_card(guest: Guest, index: int, wanted: NicImpairment) -> None:
    """:raise NotFound: it has no such card. :raise InvalidInput: it cannot be impaired so."""
    nic = card_of(guest, index)
    check_nic_impairment(wanted)
    if wanted != _NOTHING and nic.network == BUILTIN:
        raise InvalidInput(
            f"Card {index} of {guest.name!r} cannot be impaired: it is on QEMU's builtin network, "
            "whose packets do not pass through this house.",
            hint="Impair a card that is on a network of the house: guest launch --network default",
            field="nic",
        )


def _impaired(guest: Guest, params: ImpairParams) -> Guest:
    nics = list(guest.spec.nics)
    nics[params.nic] = msgspec.structs.replace(nics[params.nic], impairment=params.impairment)
    spec = msgspec.structs.replace(guest.spec, nics=tuple(nics))
    return msgspec.structs.replace(guest, spec=spec)
