"""A house in (rules/CASE.json), the text for nft and what the dry run says out (rules/CASE.nft).

Cases are written as in `tests/firewall_house.py`; `asks` are packets, by names of guests.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from guesthouse.errors import GuesthouseError
from guesthouse.model.document import convert_strict
from guesthouse.network.rules.compiling import bridge_settings, compile_ruleset
from guesthouse.network.rules.deciding import decide
from guesthouse.network.rules.packet import Packet
from guesthouse.network.rules.ruleset import Ruleset
from guesthouse.network.rules.text import Count

from ..firewall_house import house
from ..firewall_kernel import Space
from .conftest import Golden

CASES = Path(__file__).parent / "rules"
NAMES = sorted(path.stem for path in CASES.glob("*.json"))
REFUSED = "# refused: "


def written(case: dict[str, Any]) -> str:
    """The text, with verdicts and settings as its comments, or the error that refuses the case."""
    counters = convert_strict(case.get("counters", {}), dict[str, Count])
    try:
        ruleset = house({k: v for k, v in case.items() if k not in {"asks", "counters"}})
        text = compile_ruleset(ruleset, counters)
    except GuesthouseError as error:
        return f"{REFUSED}{type(error).__name__}: {error} {json.dumps(error.detail)}\n"
    settings = [f"# {key} = {value}" for key, value in bridge_settings(ruleset).items()]
    asked = [line for ask in case.get("asks", []) for line in verdict(ruleset, ask)]
    return "\n".join([*settings, *asked, text])


def verdict(ruleset: Ruleset, ask: dict[str, Any]) -> list[str]:
    taps = {card.name: card.tap for card in ruleset.cards}
    addresses = {card.name: card.addresses[0] for card in ruleset.cards if card.addresses}
    raw = {**ask, "sender": taps.get(ask.get("from", ""), "")}
    raw.pop("from", None)
    if "to" in raw:
        to = raw.pop("to")
        raw["destination"] = addresses.get(to, to)
    try:
        said = decide(ruleset, convert_strict(raw, Packet))
    except GuesthouseError as error:
        return [f"# {json.dumps(ask)}", f"#   {type(error).__name__}: {error}"]
    passed = f", after {', '.join(said.passed)}" if said.passed else ""
    return [
        f"# {json.dumps(ask)}",
        f"#   {said.action.value}: {said.rule}{passed}. {said.reason}",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_rules(name: str, golden: Golden) -> None:
    case = json.loads((CASES / f"{name}.json").read_text())
    golden.check(CASES / f"{name}.nft", written(case))


def test_there_are_enough_cases_and_no_orphans() -> None:
    assert len(NAMES) >= 30
    assert sorted(path.stem for path in CASES.glob("*.nft")) == NAMES


@pytest.mark.root
def test_the_kernel_takes_every_golden_text() -> None:
    space = Space()
    try:
        tracked = loads(space, "ct state established accept")
        refuses = loads(space, "reject")
        for name in NAMES:
            text = (CASES / f"{name}.nft").read_text()
            if text.startswith(REFUSED):
                continue
            bridge, inet, rest = text.partition("table inet guesthouse\n")
            if not tracked:
                bridge = without(bridge, "ct state ")
            if not refuses:
                bridge = without(bridge, "reject with")
            done = check(space, bridge + inet + rest)
            assert done.returncode == 0, f"{name}: {done.stderr}"
    finally:
        space.close()


def loads(space: Space, rule: str) -> bool:
    chain = f"chain c {{\ntype filter hook forward priority 0\n{rule}\n}}"
    return check(space, f"table bridge t {{\n{chain}\n}}\n").returncode == 0


def check(space: Space, text: str) -> subprocess.CompletedProcess[str]:
    return space.run("nft", "--check", "-f", "-", text=text)


def without(text: str, word: str) -> str:
    """What this kernel cannot do in the bridge family is left out; the rest is checked."""
    return "\n".join(line for line in text.splitlines() if word not in line) + "\n"


def test_a_text_with_the_same_house_is_the_same() -> None:
    case = json.loads((CASES / "everything.json").read_text())
    ruleset = house({k: v for k, v in case.items() if k not in {"asks", "counters"}})
    again = convert_strict(json.loads(msgspec.json.encode(ruleset)), Ruleset)
    assert compile_ruleset(ruleset) == compile_ruleset(again)
