"""What was measured, against what, and whether it is what we promise; as a table and as JSON."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

OURS = "Guesthouse"


@dataclass(frozen=True)
class Budget:
    """:ivar base: the contender whose figure counts as 1; empty where `limit` is in the unit."""

    limit: float
    base: str = ""

    def text(self, unit: str) -> str:
        return f"≤ {self.limit:g} times {self.base}" if self.base else f"≤ {self.limit:g} {unit}"


@dataclass
class Figure:
    """One thing that several contenders do, sampled in rounds: sample n of each is of round n.

    :ivar values: contender -> samples in `unit`, in the order in which they were taken.
    """

    name: str
    unit: str
    budget: Budget | None = None
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, contender: str, value: float) -> None:
        self.values.setdefault(contender, []).append(value)

    def median(self, contender: str) -> float:
        return statistics.median(self.values[contender])

    def ratio(self, base: str, contender: str = OURS) -> float:
        """The middle of the ratios within each round: what disturbs a round disturbs both."""
        pairs = zip(self.values[contender], self.values[base], strict=True)
        return statistics.median(mine / other for mine, other in pairs)

    def met(self) -> bool | None:
        """None without a budget, or without what it compares with."""
        if self.budget is None or OURS not in self.values:
            return None
        if not self.budget.base:
            return self.median(OURS) <= self.budget.limit
        if self.budget.base not in self.values:
            return None
        return self.ratio(self.budget.base) <= self.budget.limit

    def as_json(self) -> dict[str, Any]:
        answer: dict[str, Any] = {"name": self.name, "unit": self.unit, "samples": self.values}
        answer["medians"] = {contender: self.median(contender) for contender in self.values}
        if self.budget is not None:
            answer["budget"] = {"limit": self.budget.limit, "base": self.budget.base}
            answer["met"] = self.met()
            if self.budget.base in self.values:
                answer["ratio"] = self.ratio(self.budget.base)
        return answer


HEADERS = ("what", "who", "median", "best", "worst", "runs", "ratio", "budget", "")


def table(figures: list[Figure]) -> str:
    """Lines of a Markdown table, padded so that it is one on a terminal as well."""
    rows: list[tuple[str, ...]] = [HEADERS]
    for figure in figures:
        rows += _rows(figure)
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEADERS))]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    )


def _rows(figure: Figure) -> list[tuple[str, ...]]:
    base = figure.budget.base if figure.budget else ""
    rows: list[tuple[str, ...]] = []
    for contender, samples in figure.values.items():
        ours = contender == OURS
        ratio = ""
        if base in figure.values and contender != base:
            ratio = f"{figure.ratio(base, contender):.2f}"
        rows.append(
            (
                figure.name if not rows else "",
                contender,
                f"{_number(statistics.median(samples))} {figure.unit}",
                _number(min(samples)),
                _number(max(samples)),
                str(len(samples)),
                ratio,
                figure.budget.text(figure.unit) if figure.budget and ours else "",
                {True: "met", False: "MISSED", None: ""}[figure.met()] if ours else "",
            )
        )
    return rows


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
