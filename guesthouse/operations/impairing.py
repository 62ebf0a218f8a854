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
    """:ivar nic: the card's number. :ivar impairment: all of it; what is not in it goes."""

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
    nic = guest.spec.nic(index)
    if nic is not None:
        return nic
    raise NotFound(
        f"Guest {guest.name!r} has no network card {index}.",
        hint=f"See its cards: guest nic ls {guest.name}",
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
    nic = msgspec.structs.replace(card_of(guest, params.nic), impairment=params.impairment)
    return msgspec.structs.replace(guest, spec=guest.spec.with_nic(nic))
