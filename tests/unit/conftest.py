"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .cli_room import Room, make_room


@pytest.fixture
def guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Room]:
    """Runs `guest`, towards a house of this test."""
    yield from make_room(tmp_path, monkeypatch, capfd)
