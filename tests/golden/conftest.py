"""Golden files: what is made today must be what was agreed on; --update-golden writes it anew."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write golden files anew; review the diff"
    )


class Golden:
    def __init__(self, update: bool) -> None:
        self._update = update

    def check(self, path: Path, text: str) -> None:
        """`text` must be the content of `path`."""
        if self._update:
            path.write_text(text)
        assert path.exists(), f"{path.name} is missing; run pytest with --update-golden"
        assert text == path.read_text(), f"{path.name} differs; see --update-golden"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(bool(request.config.getoption("--update-golden", default=False)))
