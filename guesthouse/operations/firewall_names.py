"""Names for what rules hold as ids, and who names what."""

from __future__ import annotations

from collections.abc import Iterator

from guesthouse.jobs.context import JobContext
from guesthouse.model.firewall import (
    PLACES,
    Endpoint,
    EndpointKind,
    Firewall,
    Rule,
    parse_endpoint,
)
from guesthouse.store.trash import in_trash
from guesthouse.store.view import View

GONE, TRASH = "gone", "trash"


def find(view: View, kind: EndpointKind, ref: str) -> str:
    """The id of somebody that a rule names. :raise NotFound: with similar names."""
    match kind:
        case EndpointKind.GUEST:
            return view.guest(ref).id
        case EndpointKind.GROUP:
            return view.group(ref).id
        case EndpointKind.SET:
            return view.address_set(ref).id
        case _:
            return view.network(ref).id


def require(view: View, rule: Rule) -> None:
    """Whom the rule names must be there still. Raises as `find`."""
    for text in (*rule.sources, *rule.destinations):
        end = parse_endpoint(text)
        if end.kind is EndpointKind.CIDR or end.kind in PLACES:
            continue
        if end.kind is EndpointKind.GUEST and end.value in view.guests:
            if view.guests[end.value].in_trash:
                raise in_trash(view.guests[end.value].name)
            continue
        find(view, end.kind, end.value)


def shown(view: View, texts: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Ends of a rule with names; second those that nobody is any more, and what became of them."""
    ends, missing = [], {}
    for text in texts:
        end = parse_endpoint(text)
        if end.kind is EndpointKind.CIDR or end.kind in PLACES:
            ends.append(text)
            continue
        name = name_of(view, end.kind.value, end.value)
        what = str(Endpoint(end.kind, name or end.value))
        if not name:
            missing[what] = GONE
        elif end.kind is EndpointKind.GUEST and view.guests[end.value].in_trash:
            missing[what] = TRASH
        ends.append(what)
    return tuple(ends), missing


def name_of(view: View, kind: str, id: str) -> str:
    """Of a guest, group, network or set; empty if it is gone."""
    found: object = None
    match kind:
        case "guest":
            found = view.guests.get(id)
        case "group":
            found = view.groups.get(id)
        case "network":
            found = view.networks.get(id)
        case "set":
            found = view.sets.get(id)
    return str(getattr(found, "name", ""))


def owner_of(view: View, key: str) -> str:
    """`guest web` of the key of a rule; empty for what is the house's own."""
    kind, _, rest = key.partition("/")
    if kind not in {"guest", "group", "network"}:
        return ""
    id = rest.partition("/")[0]
    return f"{kind} {name_of(view, kind, id) or id}"


def label(view: View, key: str) -> str:
    """The key of a rule with its owner's name: `guest/web/ssh`."""
    owner = owner_of(view, key)
    return "/".join((*owner.split(" ", 1), *key.split("/", 2)[2:])) if owner else key


def members(view: View, group: str) -> list[str]:
    """Who is in a group: `guest web`, `network lan`; those in the trash are marked."""
    found = [
        f"network {one.name}" for one in view.networks.values() if group in one.firewall.groups
    ]
    found += [
        f"guest {one.name}{' (trash)' if one.in_trash else ''}"
        for one in view.guests.values()
        if group in one.spec.firewall.groups
    ]
    return sorted(found)


def named_by(view: View, kind: EndpointKind, id: str) -> list[str]:
    """Whose rules name it: `guest web`, `group ssh`, `network lan`, each with the rules' names."""
    text = str(Endpoint(kind, id))
    return sorted(
        f"{owner} (rule {', '.join(names)})"
        for owner, rules in _all_rules(view)
        if (names := [r.name for r in rules if text in (*r.sources, *r.destinations)])
    )


def log_naming(ctx: JobContext, view: View, kind: EndpointKind, id: str) -> None:
    """Somebody is gone for good: who named it in rules shall find out. Those match nobody now, and
    nobody will have that id again."""
    for owner in named_by(view, kind, id):
        ctx.log(f"it was named by {owner}, which is about nobody now")


def _all_rules(view: View) -> Iterator[tuple[str, tuple[Rule, ...]]]:
    for guest in view.guests.values():
        mark = " (trash)" if guest.in_trash else ""
        yield f"guest {guest.name}{mark}", guest.spec.firewall.rules
    for network in view.networks.values():
        yield f"network {network.name}", network.firewall.rules
    for group in view.groups.values():
        yield f"group {group.name}", group.rules


def protects(firewall: Firewall) -> bool:
    """Whether anything is kept out by it."""
    policy = firewall.policy
    return bool(firewall.rules or firewall.groups or policy.incoming or policy.outgoing)
