"""Firewalls, security groups and sets of addresses in the fake API. Names are kept as they come."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from guesthouse.errors import NotFound
from guesthouse.model.document import encode
from guesthouse.model.firewall import Action, Direction, Firewall, Rule
from guesthouse.model.firewalling import (
    AddressSetView,
    CounterView,
    DefaultView,
    FirewallChange,
    FirewallView,
    LoggedPacket,
    PacketRequest,
    PacketView,
    RuleRequest,
    RuleView,
    SecurityGroupView,
)
from guesthouse.model.ids import new_id
from guesthouse.model.rule_edits import (
    FirewallEdit,
    RuleEdit,
    edited,
    edited_rules,
    named,
    rule_named,
)

if TYPE_CHECKING:
    from .fake_api import _Handler

LOGGED = LoggedPacket(
    time=86_400.0,
    action=Action.DROP,
    rule="guest/ID/no-ssh",
    owner="guest web",
    protocol="tcp",
    source="10.150.0.26",
    destination="fd00::25",
    source_port=40000,
    port=22,
    sender_name="db",
)


class FakeFirewalls:
    """:ivar firewalls: by `guests/web` and `networks/lan`."""

    def __init__(self) -> None:
        self.firewalls: dict[str, Firewall] = {}
        self.groups: dict[str, tuple[Rule, ...]] = {}
        self.sets: dict[str, tuple[str, ...]] = {}
        self.warnings: tuple[str, ...] = ()


def route_firewall(handler: _Handler, parts: list[str], query: dict[str, str], body: Any) -> bool:
    """Whether it was about firewalls, and answered."""
    if parts[:1] == ["firewall"]:
        _route_house(handler, parts[1:])
    elif parts[2:3] == ["firewall"]:
        _route_owner(handler, parts, body)
    elif parts[:1] == ["security-groups"]:
        _route_groups(handler, parts[1:], body)
    elif parts[:1] == ["address-sets"]:
        _route_sets(handler, parts[1:], body)
    else:
        return False
    return True


def _route_house(handler: _Handler, parts: list[str]) -> None:
    if parts == ["counters"]:
        counts = [
            CounterView(
                rule=key,
                label=key.replace("ID", "web"),
                reason=f"About {key}.",
                packets=n,
                bytes=9 * n,
            )
            for key, n in (("guest/ID/ssh", 3), ("wall/host", 0))
        ]
        handler._json(counts)
        return
    handler._streamed("text/plain")
    for packet in (LOGGED, msgspec.structs.replace(LOGGED, protocol="icmp", source_port=0, port=0)):
        handler._chunk(encode(packet) + b"\n")
    handler._chunk(b"")


def _route_owner(handler: _Handler, parts: list[str], body: Any) -> None:
    house = handler.house
    room, ref = parts[:2]
    guest = house.guest(ref) if room == "guests" else None
    name = guest.name if guest else house.network(ref).name
    key, kind = f"{room}/{name}", f"{room[:-1]}.firewall"
    own = house.fire.firewalls.get(key, Firewall())
    match [handler.command, *parts[3:]]:
        case ["GET"]:
            handler._json(_view(handler, room, name, own))
        case ["PATCH"]:
            change = msgspec.convert(body, FirewallChange)
            groups = (*(g for g in own.groups if g not in change.leave), *change.join)
            edit = FirewallEdit(incoming=change.incoming, outgoing=change.outgoing, groups=groups)
            house.fire.firewalls[key] = edited(own, edit)
            handler._job(kind, guest, of=name)
        case ["POST", "test"]:
            handler._json(_tried(msgspec.convert(body, PacketRequest)))
        case [method, "rules", *which]:
            rules = _edited(handler, kind, own.rules, method, which, body)
            house.fire.firewalls[key] = msgspec.structs.replace(own, rules=rules)
            handler._job(kind, guest, of=name)


def _edited(
    handler: _Handler, kind: str, rules: tuple[Rule, ...], method: str, which: list[str], body: Any
) -> tuple[Rule, ...]:
    old = rule_named(rules, which[0]) if which else ""
    put, before = None, ""
    if method != "DELETE":
        request = msgspec.convert(body, RuleRequest)
        fields = msgspec.structs.asdict(request)
        before = fields.pop("before")
        before = rule_named(rules, before) if before else ""
        put = Rule(**fields | {"name": request.name or old})
    edit = named(rules, RuleEdit(put=put, before=before, drop=old))
    name = edit.put.name if edit.put else edit.drop
    handler.house.results[kind] = {"result": {"rule": name}}
    return edited_rules(rules, edit)


def _rules(rules: tuple[Rule, ...], owner: str) -> tuple[RuleView, ...]:
    return tuple(
        RuleView(
            **msgspec.structs.asdict(rule), number=number, owner=owner, packets=number,
            missing={end: "gone" for end in rule.sources if end.startswith("guest:01")},
        )
        for number, rule in enumerate(rules, 1)
    )  # fmt: skip


def _view(handler: _Handler, room: str, name: str, own: Firewall) -> FirewallView:
    fire, owner = handler.house.fire, f"{room[:-1]} {name}"
    rules = _rules(own.rules, owner)
    shared = [r for g in own.groups for r in _rules(fire.groups.get(g, ()), f"group {g}")]
    defaults = [
        DefaultView(direction=way, action=own.policy.of(way) or Action.ACCEPT, owner="house")
        for way in Direction
    ]
    is_guest = room == "guests"
    return FirewallView(
        owner=owner,
        rules=rules,
        groups=own.groups,
        policy=own.policy,
        applied=(*rules, *shared) if is_guest else (),
        defaults=tuple(defaults) if is_guest else (),
        active=True,
        warnings=fire.warnings,
    )


def _tried(packet: PacketRequest) -> PacketView:
    arrives = packet.far == "db"
    return PacketView(
        action=Action.ACCEPT if arrives else Action.DROP,
        rule="guest/ID/ssh",
        label="guest/web/ssh",
        reason="Rule 'ssh' of guest web.",
        passed=("house/policy-out",) if arrives else (),
        source="10.150.0.26",
        destination="10.150.0.25",
        port=packet.port,
    )


def _route_groups(handler: _Handler, parts: list[str], body: Any) -> None:
    fire = handler.house.fire
    if parts and parts[0] not in fire.groups:
        raise NotFound(f"There is no security group {parts[0]!r}.")
    match [handler.command, *parts]:
        case ["GET"]:
            handler._json([_group(handler, name) for name in fire.groups])
        case ["GET", name]:
            handler._json(_group(handler, name))
        case ["POST"]:
            fire.groups[body["name"]] = ()
            handler._job("security-group.create", None, of=body["name"])
        case ["DELETE", name]:
            handler._job("security-group.remove", None, of=name)
            if "security-group.remove" not in handler.house.fail:
                del fire.groups[name]
        case [method, name, "rules", *which]:
            kind = "security-group.set"
            fire.groups[name] = _edited(handler, kind, fire.groups[name], method, which, body)
            handler._job(kind, None, of=name)


def _group(handler: _Handler, name: str) -> SecurityGroupView:
    fire = handler.house.fire
    inside = [key.replace("s/", " ") for key, one in fire.firewalls.items() if name in one.groups]
    return SecurityGroupView(
        id=new_id(),
        name=name,
        note="who may be reached",
        rules=_rules(fire.groups[name], f"group {name}"),
        members=tuple(inside),
        created_at=time.time(),
    )


def _route_sets(handler: _Handler, parts: list[str], body: Any) -> None:
    sets = handler.house.fire.sets
    if parts and parts[0] not in sets:
        raise NotFound(f"There is no address set {parts[0]!r}.")
    match [handler.command, *parts]:
        case ["GET"]:
            handler._json([_set(name, entries) for name, entries in sets.items()])
        case ["GET", name]:
            handler._json(_set(name, sets[name]))
        case ["POST"]:
            sets[body["name"]] = tuple(body["entries"])
            handler._job("address-set.create", None, of=body["name"])
        case ["PATCH", name]:
            kept = [entry for entry in sets[name] if entry not in body["remove"]]
            sets[name] = (*kept, *body["add"])
            handler._job("address-set.set", None, of=name)
        case ["DELETE", name]:
            del sets[name]
            handler._job("address-set.remove", None, of=name)


def _set(name: str, entries: tuple[str, ...]) -> AddressSetView:
    return AddressSetView(
        id=new_id(), name=name, entries=entries, named_by=("guest web (rule a)",),
        created_at=time.time(),
    )  # fmt: skip
