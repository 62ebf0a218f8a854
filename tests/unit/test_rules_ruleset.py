"""What the compiler reads: nothing that is not as it must be reaches nft."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from guesthouse.errors import InvalidInput
from guesthouse.model.firewall import Action, Direction
from guesthouse.network.rules.compiling import compile_ruleset, publish_text, unpublish_text
from guesthouse.network.rules.deciding import decide
from guesthouse.network.rules.packet import Packet
from guesthouse.network.rules.ruleset import Published, Ruleset
from guesthouse.network.rules.text import Count, Table, one_of, quoted

from ..firewall_house import house, ident

EVIL = 'x"; flush ruleset'


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tap": EVIL}, "cards[0].tap"),
        ({"mac": EVIL}, "cards[0].mac"),
        ({"mac": "52:67:68:00:00:0G"}, "cards[0].mac"),
        ({"addresses": (EVIL,)}, "cards[0].addresses"),
        ({"addresses": ("FD42::1",)}, "cards[0].addresses"),
        ({"link_locals": ("fe80::1%eth0",)}, "cards[0].addresses"),
        ({"network": "gone"}, "cards[0].network"),
    ],
)
def test_a_card_that_cannot_be(change: dict[str, Any], field: str) -> None:
    whole = house({"guests": {"web": {}}})
    broken = Ruleset(networks=whole.networks, cards=(replace(whole.cards[0], **change),))
    for act in (compile_ruleset, lambda r: decide(r, Packet(sender="t1-0", destination="::1"))):
        with pytest.raises(InvalidInput) as raised:
            act(broken)
        assert raised.value.detail["field"] == field


@pytest.mark.parametrize(
    ("case", "field"),
    [
        ({"uplink": EVIL}, "uplink"),
        ({"published": [{"port": 1, "address": EVIL, "guest_port": 1}]}, "published[0].address"),
        ({"published": [{"port": 1, "address": "10.200.1.11", "guest_port": 1}] * 2}, "published"),
    ],
)
def test_a_house_that_cannot_be(case: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        compile_ruleset(house(case))
    assert raised.value.detail["field"] == field


def test_a_port_of_both_versions_is_published_twice_as_it_should() -> None:
    both = [{"port": 1, "address": a, "guest_port": 1} for a in ("10.200.1.11", "fd42:200:1::1001")]
    assert "1 : fd42:200:1::1001 . 1" in compile_ruleset(house({"published": both}))


def test_texts_of_ports() -> None:
    port = Published(port=8080, address="fd00::5", guest_port=80)
    assert publish_text(port) == (
        "add element inet guesthouse published_tcp6 { 8080 : fd00::5 . 80 }\n"
    )
    assert unpublish_text(port, "guesthouse_b") == (
        "delete element inet guesthouse_b published_tcp6 { 8080 }\n"
    )


def test_strings_cannot_end_early() -> None:
    assert quoted(EVIL) == '"x; flush ruleset"'
    assert quoted("a\nb\\") == '"ab"'
    assert one_of(["1"]) == "1"
    assert one_of(["1", "2"]) == "{ 1, 2 }"


def test_a_counter_goes_on_once() -> None:
    table = Table("inet", {"a": Count(packets=3, bytes=9)})
    assert [table.counter("a"), table.counter("a")] == ["counter packets 3 bytes 9", "counter"]


def test_who_set_the_policy() -> None:
    case = {
        "networks": {"lan": {"policy": {"incoming": "drop"}}},
        "guests": {"web": {"policy": {"incoming": "accept", "outgoing": "reject"}}, "db": {}},
    }
    ruleset = house(case)
    web, db = ruleset.cards
    assert ruleset.policy_of(web, Direction.IN) == (
        Action.ACCEPT,
        f"guest/{ident('guest', 'web')}/policy-in",
    )
    assert ruleset.policy_of(web, Direction.OUT)[0] is Action.REJECT
    assert ruleset.policy_of(db, Direction.IN) == (
        Action.DROP,
        f"network/{ident('network', 'lan')}/policy-in",
    )
    assert ruleset.policy_of(db, Direction.OUT) == (Action.ACCEPT, "house/policy-out")


def test_a_group_that_network_and_guest_name_is_asked_once() -> None:
    case = {
        "groups": {"base": [{"name": "ping", "protocol": "icmp"}]},
        "networks": {"lan": {"groups": ["base"]}},
        "guests": {"web": {"groups": ["base"]}},
    }
    ruleset = house(case)
    assert ruleset.groups_of(ruleset.cards[0]) == (ident("group", "base"),)
    assert ruleset.members == {ident("group", "base"): ruleset.cards}
    assert compile_ruleset(ruleset).count("/ping") == 1
