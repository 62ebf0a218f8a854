"""A house for the tests of a file, and the table of the crash matrix, printed when all is done."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.daemon_house import Street
from tests.crash.matrix import Row, table

ROWS: list[Row | str] = []
"""Results as they come; texts are remarks."""


@pytest.fixture(scope="module")
def street() -> Iterator[Street]:
    made = Street()
    try:
        yield made
    finally:
        made.leave()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not ROWS:
        return
    terminalreporter.section("crash matrix")
    for remark in (row for row in ROWS if isinstance(row, str)):
        terminalreporter.write_line(remark)
    for line in table(row for row in ROWS if isinstance(row, Row)):
        terminalreporter.write_line(line)
