"""Changing the firewall of a guest or a network. It is in force at once, or nothing is changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from guesthouse.errors import InvalidInput, NotFound
from guesthouse.jobs.context import JobContext
from guesthouse.jobs.registry import Operation
from guesthouse.model.document import Noun, decode_strict, encode
from guesthouse.model.firewall import Firewall, check_firewall
from guesthouse.model.guest import Guest
from guesthouse.model.network import Network
from guesthouse.model.rule_edits import FirewallEdit, edited, named, taking_back
from guesthouse.operations.firewall_names import require
from guesthouse.operations.lifecycle import GuestOperation, GuestParams
from guesthouse.operations.rooms import Rooms
from guesthouse.store.documents import NETWORKS

Change = Callable[[Firewall], Firewall]


class GuestFirewallParams(GuestParams, kw_only=True, frozen=True):
    edit: FirewallEdit


class ChangeGuestFirewall(GuestOperation[GuestFirewallParams]):
    kind = "guest.firewall"
    Params = GuestFirewallParams

    async def run(self, ctx: JobContext, params: GuestFirewallParams) -> dict[str, str]:
        """Raises as `change_firewall`."""
        rooms = self.rooms
        guest = await rooms.guest(params.guest)
        if not ctx.has_step("set"):
            require_card(rooms, guest, params.edit)

        async def write(change: Change) -> None:
            def changed(now: Guest) -> Guest:
                spec = msgspec.structs.replace(now.spec, firewall=change(now.spec.firewall))
                return msgspec.structs.replace(now, spec=spec)

            done = await rooms.documents.guests.update(params.guest, changed)
            await rooms.view.wait_for(done.revision)

        return await change_firewall(rooms, ctx, guest.spec.firewall, params.edit, write)


class NetworkFirewallParams(Noun, kw_only=True, frozen=True):
    network: str
    edit: FirewallEdit


class ChangeNetworkFirewall(Operation[NetworkFirewallParams]):
    kind = "network.firewall"
    Params = NetworkFirewallParams

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms

    def locks(self, params: NetworkFirewallParams) -> Sequence[str]:
        return (NETWORKS.key(params.network),)

    async def run(self, ctx: JobContext, params: NetworkFirewallParams) -> dict[str, str]:
        """Raises as `change_firewall`."""
        rooms = self.rooms
        network = (await rooms.documents.networks.require(params.network)).doc

        async def write(change: Change) -> None:
            def changed(now: Network) -> Network:
                return msgspec.structs.replace(now, firewall=change(now.firewall))

            done = await rooms.documents.networks.update(params.network, changed)
            await rooms.view.wait_for(done.revision)

        return await change_firewall(rooms, ctx, network.firewall, params.edit, write)


async def change_firewall(
    rooms: Rooms,
    ctx: JobContext,
    before: Firewall,
    wanted: FirewallEdit,
    write: Callable[[Change], Awaitable[None]],
) -> dict[str, str]:
    """:param write: changes the firewall in its document.

    :raise NotFound: whom a rule names, or a rule, is gone. :raise Conflict: there is such a rule.
    :raise HostLacks: the kernel cannot hold it. :raise InvalidInput: there are too many.
    """
    again = ctx.has_step("set")
    wanted = msgspec.structs.replace(wanted, rules=named(before.rules, wanted.rules))
    if not again:
        check_firewall(edited(before, wanted))
    # What this program would do now may not be what was begun, so both ways are written down.
    noted = await ctx.step(
        "set",
        edit=lambda: encode(wanted).decode(),
        back=lambda: encode(taking_back(before, wanted)).decode(),
    )
    edit = decode_strict(noted["edit"].encode(), FirewallEdit)
    back = decode_strict(noted["back"].encode(), FirewallEdit)

    async def take_back() -> None:
        async with rooms.rules.change:
            await write(lambda now: edited(now, back, again=True))
            await rooms.rules.reload(rooms.view)

    async with rooms.rules.change:
        _require_all(rooms, edit)
        ctx.undo(take_back)
        await write(lambda now: edited(now, edit, again=again))
        await rooms.rules.reload(rooms.view)
    rule = edit.rules.put.name if edit.rules.put else edit.rules.drop
    return {"rule": rule} if rule else {}


def _require_all(rooms: Rooms, edit: FirewallEdit) -> None:
    if edit.rules.put is not None:
        require(rooms.view, edit.rules.put)
    for group in edit.groups or ():
        if group not in rooms.view.groups:
            raise NotFound(
                "A security group that was named is gone.",
                hint="See what there is: guest firewall group ls",
            )


def require_card(rooms: Rooms, guest: Guest, edit: FirewallEdit) -> None:
    """:raise InvalidInput: what is asked for would keep nobody out: the guest has no card on a
    network of the house."""
    closing = {"drop", "reject"} & {str(edit.incoming), str(edit.outgoing)}
    if not (edit.rules.put or edit.groups or closing):
        return
    if any(nic.network in rooms.view.networks for nic in guest.spec.nics):
        return
    raise InvalidInput(
        f"Guest {guest.name!r} is on no network of the house, and only there rules hold.",
        hint="Launch a guest on one: guest launch IMAGE NAME --network default",
        field="guest",
    )


def refuse_unlogged(rooms: Rooms, edit: FirewallEdit) -> None:
    """:raise HostLacks: the rule is to log, and this kernel cannot."""
    if edit.rules.put is not None and edit.rules.put.log:
        rooms.rules.require_log()
