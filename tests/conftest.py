"""Counts for ./check, and skips: only those in tests/expected-skips.txt are allowed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
EXPECTED = [
    re.compile(line.split("#")[0].strip())
    for line in (HERE / "expected-skips.txt").read_text().splitlines()
    if line.split("#")[0].strip()
]

NEVER = os.environ.get("GUESTHOUSE_NEVER_SKIP", "")
"""A regular expression: on a machine that has what these skips miss (see .ci/run) they fail."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write the closing line where ./check asked for it."""
    target = os.environ.get("GUESTHOUSE_COUNTS")
    if not target:
        return
    stats = terminalreporter.stats
    failed = len(stats.get("failed", [])) + len(stats.get("error", []))
    passed, skipped = len(stats.get("passed", [])), len(stats.get("skipped", []))
    Path(target).write_text(f"{passed} passed, {failed} failed, {skipped} skipped\n")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):  # type: ignore[no-untyped-def]  # pytest's own generator protocol
    """An unexpected skip is a failure: a test that silently never runs proves nothing."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and not hasattr(report, "wasxfail"):
        line = f"{item.nodeid}: {_reason(report)}"
        expected = any(pattern.search(line) for pattern in EXPECTED)
        if not expected or (NEVER and re.search(NEVER, line)):
            report.outcome = "failed"
            report.longrepr = f"unexpected skip (see tests/expected-skips.txt): {line}"
