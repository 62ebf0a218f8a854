"""The house's verbs about firewalls, groups and sets: names become ids, changes become jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec

from guesthouse.errors import InvalidInput, NameTaken
from guesthouse.jobs.runner import JobRunner
from guesthouse.model.document import Document, Noun
from guesthouse.model.firewall import (
    AddressSet,
    Rule,
    SecurityGroup,
    check_group,
    check_set,
    resolve_rule,
)
from guesthouse.model.firewalling import (
    AddressSetChange,
    AddressSetRequest,
    AddressSetView,
    CounterView,
    FirewallChange,
    FirewallView,
    PacketRequest,
    PacketView,
    RuleRequest,
    SecurityGroupChange,
    SecurityGroupRequest,
    SecurityGroupView,
)
from guesthouse.model.guest import Guest
from guesthouse.model.ids import new_id
from guesthouse.model.job import Job
from guesthouse.model.names import check_name
from guesthouse.model.network import Network
from guesthouse.model.rule_edits import (
    FirewallEdit,
    RuleEdit,
    edited,
    edited_rules,
    named,
    rule_named,
)
from guesthouse.operations import firewall_views as views
from guesthouse.operations.firewall_jobs import (
    GuestFirewallParams,
    NetworkFirewallParams,
    refuse_unlogged,
    require_card,
)
from guesthouse.operations.firewall_lists import (
    ChangeGroupParams,
    ChangeSetParams,
    GroupEdit,
    GroupParams,
    NewGroupParams,
    NewSetParams,
    SetEdit,
    SetParams,
    spelled,
)
from guesthouse.operations.firewall_log import read_packets
from guesthouse.operations.firewall_names import find
from guesthouse.operations.firewall_trial import try_packet
from guesthouse.operations.rooms import Rooms
from guesthouse.store.documents import GROUPS, GUESTS, NETWORKS, SETS, CollectionKind

Owner = Guest | Network | SecurityGroup


@dataclass(kw_only=True)
class FirewallHouse:
    """Keeps `api.firewall_facade.FirewallHouse`."""

    rooms: Rooms
    jobs: JobRunner

    # --- reads -----------------------------------------------------------------------------------

    async def of_guest(self, ref: str) -> FirewallView:
        return await views.guest_firewall(self.rooms, self.rooms.view.guest(ref))

    async def of_network(self, ref: str) -> FirewallView:
        return await views.network_firewall(self.rooms, self.rooms.view.network(ref))

    async def groups(self) -> list[SecurityGroupView]:
        counts = await self.rooms.rules.counters()
        found = [
            views.group_with(self.rooms.view, g, counts) for g in self.rooms.view.groups.values()
        ]
        return sorted(found, key=lambda one: one.name)

    async def group(self, ref: str) -> SecurityGroupView:
        return await views.group_view(self.rooms, self.rooms.view.group(ref))

    def sets(self) -> list[AddressSetView]:
        found = [views.set_view(self.rooms.view, one) for one in self.rooms.view.sets.values()]
        return sorted(found, key=lambda one: one.name)

    def address_set(self, ref: str) -> AddressSetView:
        return views.set_view(self.rooms.view, self.rooms.view.address_set(ref))

    async def counters(self) -> list[CounterView]:
        return await views.counters(self.rooms)

    async def try_packet(self, ref: str, request: PacketRequest) -> PacketView:
        return await try_packet(self.rooms, self.rooms.view.guest(ref), request)

    async def log(self, ref: str, tail: int, *, follow: bool = False) -> AsyncIterator[bytes]:
        guest = self.rooms.view.guest(ref).id if ref else ""
        return await read_packets(self.rooms, guest=guest, tail=tail, follow=follow)

    # --- rules -----------------------------------------------------------------------------------

    async def add_rule(self, room: str, ref: str, request: RuleRequest, requester: str) -> Job:
        owner = self._owner(room, ref)
        before = rule_named(_rules(owner), request.before) if request.before else ""
        edit = RuleEdit(put=self._rule(request), before=before)
        return await self._edit(owner, edit, requester)

    async def replace_rule(
        self, room: str, ref: str, rule: str, request: RuleRequest, requester: str
    ) -> Job:
        owner = self._owner(room, ref)
        old = rule_named(_rules(owner), rule)
        if request.before:
            raise InvalidInput(
                "A rule that replaces another stays where that was.",
                hint="Leave 'before' away, or remove the rule and add it anew.",
                field="before",
            )
        new = self._rule(request)
        new = new if new.name else msgspec.structs.replace(new, name=old)
        return await self._edit(owner, RuleEdit(put=new, drop=old), requester)

    async def remove_rule(self, room: str, ref: str, rule: str, requester: str) -> Job:
        owner = self._owner(room, ref)
        return await self._edit(owner, RuleEdit(drop=rule_named(_rules(owner), rule)), requester)

    async def change(self, room: str, ref: str, change: FirewallChange, requester: str) -> Job:
        owner = self._owner(room, ref)
        assert not isinstance(owner, SecurityGroup)  # groups have neither policies nor groups
        firewall = owner.spec.firewall if isinstance(owner, Guest) else owner.firewall
        join = [self.rooms.view.group(one).id for one in change.join]
        leave = [self._joined(firewall.groups, one) for one in change.leave]
        groups = tuple(dict.fromkeys([*(g for g in firewall.groups if g not in leave), *join]))
        return await self._submit(
            owner,
            FirewallEdit(
                incoming=change.incoming,
                outgoing=change.outgoing,
                groups=groups if join or leave else None,
            ),
            requester,
        )

    def _joined(self, groups: tuple[str, ...], ref: str) -> str:
        """The id of a group that is to be left; also of one that cannot be read any more."""
        return ref if ref in groups else self.rooms.view.group(ref).id

    def _owner(self, room: str, ref: str) -> Owner:
        view = self.rooms.view
        if room == "guests":
            return view.guest(ref)
        if room == "networks":
            return view.network(ref)
        return view.group(ref)

    def _rule(self, request: RuleRequest) -> Rule:
        fields = msgspec.structs.asdict(request)
        del fields["before"]
        # A name is made up when the job knows which are taken; until then any will do.
        wanted = Rule(**fields | {"name": request.name or "rule"})
        made = resolve_rule(wanted, lambda kind, ref: find(self.rooms.view, kind, ref))
        return msgspec.structs.replace(made, name=request.name)

    async def _edit(self, owner: Owner, edit: RuleEdit, requester: str) -> Job:
        if edit.put is not None and edit.put.log:
            self.rooms.rules.require_log()
        if not isinstance(owner, SecurityGroup):
            return await self._submit(owner, FirewallEdit(rules=edit), requester)
        edited_rules(owner.rules, named(owner.rules, edit))
        params = ChangeGroupParams(group=owner.id, edit=GroupEdit(rules=edit))
        return await self._submit_document("security-group.set", params, owner, requester)

    async def _submit(self, owner: Guest | Network, edit: FirewallEdit, requester: str) -> Job:
        refuse_unlogged(self.rooms, edit)
        if isinstance(owner, Guest):
            require_card(self.rooms, owner, edit)
            own = owner.spec.firewall
            params: Noun = GuestFirewallParams(guest=owner.id, edit=edit)
            kind = "guest.firewall"
        else:
            own = owner.firewall
            params = NetworkFirewallParams(network=owner.id, edit=edit)
            kind = "network.firewall"
        edited(own, msgspec.structs.replace(edit, rules=named(own.rules, edit.rules)))
        return await self._submit_document(kind, params, owner, requester)

    # --- groups and sets -------------------------------------------------------------------------

    async def create_group(self, request: SecurityGroupRequest, requester: str) -> Job:
        made = SecurityGroup(id=new_id(), created_at=0.0, **msgspec.structs.asdict(request))
        check_group(made)
        _free([one.name for one in self.rooms.view.groups.values()], made.name, "security group")
        params = NewGroupParams(group=made.id, name=made.name, note=made.note)
        return await self._submit_document("security-group.create", params, made, requester)

    async def change_group(self, ref: str, change: SecurityGroupChange, requester: str) -> Job:
        group = self.rooms.view.group(ref)
        if change.name is not None:
            check_name(change.name)
        params = ChangeGroupParams(
            group=group.id, edit=GroupEdit(name=change.name, note=change.note)
        )
        return await self._submit_document("security-group.set", params, group, requester)

    async def remove_group(self, ref: str, requester: str) -> Job:
        group = self.rooms.view.group(ref)
        params = GroupParams(group=group.id)
        return await self._submit_document("security-group.remove", params, group, requester)

    async def create_set(self, request: AddressSetRequest, requester: str) -> Job:
        entries = spelled(request.entries, "entries")
        made = AddressSet(
            id=new_id(), name=request.name, entries=entries, note=request.note, created_at=0.0
        )
        check_set(made)
        _free([one.name for one in self.rooms.view.sets.values()], made.name, "address set")
        params = NewSetParams(addresses=made.id, name=made.name, entries=entries, note=made.note)
        return await self._submit_document("address-set.create", params, made, requester)

    async def change_set(self, ref: str, change: AddressSetChange, requester: str) -> Job:
        addresses = self.rooms.view.address_set(ref)
        if change.name is not None:
            check_name(change.name)
        edit = SetEdit(
            name=change.name,
            note=change.note,
            add=spelled(change.add, "add"),
            remove=spelled(change.remove, "remove"),
        )
        params = ChangeSetParams(addresses=addresses.id, edit=edit)
        return await self._submit_document("address-set.set", params, addresses, requester)

    async def remove_set(self, ref: str, requester: str) -> Job:
        addresses = self.rooms.view.address_set(ref)
        params = SetParams(addresses=addresses.id)
        return await self._submit_document("address-set.remove", params, addresses, requester)

    async def _submit_document(
        self, kind: str, params: Noun, document: Document, requester: str
    ) -> Job:
        return await self.jobs.submit(
            kind,
            params,
            target=_KINDS[type(document)].key(document.id),
            target_name=str(getattr(document, "name", "")),
            requester=requester,
        )


_KINDS: dict[type[Document], CollectionKind[Any]] = {
    Guest: GUESTS,
    Network: NETWORKS,
    SecurityGroup: GROUPS,
    AddressSet: SETS,
}


def _rules(owner: Owner) -> tuple[Rule, ...]:
    if isinstance(owner, SecurityGroup):
        return owner.rules
    return owner.spec.firewall.rules if isinstance(owner, Guest) else owner.firewall.rules


def _free(names: list[str], name: str, noun: str) -> None:
    """:raise NameTaken:"""
    if name in names:
        article = "an" if noun[0] == "a" else "a"
        raise NameTaken(
            f"There is already {article} {noun} {name!r}.",
            hint="Choose another name, or remove that one.",
            name=name,
        )
