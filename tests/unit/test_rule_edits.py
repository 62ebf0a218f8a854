"""Changes of rules: each can be taken back, and done twice it is done once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guesthouse.errors import Conflict, NotFound
from guesthouse.model.firewall import Action, Firewall, Policy, Rule, Traffic
from guesthouse.model.firewalling import PolicyChoice
from guesthouse.model.rule_edits import (
    FirewallEdit,
    RuleEdit,
    edited,
    edited_rules,
    named,
    rule_named,
    taking_back,
)

NAMES = st.sampled_from("abcdef")


def rule(name: str, action: Action = Action.ACCEPT) -> Rule:
    return Rule(name=name, action=action)


rules = st.lists(NAMES, unique=True, max_size=5).map(lambda names: tuple(map(rule, names)))
firewalls = st.builds(
    Firewall,
    rules=rules,
    groups=st.lists(st.sampled_from("XYZ"), unique=True).map(tuple),
    policy=st.builds(Policy, incoming=st.none() | st.sampled_from(Action)),
)
edits = st.builds(
    FirewallEdit,
    rules=st.builds(
        RuleEdit,
        put=st.none() | st.builds(rule, NAMES, st.sampled_from(Action)),
        before=st.just("") | NAMES,
        drop=st.just("") | NAMES,
    ),
    incoming=st.none() | st.sampled_from(PolicyChoice),
    outgoing=st.none() | st.sampled_from(PolicyChoice),
    groups=st.none() | st.lists(st.sampled_from("XYZ"), unique=True).map(tuple),
)


@given(before=firewalls, edit=edits)
def test_an_edit_is_taken_back_and_is_safe_to_be_done_again(
    before: Firewall, edit: FirewallEdit
) -> None:
    try:
        after = edited(before, edit)
    except (NotFound, Conflict):
        return
    back = taking_back(before, edit)
    assert edited(after, back, again=True) == before
    assert edited(after, edit, again=True) == after
    # Taking back what was not done yet, or twice, does no harm.
    assert edited(before, back, again=True) == before


def test_places_and_refusals() -> None:
    own = (rule("a"), rule("b"))

    def of(**edit: Any) -> str:
        return "".join(one.name for one in edited_rules(own, RuleEdit(**edit)))

    assert of(put=rule("c")) == "abc"
    assert of(put=rule("c"), before="a") == "cab"
    assert of(put=rule("c"), drop="a") == "cb"
    assert of(put=rule("a"), drop="a") == "ab"
    assert of(drop="b") == "a"
    for wrong, error in (
        ({"put": rule("a")}, Conflict),
        ({"put": rule("b"), "drop": "a"}, Conflict),
        ({"drop": "c"}, NotFound),
        ({"put": rule("c"), "before": "d"}, NotFound),
    ):
        with pytest.raises(error):
            of(**wrong)


def test_rules_without_a_name_are_called_by_what_they_do() -> None:
    ssh = Rule(name="", protocol=Traffic.TCP, ports=("22",))

    def name(*taken: str, **edit: Any) -> str:
        found = named(tuple(map(rule, taken)), RuleEdit(put=ssh, **edit)).put
        assert found
        return found.name

    assert name() == "allow-in-tcp-22"
    assert name("allow-in-tcp-22", "allow-in-tcp-22-2") == "allow-in-tcp-22-3"
    assert name("allow-in-tcp-22", drop="allow-in-tcp-22") == "allow-in-tcp-22"
    many = Rule(name="", protocol=Traffic.UDP, ports=("1", "2"), action=Action.DROP)
    found = named((), RuleEdit(put=many)).put
    assert found and found.name == "deny-in-udp"


def test_rules_are_found_by_name_or_number() -> None:
    own = (rule("2"), rule("web"))
    assert rule_named(own, "web") == "web"
    assert rule_named(own, "1") == "2" and rule_named(own, "2") == "2"
    for wrong in ("3", "0", "-1", "x", "9" * 6000, "²"):
        with pytest.raises(NotFound, match="no rule"):
            rule_named(own, wrong)
