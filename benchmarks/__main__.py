"""What we claim, measured: `python -m benchmarks start`, `python -m benchmarks rules` (as root),
`python -m benchmarks shares`, `python -m benchmarks network`.

Raw QEMU with the same devices is always measured beside it; libvirt is when it answers (see
`python -m benchmarks.libvirt`). Ends with 1 when a budget is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks import machine, network, rules, shares
from benchmarks.figures import Figure, table
from benchmarks.start import PARTS, QUICK, Size, measure


def say(what: str) -> None:
    print(f"… {what}", file=sys.stderr)


def measured_start(options: argparse.Namespace) -> list[Figure]:
    return measure(QUICK if options.quick else Size(), options.only or list(PARTS), say)


def measured_rules(options: argparse.Namespace) -> list[Figure]:
    return rules.measure(options.quick, say)


def measured_shares(options: argparse.Namespace) -> list[Figure]:
    return shares.measure(options.quick, say)


def measured_network(options: argparse.Namespace) -> list[Figure]:
    return network.measure(options.quick, say)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    families = parser.add_subparsers(required=True, metavar="FAMILY")
    start = families.add_parser("start", help="start, agent, kill, list, and a house that is idle")
    start.add_argument(
        "--only", action="append", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)}"
    )
    firewall = families.add_parser("rules", help="a thousand rules of the firewall")
    folders = families.add_parser("shares", help="shared folders, beside virtiofsd by hand")
    through = families.add_parser("network", help="bytes through the network; cards made ready")
    parts = (
        (start, measured_start),
        (firewall, measured_rules),
        (folders, measured_shares),
        (through, measured_network),
    )
    for family, run in parts:
        family.add_argument("--json", type=Path, metavar="FILE", help="write all samples there too")
        family.add_argument("--quick", action="store_true", help="few rounds: whether it works")
        family.set_defaults(run=run)
    options = parser.parse_args()

    before = machine.load()
    figures = options.run(options)
    facts = {**machine.facts(), "load before": before, "load after": machine.load()}
    for name, text in facts.items():
        print(f"{name}: {text}")
    print()
    print(table(figures))
    if options.json:
        answer = {"machine": facts, "figures": [figure.as_json() for figure in figures]}
        options.json.write_text(json.dumps(answer, indent=2) + "\n")
    return 1 if any(figure.met() is False for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
