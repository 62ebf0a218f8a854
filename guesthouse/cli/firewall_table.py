"""Rules as a table."""

from __future__ import annotations

from collections.abc import Sequence

from guesthouse.cli import output
from guesthouse.cli.table import colourful, render, show, terminal_width
from guesthouse.model.firewalling import DefaultView, RuleView
from guesthouse.model.rule_edits import WORDS


def rules_table(
    rules: Sequence[RuleView], defaults: Sequence[DefaultView], *, policy: str = ""
) -> None:
    """:param policy: said when there is no line for it."""
    if not rules and not defaults:
        output.note("no rules" + (f"; policy: {policy}" if policy else ""))
        return
    rows = [_row(rule) for rule in rules]
    rows += [
        ["-", "(policy)", one.direction.value, WORDS[one.action], "any", "-", "any", "any",
         _hits(one.packets), one.owner]
        for one in defaults
    ]  # fmt: skip
    headers = [
        "#", "NAME", "DIRECTION", "ACTION", "PROTOCOL", "PORTS", "FROM", "TO", "HITS", "OWNER"
    ]  # fmt: skip
    show(render(headers, rows, width=terminal_width(), drop=("PORTS",), colour=colourful()))
    if policy and not defaults:
        output.note(f"policy: {policy}")


def _row(rule: RuleView) -> list[str]:
    marks = [word for word, on in (("log", rule.log), ("off", not rule.enabled)) if on]
    return [
        str(rule.number),
        rule.name + (f" ({', '.join(marks)})" if marks else ""),
        rule.direction.value,
        WORDS[rule.action],
        rule.protocol.value,
        _ports(rule),
        _ends(rule, rule.sources),
        _ends(rule, rule.destinations),
        _hits(rule.packets),
        rule.owner,
    ]


def _ports(rule: RuleView) -> str:
    text = ",".join(rule.ports) or "-"
    return text if not rule.source_ports else f"{text} (from {','.join(rule.source_ports)})"


def _ends(rule: RuleView, ends: Sequence[str]) -> str:
    shown = [f"{end} ({rule.missing[end]})" if end in rule.missing else end for end in ends]
    return ", ".join(shown) or "any"


def _hits(packets: int | None) -> str:
    return "-" if packets is None else str(packets)
