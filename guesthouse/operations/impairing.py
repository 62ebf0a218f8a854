"""Impairing a card: its packets are held up, lost or mixed up on purpose."""

from __future__ import annotations

import msgspec

from guesthouse.errors import InvalidInput
from guesthouse.jobs.context import JobContext
from guesthouse.model.guest import Guest
from guesthouse.model.impairment import NicImpairment, check_nic_impairment
from guesthouse.model.networking import BUILTIN
from guesthouse.model.nics import find_nic
from guesthouse.operations.lifecycle import GuestOperation, GuestParams

_NOTHING = NicImpairment()


class ImpairParams(GuestParams, kw_only=True, frozen=True):
    """:ivar nic: number of the card. :ivar impairment: all of it; what is not in it goes."""

    nic: int
    impairment: NicImpairment


class ImpairNic(GuestOperation[ImpairParams]):
    """Impair a card, or no longer; at once where the guest runs."""

    kind = "nic.impair"
    Params = ImpairParams

    async def run(self, ctx: JobContext, params: ImpairParams) -> None:
        guest = await self.rooms.guest(params.guest)
        check_card(guest, str(params.nic), params.impairment)
        if params.impairment != _NOTHING:
            await self.rooms.traffic.check(params.impairment)
        await ctx.step("impair")
        ctx.undo(lambda: self.rooms.traffic.impair(guest, params.nic))
        await self.rooms.traffic.impair(_impaired(guest, params), params.nic)
        await self.rooms.documents.guests.update(guest.id, lambda now: _impaired(now, params))


def check_card(guest: Guest, which: str, wanted: NicImpairment) -> int:
    """Its number. :raise NotFound: there is no such card.

    :raise InvalidInput: it cannot be impaired so.
    """
    check_nic_impairment(wanted)
    nic = find_nic(guest, which)
    if wanted != _NOTHING and nic.network == BUILTIN:
        raise InvalidInput(
            f"Card {nic.index} of {guest.name!r} cannot be impaired: it is on QEMU's builtin "
            "network, whose packets do not pass through this house.",
            hint=f"Give it a card that is: guest nic add {guest.name} --network default",
            field="nic",
        )
    return nic.index


def _impaired(guest: Guest, params: ImpairParams) -> Guest:
    nic = find_nic(guest, str(params.nic))
    nic = msgspec.structs.replace(nic, impairment=params.impairment)
    return msgspec.structs.replace(guest, spec=guest.spec.with_nic(nic))
