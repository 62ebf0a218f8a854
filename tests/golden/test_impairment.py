"""An impaired card and a kernel in (impairment/CASE.json), commands and rules out (….txt)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guesthouse.errors import GuesthouseError
from guesthouse.model.document import convert_strict
from guesthouse.model.impairment import NicImpairment
from guesthouse.network.impairment import Shaping, plan

from ..firewall_kernel import Space
from .conftest import Golden

CASES = Path(__file__).parent / "impairment"
NAMES = sorted(path.stem for path in CASES.glob("*.json"))
KERNELS = {
    "all": Shaping(netem=True, tbf=True, numgen=True, ifb=True),
    "no-netem": Shaping(tbf=True, numgen=True, ifb=True),
    "no-netem-no-ifb": Shaping(tbf=True, numgen=True),
    "nothing": Shaping(),
}


def written(case: dict[str, Any]) -> str:
    try:
        wanted = convert_strict(case["wanted"], NicImpairment)
        made = plan("t1-0", wanted, KERNELS[case["kernel"]])
    except GuesthouseError as error:
        return f"refused: {type(error).__name__}: {error} {json.dumps(error.detail)}\n"
    undo = [f"undo: {' '.join(command)}" for command in made.undo]
    return "\n".join([*undo, *map(" ".join, made.commands), made.rules])


@pytest.mark.parametrize("name", NAMES)
def test_impairment(name: str, golden: Golden) -> None:
    case = json.loads((CASES / f"{name}.json").read_text())
    golden.check(CASES / f"{name}.txt", written(case))


def test_there_are_enough_cases_and_no_orphans() -> None:
    assert len(NAMES) >= 15
    assert sorted(path.stem for path in CASES.glob("*.txt")) == NAMES


@pytest.mark.root
def test_the_kernel_takes_every_golden_rule() -> None:
    space = Space()
    try:
        for name in NAMES:
            text = (CASES / f"{name}.txt").read_text()
            head, table, rules = text.partition("table bridge")
            done = space.run("nft", "--check", "-f", "-", text=table + rules)
            assert done.returncode == 0, f"{name}: {done.stderr}"
            assert bool(rules) is not head.startswith("refused: "), name
    finally:
        space.close()
