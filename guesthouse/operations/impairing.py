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


def cards_of(guest: Guest) -> dict[int, Nic]:
    """A guest's cards by their numbers."""
    return dict(enumerate(guest.spec.nics))


def find_card(guest: Guest, which: str) -> tuple[int, Nic]:
    """Number and card. :param which: its number or MAC address. :raise NotFound: none is that."""
    cards = cards_of(guest)
    for number, nic in cards.items():
        if which.lower() in (str(number), nic.mac):
            return number, nic
    listed = ", ".join(map(str, cards)) or "none"
    raise NotFound(
        f"Guest {guest.name!r} has no network card {which!r}.",
        hint=f"Its cards: {listed}. See them with: guest info {guest.name}",
        nic=which,
    )


def check_card(guest: Guest, which: str, wanted: NicImpairment) -> int:
    """Its number. :raise NotFound: there is no such card.

    :raise InvalidInput: it cannot be impaired so.
    """
    check_nic_impairment(wanted)
    number, nic = find_card(guest, which)
    if wanted != _NOTHING and nic.network == BUILTIN:
        raise InvalidInput(
            f"Card {number} of {guest.name!r} cannot be impaired: it is on QEMU's builtin network, "
            "whose packets do not pass through this house.",
            hint="Impair a card that is on a network of the house: guest launch --network default",
            field="nic",
        )
    return number


def _impaired(guest: Guest, params: ImpairParams) -> Guest:
    nics = tuple(
        msgspec.structs.replace(nic, impairment=params.impairment) if number == params.nic else nic
        for number, nic in cards_of(guest).items()
    )
    spec = msgspec.structs.replace(guest.spec, nics=nics)
    return msgspec.structs.replace(guest, spec=spec)
