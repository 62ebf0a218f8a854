"""What is read back from the kernel: counters, and what it can do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from guesthouse.errors import HostLacks, ToolFailed
from guesthouse.network.rules.compiling import bridge_settings, compile_ruleset
from guesthouse.network.rules.counters import read_counters
from guesthouse.network.rules.probing import (
    CHECK,
    NF_CALL,
    QUESTIONS,
    capabilities,
    features,
    probe,
)
from guesthouse.network.rules.text import Count

from ..firewall_house import house
from ..firewall_kernel import Space


def listing(*rules: dict[str, Any]) -> bytes:
    return json.dumps({"nftables": [{"metainfo": {}}, *({"rule": r} for r in rules)]}).encode()


def counted(comment: str, packets: int, table: str = "guesthouse") -> dict[str, Any]:
    expressions = [{"match": {}}, {"counter": {"packets": packets, "bytes": 60 * packets}}]
    return {"table": table, "comment": comment, "expr": [*expressions, {"drop": None}]}


def test_rules_with_one_name_are_added_up() -> None:
    output = listing(
        counted("guest/a/x", 1),
        counted("guest/a/x", 2),
        counted("wall/host", 4),
        counted("guest/a/x", 3, "guesthouse_b"),
        counted("other", 9, "somebody"),
        {"expr": ["accept"]},
    )
    assert read_counters(output) == {
        "guest/a/x": Count(packets=6, bytes=360),
        "wall/host": Count(packets=4, bytes=240),
    }


@pytest.mark.parametrize("output", [b"", b"table inet", b"[]", b"{}", b'{"nftables": 1}'])
def test_what_is_no_listing(output: bytes) -> None:
    with pytest.raises(ToolFailed):
        read_counters(output)


async def answered(yes: set[str]) -> dict[str, bool]:
    async def run(argv: tuple[str, ...], text: bytes) -> bool:
        if argv == NF_CALL:
            return "bridge-nf-call" in yes
        assert argv == CHECK
        return next(n for n, t in QUESTIONS.items() if t.encode() == text) in yes

    return await probe(run)


async def test_a_kernel_is_used_as_it_is() -> None:
    every = set(QUESTIONS) | {"bridge-nf-call"}
    best = features(await answered(every))
    assert (best.bridge_state, best.bridge_reject, best.log_group) == ("conntrack", True, 7)
    old = features(await answered(every - {"bridge-conntrack", "bridge-reject"}))
    assert (old.bridge_state, old.bridge_reject) == ("nf-call", False)
    bare = features(await answered({"nft"}))
    assert (bare.bridge_state, bare.log_group) == ("", None)


async def test_what_lacks_is_named_with_its_cure() -> None:
    shown = {c.name: c for c in capabilities(await answered({"nft", "bridge-nf-call"}))}
    assert set(shown) == set(QUESTIONS) | {"bridge-nf-call"}
    assert shown["nft"].available
    assert not shown["nft"].cure
    assert shown["bridge-reject"].cure == "modprobe nft_reject_bridge (as root)"


@pytest.mark.root
async def test_this_kernel_takes_what_it_says_it_can() -> None:
    """What the probe answers decides what is compiled; the kernel must take that."""
    space = Space()
    try:

        async def run(argv: tuple[str, ...], text: bytes) -> bool:
            return space.run(*argv, text=text.decode()).returncode == 0

        answers = await probe(run)
        assert answers["nft"]
        assert "guesthouse_probe" not in space.ok("nft", "list", "ruleset")
        case = {
            "guests": {
                "web": {"rules": [{"name": "r", "action": "reject", "log": True}]},
                "db": {"policy": {"incoming": "reject"}},
            }
        }
        ruleset = house({**case, "features": json_of(answers)})
        space.ok("nft", "-f", "-", text=compile_ruleset(ruleset))
    finally:
        space.close()


def json_of(answers: dict[str, bool]) -> dict[str, Any]:
    found = features(answers)
    return {
        "bridge_state": found.bridge_state,
        "bridge_reject": found.bridge_reject,
        "log_group": found.log_group,
    }


def test_bridged_packets_take_the_long_way_only_for_rules() -> None:
    quiet = house({"guests": {"web": {}}})
    assert set(bridge_settings(quiet).values()) == {"0"}
    ruled = house({"guests": {"web": {"policy": {"incoming": "drop"}}}})
    assert bridge_settings(ruled) == {
        "net.bridge.bridge-nf-call-iptables": "1",
        "net.bridge.bridge-nf-call-ip6tables": "1",
        "net.bridge.bridge-nf-call-arptables": "0",
    }


def test_rules_that_would_hold_only_half_are_refused() -> None:
    guests = {"guests": {"web": {"rules": [{"name": "r"}]}}}
    with pytest.raises(HostLacks) as raised:
        compile_ruleset(house({**guests, "features": {"bridge_state": ""}}))
    assert raised.value.detail["capability"] == "bridge-firewall"
