"""Security groups and sets of addresses: made, changed, removed. Changes are in force at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from guesthouse.errors import InUse, NotFound, RevisionConflict
from guesthouse.jobs.context import JobContext
from guesthouse.jobs.registry import Operation
from guesthouse.model.document import Noun, decode_strict, encode
from guesthouse.model.firewall import (
    AddressSet,
    EndpointKind,
    SecurityGroup,
    check_group,
    check_set,
    parse_cidr,
)
from guesthouse.model.rule_edits import RuleEdit, edited_rules, named, taking_back_rule
from guesthouse.operations.firewall_names import members, named_by, require
from guesthouse.operations.rooms import Rooms
from guesthouse.store.contract import ABSENT, Op
from guesthouse.store.documents import GROUPS, SETS, Collection

L = TypeVar("L", AddressSet, SecurityGroup)


class GroupParams(Noun, kw_only=True, frozen=True):
    """:ivar group: id."""

    group: str


class NewGroupParams(GroupParams, kw_only=True, frozen=True):
    name: str
    note: str = ""


class GroupEdit(Noun, kw_only=True, frozen=True):
    """None leaves a field as it is."""

    name: str | None = None
    note: str | None = None
    rules: RuleEdit = RuleEdit()


class ChangeGroupParams(GroupParams, kw_only=True, frozen=True):
    edit: GroupEdit


class SetParams(Noun, kw_only=True, frozen=True):
    """:ivar addresses: id of the set."""

    addresses: str


class NewSetParams(SetParams, kw_only=True, frozen=True):
    name: str
    entries: tuple[str, ...] = ()
    note: str = ""


class SetEdit(Noun, kw_only=True, frozen=True):
    """None leaves a field as it is."""

    name: str | None = None
    note: str | None = None
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


class ChangeSetParams(SetParams, kw_only=True, frozen=True):
    edit: SetEdit


class CreateGroup(Operation[NewGroupParams]):
    kind = "security-group.create"
    Params = NewGroupParams

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms

    def locks(self, params: NewGroupParams) -> Sequence[str]:
        return (GROUPS.key(params.group),)

    async def run(self, ctx: JobContext, params: NewGroupParams) -> dict[str, str]:
        """:raise NameTaken:"""
        await ctx.step("create")
        made = SecurityGroup(
            id=params.group, name=params.name, note=params.note, created_at=time.time()
        )
        check_group(made)
        await _make(self.rooms, self.rooms.documents.groups, made, made.name)
        return {"group": made.id, "name": made.name}


class ChangeGroup(Operation[ChangeGroupParams]):
    kind = "security-group.set"
    Params = ChangeGroupParams

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms

    def locks(self, params: ChangeGroupParams) -> Sequence[str]:
        return (GROUPS.key(params.group),)

    async def run(self, ctx: JobContext, params: ChangeGroupParams) -> dict[str, str]:
        """:raise NameTaken: :raise NotFound: :raise Conflict: there is such a rule.
        :raise HostLacks: the kernel cannot hold it."""
        rooms, again = self.rooms, ctx.has_step("set")
        before = (await rooms.documents.groups.require(params.group)).doc
        wanted = msgspec.structs.replace(params.edit, rules=named(before.rules, params.edit.rules))
        if not again:
            check_group(_edited_group(before, wanted))
        noted = await ctx.step(
            "set",
            edit=lambda: encode(wanted).decode(),
            back=lambda: encode(_group_back(before, wanted)).decode(),
        )
        edit = decode_strict(noted["edit"].encode(), GroupEdit)
        back = decode_strict(noted["back"].encode(), GroupEdit)
        collection = rooms.documents.groups

        async def take_back() -> None:
            await _change(
                rooms, collection, params.group, lambda now: _edited_group(now, back, again=True)
            )

        async with rooms.rules.change:
            if edit.rules.put is not None:
                require(rooms.view, edit.rules.put)
            ctx.undo(take_back)
            await _change(
                rooms, collection, params.group, lambda now: _edited_group(now, edit, again=again)
            )
        rule = edit.rules.put.name if edit.rules.put else edit.rules.drop
        return {"rule": rule} if rule else {}


class RemoveGroup(Operation[GroupParams]):
    """Refuses while somebody is in it, or a rule names it; also for a guest in the trash."""

    kind = "security-group.remove"
    Params = GroupParams
    may_cancel = False

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms

    def locks(self, params: GroupParams) -> Sequence[str]:
        return (GROUPS.key(params.group),)

    async def run(self, ctx: JobContext, params: GroupParams) -> None:
        """:raise InUse: names who uses it."""
        rooms = self.rooms

        def refuse(group: SecurityGroup) -> None:
            inside = members(rooms.view, group.id)
            naming = named_by(rooms.view, EndpointKind.GROUP, group.id)
            _refuse_used(f"Security group {group.name!r}", inside, naming)

        await _remove(ctx, rooms, rooms.documents.groups, params.group, refuse)


class CreateSet(Operation[NewSetParams]):
    kind = "address-set.create"
    Params = NewSetParams

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms

    def locks(self, params: NewSetParams) -> Sequence[str]:
        return (SETS.key(params.addresses),)

    async def run(self, ctx: JobContext, params: NewSetParams) -> dict[str, str]:
        """:raise NameTaken:"""
        await ctx.step("create")
        made = AddressSet(
            id=params.addresses,
            name=params.name,
            entries=params.entries,
            note=params.note,
            created_at=time.time(),
        )
        check_set(made)
        await _make(self.rooms, self.rooms.documents.sets, made, made.name)
        return {"set": made.id, "name": made.name}


class ChangeSet(Operation[ChangeSetParams]):
    kind = "address-set.set"
    Params = ChangeSetParams

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms

    def locks(self, params: ChangeSetParams) -> Sequence[str]:
        return (SETS.key(params.addresses),)

    async def run(self, ctx: JobContext, params: ChangeSetParams) -> None:
        """:raise NameTaken: :raise NotFound: it has no such entry. :raise InvalidInput:"""
        rooms, again = self.rooms, ctx.has_step("set")
        before = (await rooms.documents.sets.require(params.addresses)).doc
        if not again:
            _require_entries(before, params.edit.remove)
            check_set(_edited_set(before, params.edit))
        noted = await ctx.step("set", back=lambda: encode(_set_back(before, params.edit)).decode())
        back = decode_strict(noted["back"].encode(), SetEdit)
        collection = rooms.documents.sets

        async def take_back() -> None:
            await _change(rooms, collection, params.addresses, lambda now: _edited_set(now, back))

        ctx.undo(take_back)
        await _change(
            rooms, collection, params.addresses, lambda now: _edited_set(now, params.edit)
        )


class RemoveSet(Operation[SetParams]):
    """Refuses while a rule names it, also one of a guest in the trash."""

    kind = "address-set.remove"
    Params = SetParams
    may_cancel = False

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms

    def locks(self, params: SetParams) -> Sequence[str]:
        return (SETS.key(params.addresses),)

    async def run(self, ctx: JobContext, params: SetParams) -> None:
        """:raise InUse: names whose rules name it."""
        rooms = self.rooms

        def refuse(addresses: AddressSet) -> None:
            naming = named_by(rooms.view, EndpointKind.SET, addresses.id)
            _refuse_used(f"Address set {addresses.name!r}", [], naming)

        await _remove(ctx, rooms, rooms.documents.sets, params.addresses, refuse)


# --- what they share -------------------------------------------------------------------------


async def _make(rooms: Rooms, collection: Collection[L], made: L, name: str) -> None:
    """Nothing refers to it yet, so the kernel need not know. :raise NameTaken:"""
    if await collection.get(made.id) is not None:
        return
    ops: list[Op] = [
        collection.put_op(made, expect=ABSENT),
        collection.claim_op(name, made.id),
    ]
    try:
        await rooms.view.wait_for(await rooms.documents.store.commit(ops))
    except RevisionConflict as conflict:
        raise collection.name_conflict(conflict, name) from None


async def _change(
    rooms: Rooms, collection: Collection[L], id: str, change: Callable[[L], L]
) -> None:
    """Write and bring about. :raise NameTaken: :raise HostLacks: the kernel cannot hold it."""
    before = (await collection.require(id)).doc
    name = change(before).name
    ops: list[Op] = []
    if name != before.name:
        ops = [collection.claim_op(name, id), collection.release_op(before.name)]
    try:
        done = await collection.update(id, change, extra_ops=ops)
    except RevisionConflict as conflict:
        raise collection.name_conflict(conflict, name) from None
    await rooms.view.wait_for(done.revision)
    await rooms.rules.reload(rooms.view)


async def _remove(
    ctx: JobContext,
    rooms: Rooms,
    collection: Collection[L],
    id: str,
    refuse: Callable[[L], None],
) -> None:
    async with rooms.rules.change:
        found = await collection.get(id)
        if found is None and not ctx.has_step("remove"):
            noun = collection.noun.replace("-", " ")
            word = noun.rpartition(" ")[2]
            raise NotFound(f"The {noun} is gone already.", hint=f"guest firewall {word} ls")
        if found is not None:
            refuse(found.doc)
        await ctx.step("remove")
        if found is not None:
            ops: list[Op] = [
                collection.delete_op(id, expect=found.revision),
                collection.release_op(found.doc.name),
            ]
            await rooms.view.wait_for(await rooms.documents.store.commit(ops))
        await rooms.pool.remove_copy(collection.prefix.rstrip("/"), id)
        # Nobody referred to it, so the kernel had nothing of it.


def _refuse_used(what: str, inside: Sequence[str], naming: Sequence[str]) -> None:
    """:raise InUse:"""
    if not inside and not naming:
        return
    parts = [f"{', '.join(inside)} {'is' if len(inside) == 1 else 'are'} in it"] if inside else []
    parts += [f"it is named by {', '.join(naming)}"] if naming else []
    hint = (
        "Take them out first: guest firewall group leave GROUP GUEST"
        if inside
        else "Remove these rules first: guest firewall rm"
    )
    raise InUse(
        f"{what} is in use: {'; '.join(parts)}.",
        hint=hint,
        members=list(inside),
        named_by=list(naming),
    )


def _edited_group(group: SecurityGroup, edit: GroupEdit, *, again: bool = False) -> SecurityGroup:
    return msgspec.structs.replace(
        group,
        name=group.name if edit.name is None else edit.name,
        note=group.note if edit.note is None else edit.note,
        rules=edited_rules(group.rules, edit.rules, again=again),
    )


def _group_back(group: SecurityGroup, edit: GroupEdit) -> GroupEdit:
    return GroupEdit(
        name=None if edit.name is None else group.name,
        note=None if edit.note is None else group.note,
        rules=taking_back_rule(group.rules, edit.rules),
    )


def _edited_set(addresses: AddressSet, edit: SetEdit) -> AddressSet:
    gone = set(edit.remove)
    return msgspec.structs.replace(
        addresses,
        name=addresses.name if edit.name is None else edit.name,
        note=addresses.note if edit.note is None else edit.note,
        entries=tuple(
            dict.fromkeys([*(entry for entry in addresses.entries if entry not in gone), *edit.add])
        ),
    )


def _set_back(addresses: AddressSet, edit: SetEdit) -> SetEdit:
    return SetEdit(
        name=None if edit.name is None else addresses.name,
        note=None if edit.note is None else addresses.note,
        add=tuple(entry for entry in edit.remove if entry in addresses.entries),
        remove=tuple(entry for entry in edit.add if entry not in addresses.entries),
    )


def _require_entries(addresses: AddressSet, entries: Sequence[str]) -> None:
    missing = [entry for entry in entries if entry not in addresses.entries]
    if missing:
        raise NotFound(
            f"Address set {addresses.name!r} does not have {', '.join(missing)}.",
            hint=f"See what it has: guest firewall set ls {addresses.name}",
        )


def spelled(entries: Sequence[str], field: str) -> tuple[str, ...]:
    """CIDRs in their usual spelling, an address as an address. :raise InvalidInput:"""
    found: dict[str, None] = {}
    for index, entry in enumerate(entries):
        subnet = parse_cidr(entry, field=f"{field}[{index}]")
        single = subnet.num_addresses == 1
        found[str(subnet.network_address if single else subnet)] = None
    return tuple(found)
