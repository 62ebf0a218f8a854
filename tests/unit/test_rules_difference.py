"""Small changes of the rules: what the kernel has then is what a whole load would have made."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from guesthouse.network.rules.compiling import compile_ruleset, difference
from guesthouse.network.rules.ruleset import Ruleset

from ..firewall_house import house
from ..firewall_kernel import Space

BASE = {"networks": {"lan": {}, "dmz": {}}, "guests": {"web": {}, "db": {}}}
MORE = {**BASE["guests"], "app": {"network": "dmz"}}
PORT = {"port": 8080, "address": "10.200.1.11", "guest_port": 80}
RULES = {"rules": [{"name": "no-web", "action": "drop", "protocol": "tcp", "ports": ["80"]}]}
CHANGES = {
    "base": BASE,
    "a-card-more": {**BASE, "guests": MORE},
    "a-card-less": {**BASE, "guests": {"web": {}}},
    "a-network-more": {**BASE, "networks": {"lan": {}, "dmz": {}, "cell": {"kind": "isolated"}}},
    "a-port-more": {**BASE, "published": [PORT]},
    "another-guest-port": {**BASE, "published": [{**PORT, "guest_port": 81}]},
    "rules": {**BASE, "guests": {"web": {}, "db": RULES}},
    "no-host": {**BASE, "networks": {"lan": {"host_access": True}, "dmz": {}}},
}


def ruleset(name: str) -> Ruleset:
    return house(json.loads(json.dumps(CHANGES[name])))


def test_equal_rulesets_differ_in_nothing() -> None:
    for name in CHANGES:
        assert difference(ruleset(name), ruleset(name)) == ""


def test_a_card_is_a_few_elements() -> None:
    text = difference(ruleset("base"), ruleset("a-card-more"))
    assert text is not None
    assert all(line.startswith("add element ") for line in text.splitlines())
    assert len(text.splitlines()) < 12


def test_rules_are_loaded_as_a_whole() -> None:
    assert difference(ruleset("base"), ruleset("rules")) is None
    assert difference(ruleset("rules"), ruleset("base")) is None


@pytest.mark.root
def test_the_kernel_ends_up_the_same() -> None:
    space = Space()
    told = 0
    try:
        for one, other in itertools.permutations(CHANGES, 2):
            text = difference(ruleset(one), ruleset(other))
            if text is None:
                continue
            told += 1
            space.ok("nft", "-f", "-", text=compile_ruleset(ruleset(one)))
            space.ok("nft", "-f", "-", text=text)
            found = _listed(space)
            space.ok("nft", "-f", "-", text=compile_ruleset(ruleset(other)))
            assert found == _listed(space), f"{one} -> {other}"
    finally:
        space.close()
    assert told >= 30


def _listed(space: Space) -> list[str]:
    """Elements in any order: a set has none."""
    text = space.ok("nft", "-n", "list", "ruleset")
    flat = re.sub(r"\s+", " ", text)

    def ordered(match: re.Match[str]) -> str:
        return "{ " + ", ".join(sorted(part.strip() for part in match[1].split(","))) + " }"

    return re.sub(r"elements = \{([^}]*)\}", ordered, flat).split(";")
