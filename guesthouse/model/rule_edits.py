"""Changing rules: pure, with what takes each change back, and safe to be done again."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from guesthouse.errors import Conflict, NotFound
from guesthouse.model.document import Noun
from guesthouse.model.firewall import Action, Firewall, Policy, Rule
from guesthouse.model.firewalling import PolicyChoice

WORDS = {Action.ACCEPT: "allow", Action.DROP: "deny", Action.REJECT: "reject"}
"""What people call the actions."""


class RuleEdit(Noun, kw_only=True, frozen=True):
    """:ivar put: a rule with ids; without a name it is given one.

    :ivar before: name of the rule that it goes before; empty: after all others.
    :ivar drop: name of one that goes; with `put`, that takes its place.
    """

    put: Rule | None = None
    before: str = ""
    drop: str = ""


class FirewallEdit(Noun, kw_only=True, frozen=True):
    """:ivar groups: ids of all groups, afterwards; None: as they are."""

    rules: RuleEdit = RuleEdit()
    incoming: PolicyChoice | None = None
    outgoing: PolicyChoice | None = None
    groups: tuple[str, ...] | None = None


def edited(firewall: Firewall, edit: FirewallEdit, *, again: bool = False) -> Firewall:
    """Raises as `edited_rules`."""
    policy = Policy(
        incoming=_policy(firewall.policy.incoming, edit.incoming),
        outgoing=_policy(firewall.policy.outgoing, edit.outgoing),
    )
    return Firewall(
        rules=edited_rules(firewall.rules, edit.rules, again=again),
        groups=firewall.groups if edit.groups is None else edit.groups,
        policy=policy,
    )


def taking_back(firewall: Firewall, edit: FirewallEdit) -> FirewallEdit:
    """What makes the firewall again what it is before `edit`."""
    return FirewallEdit(
        rules=taking_back_rule(firewall.rules, edit.rules),
        incoming=None if edit.incoming is None else _choice(firewall.policy.incoming),
        outgoing=None if edit.outgoing is None else _choice(firewall.policy.outgoing),
        groups=None if edit.groups is None else firewall.groups,
    )


def edited_rules(rules: Sequence[Rule], edit: RuleEdit, *, again: bool = False) -> tuple[Rule, ...]:
    """:param again: it may have been done before; then nothing more is done.

    :raise NotFound: `before` or `drop` is no rule. :raise Conflict: there is a rule of that name.
    """
    names = [rule.name for rule in rules]
    if again and edit.drop and edit.drop not in names:
        return tuple(rules)
    if again and edit.put and not edit.drop and edit.put.name in names:
        return tuple(rules)
    kept = list(rules)
    at = len(kept)
    if edit.drop:
        at = _find(names, edit.drop)
        del kept[at]
    elif edit.before and not (again and edit.before not in names):
        at = _find(names, edit.before)
    if edit.put is None:
        return tuple(kept)
    if edit.put.name in [rule.name for rule in kept]:
        raise Conflict(
            f"There is already a rule called {edit.put.name!r}.",
            hint="Choose another name, or remove that rule.",
            name=edit.put.name,
        )
    return (*kept[:at], edit.put, *kept[at:])


def taking_back_rule(rules: Sequence[Rule], edit: RuleEdit) -> RuleEdit:
    before = next((rule for rule in rules if rule.name == edit.drop), None)
    if edit.put is not None:
        return RuleEdit(drop=edit.put.name, put=before)
    if before is None:
        return RuleEdit()
    behind = list(rules)[list(rules).index(before) + 1 :]
    return RuleEdit(put=before, before=behind[0].name if behind else "")


def named(rules: Sequence[Rule], edit: RuleEdit) -> RuleEdit:
    """With a name for a rule that has none: of what it does, and free."""
    if edit.put is None or edit.put.name:
        return edit
    taken = {rule.name for rule in rules if rule.name != edit.drop}
    rule = edit.put
    ports = rule.ports[0] if len(rule.ports) == 1 else ""
    parts = (WORDS[rule.action], rule.direction.value, rule.protocol.value, ports)
    wanted = "-".join(part for part in parts if part)
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return msgspec.structs.replace(edit, put=msgspec.structs.replace(rule, name=name))


def rule_named(rules: Sequence[Rule], ref: str) -> str:
    """The name of a rule by its name or its number. :raise NotFound:"""
    names = [rule.name for rule in rules]
    if ref in names:
        return ref
    # A number of any length is a number, but int() refuses very long ones.
    if ref.isascii() and ref.isdigit() and len(ref) < 6 and 1 <= int(ref) <= len(names):
        return names[int(ref) - 1]
    listed = ", ".join(names[:10]) or "none"
    raise NotFound(f"There is no rule {ref!r}.", hint=f"Its rules: {listed}", name=ref)


def _find(names: Sequence[str], name: str) -> int:
    if name not in names:
        raise NotFound(
            f"There is no rule {name!r} any more.", hint="See the rules: guest firewall ls"
        )
    return list(names).index(name)


def _policy(before: Action | None, choice: PolicyChoice | None) -> Action | None:
    if choice is None:
        return before
    return None if choice is PolicyChoice.DEFAULT else Action(choice.value)


def _choice(policy: Action | None) -> PolicyChoice:
    return PolicyChoice.DEFAULT if policy is None else PolicyChoice(policy.value)
