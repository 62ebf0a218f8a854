"""Firewalls, security groups and sets of addresses in the crash matrix."""

from __future__ import annotations

from collections.abc import Callable

from guesthouse.client.firewall import Firewalls, group_path, owner_path, rules_path
from guesthouse.model.firewall import Action, Firewall
from guesthouse.model.firewalling import (
    AddressSetChange,
    AddressSetRequest,
    FirewallChange,
    PolicyChoice,
    RuleRequest,
    SecurityGroupRequest,
)
from tests.crash.claims import is_there, negated, now_of
from tests.crash.daemon_house import CrashHouse
from tests.crash.matrix import Snapshot
from tests.crash.trials import Trial, Verb, stopped, with_network

RULE = RuleRequest(action=Action.DROP, name="new", before="old")
OLD, NEW = "192.0.2.1", "192.0.2.2"


def with_rule(house: CrashHouse) -> Trial:
    trial = with_network(house)
    rules = rules_path(owner_path(network=trial.name))
    house.do(Firewalls(house.client).add(rules, RuleRequest(name="old")))
    return trial


def with_group(house: CrashHouse) -> Trial:
    trial = Trial(house.fresh())
    firewalls = Firewalls(house.client)
    house.do(firewalls.create_group(SecurityGroupRequest(name=trial.name)))
    house.do(firewalls.add(rules_path(group_path(trial.name)), RuleRequest(name="old")))
    return trial


def with_set(house: CrashHouse) -> Trial:
    trial = Trial(house.fresh())
    request = AddressSetRequest(name=trial.name, entries=(OLD,))
    house.do(Firewalls(house.client).create_set(request))
    return trial


def fresh(house: CrashHouse) -> Trial:
    return Trial(house.fresh())


def guest_has(policy: Action | None) -> Callable[[Snapshot, Trial], bool]:
    def found(now: Snapshot, trial: Trial) -> bool:
        return is_there(now, trial) and now_of(now, trial).spec.firewall.policy.incoming is policy

    return found


def network_has(*names: str) -> Callable[[Snapshot, Trial], bool]:
    def found(now: Snapshot, trial: Trial) -> bool:
        own = [one.firewall for one in now.networks.values() if one.name == trial.name]
        return [_names(one) for one in own] == [[*names]]

    return found


def group_has(*names: str) -> Callable[[Snapshot, Trial], bool]:
    def found(now: Snapshot, trial: Trial) -> bool:
        own = [one for one in now.groups.values() if one.name == trial.name]
        return [_names(Firewall(rules=one.rules)) for one in own] == [[*names]]

    return found


def _names(firewall: Firewall) -> list[str]:
    return [rule.name for rule in firewall.rules]


def has_group(now: Snapshot, trial: Trial) -> bool:
    return any(one.name == trial.name for one in now.groups.values())


def has_set(now: Snapshot, trial: Trial) -> bool:
    return any(one.name == trial.name for one in now.sets.values())


def set_has(*entries: str) -> Callable[[Snapshot, Trial], bool]:
    return lambda now, trial: any(
        (one.name, one.entries) == (trial.name, entries) for one in now.sets.values()
    )


FIREWALL_VERBS: dict[str, Verb] = {
    # The guest is on no network of the house, where only an open policy can be had.
    "guest-firewall": Verb(
        "guest.firewall",
        stopped,
        lambda h, t: Firewalls(h.client).change(
            owner_path(guest=t.name), FirewallChange(incoming=PolicyChoice.ACCEPT)
        ),
        guest_has(Action.ACCEPT),
        guest_has(None),
    ),
    "network-firewall": Verb(
        "network.firewall",
        with_rule,
        lambda h, t: Firewalls(h.client).add(rules_path(owner_path(network=t.name)), RULE),
        network_has("new", "old"),
        network_has("old"),
    ),
    "group-create": Verb(
        "security-group.create",
        fresh,
        lambda h, t: Firewalls(h.client).create_group(SecurityGroupRequest(name=t.name)),
        has_group,
        negated(has_group),
    ),
    "group-set": Verb(
        "security-group.set",
        with_group,
        lambda h, t: Firewalls(h.client).replace(rules_path(group_path(t.name)), "old",
                                                 RuleRequest(name="new")),
        group_has("new"),
        group_has("old"),
    ),
    "group-remove": Verb(
        "security-group.remove",
        with_group,
        lambda h, t: Firewalls(h.client).remove_group(t.name),
        negated(has_group),
        group_has("old"),
    ),
    "set-create": Verb(
        "address-set.create",
        fresh,
        lambda h, t: Firewalls(h.client).create_set(
            AddressSetRequest(name=t.name, entries=(OLD,))
        ),
        set_has(OLD),
        negated(has_set),
    ),
    "set-change": Verb(
        "address-set.set",
        with_set,
        lambda h, t: Firewalls(h.client).change_set(
            t.name, AddressSetChange(add=(NEW,), remove=(OLD,))
        ),
        set_has(NEW),
        set_has(OLD),
    ),
    "set-remove": Verb(
        "address-set.remove",
        with_set,
        lambda h, t: Firewalls(h.client).remove_set(t.name),
        negated(has_set),
        set_has(OLD),
    ),
}  # fmt: skip
