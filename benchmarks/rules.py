"""How long a thousand rules of the firewall take: to be compiled, and to be loaded by nft.

Beside it a thousand rules written by hand as plainly as can be: one chain, no sets. Loads are timed
from the start of nft to its end, in a namespace of their own, each over the load before it.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.figures import OURS, Budget, Figure
from guesthouse.network.rules.compiling import compile_ruleset, compile_staged
from guesthouse.network.rules.ruleset import Ruleset
from tests.firewall_house import house

RULES = 1000
GUESTS = 50
ROUNDS = 25
QUICK_ROUNDS = 5
PLAIN = "rules by hand"
LIMIT = Budget(50.0)
PAUSE = 0.1
"""Seconds between loads: the kernel takes the old rules apart after nft has ended."""

# Loads each line of its input, a list of files, and says how many milliseconds that took.
LOADER = """
import subprocess, sys, time
for line in sys.stdin:
    begun = time.perf_counter()
    for path in line.split():
        subprocess.run(["nft", "-f", path], check=True)
    print((time.perf_counter() - begun) * 1000, flush=True)
"""


def thousand() -> Ruleset:
    """Twenty rules for each of fifty guests on two networks: every kind of rule, all mixed."""
    numbers = iter(range(RULES))
    guests = {
        f"g{guest}": {
            "network": ("lan", "wan")[guest % 2],
            "policy": {"incoming": "drop"} if guest % 2 else {},
            "rules": [_rule(guest, index, next(numbers)) for index in range(RULES // GUESTS)],
        }
        for guest in range(GUESTS)
    }
    return house({"networks": {"lan": {}, "wan": {}}, "guests": guests})


def _rule(guest: int, index: int, number: int) -> dict[str, Any]:
    incoming = index % 3 < 2
    ends = ([f"198.51.{guest}.{index}"], [f"guest:g{(guest + index) % GUESTS}"], [])[index % 3]
    ports = [str(1000 + number), f"{3000 + number}-{4000 + number}"][: 1 if index % 5 else 2]
    return {
        "name": f"r{index}",
        "action": ("accept", "drop")[index % 2],
        "direction": "in" if incoming else "out",
        "protocol": ("tcp", "udp")[index % 2] if index % 4 else "any",
        "ports": ports if index % 4 else [],
        "sources" if incoming else "destinations": ends,
    }


def by_hand() -> str:
    rules = "\n".join(
        f"ip saddr 198.51.{number % 100}.{number // 100} tcp dport {1000 + number} counter accept"
        for number in range(RULES)
    )
    head = "table inet plain\ndelete table inet plain\n"
    hook = "type filter hook forward priority filter; policy accept;"
    return f"{head}table inet plain {{\nchain by_hand {{\n{hook}\n{rules}\n}}\n}}\n"


def measure(quick: bool, say: Callable[[str], None]) -> list[Figure]:
    rounds = QUICK_ROUNDS if quick else ROUNDS
    compiled = Figure(f"{RULES} rules compiled", "ms", LIMIT)
    loaded = Figure(f"{RULES} rules loaded", "ms", LIMIT)
    staged = Figure(f"{RULES} rules loaded in stages, without root", "ms")
    with TemporaryDirectory(prefix="gh-rules-") as name:
        folder = Path(name)
        say(compiled.name)
        for _ in range(rounds):
            ruleset = thousand()
            begun = time.perf_counter()
            text = compile_ruleset(ruleset)
            compiled.add(OURS, (time.perf_counter() - begun) * 1000)
        whole = written(folder, "whole", [text])
        plain = written(folder, "plain", [by_hand()])
        turns = [
            written(folder, table, compile_staged(ruleset, table=table))
            for table in ("guesthouse_a", "guesthouse_b")
        ]
        say(loaded.name)
        loads([(loaded, OURS, whole), (loaded, PLAIN, plain)] * rounds, ["unshare", "--net"])
        say(staged.name)
        alone = ["unshare", "--user", "--map-root-user", "--net"]
        loads([(staged, OURS, turns[number % 2]) for number in range(rounds)], alone)
    return [compiled, loaded, staged]


def written(folder: Path, name: str, texts: Sequence[str]) -> str:
    """The texts as files, and these as a line for the loader."""
    paths = [folder / f"{name}.{number}" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return " ".join(map(str, paths))


def loads(turns: Sequence[tuple[Figure, str, str]], alone: list[str]) -> None:
    """One turn after another, in one namespace. A contender's first load is not counted: it has
    nothing to replace."""
    with subprocess.Popen(
        [*alone, "python3", "-I", "-c", LOADER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as loader:
        assert loader.stdin
        assert loader.stdout
        known: set[str] = set()
        for figure, contender, line in (*turns[-2:], *turns):
            time.sleep(PAUSE)
            loader.stdin.write(f"{line}\n")
            loader.stdin.flush()
            taken = float(loader.stdout.readline())
            if line in known:
                figure.add(contender, taken)
            known.add(line)
        loader.stdin.close()
