"""A program that is upgraded while it runs notices it, and takes nothing else for an upgrade."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from guesthouse.host.installed import Installed


@pytest.fixture
def program(tmp_path: Path) -> Path:
    top = tmp_path / "program"
    (top / "room" / "__pycache__").mkdir(parents=True)
    for name in ("__init__.py", "room/__init__.py", "room/door.py"):
        (top / name).write_text("x = 1\n")
    return top


def _replaced(top: Path) -> None:
    """As a package of a reproducible build does: same name, size and time, another file."""
    old = top / "__init__.py"
    known = old.stat()
    new = top / "new"
    new.write_text("x = 2\n")
    os.utime(new, ns=(known.st_atime_ns, known.st_mtime_ns))
    new.rename(old)


CHANGES: dict[str, Callable[[Path], object]] = {
    "edited": lambda top: (top / "room" / "door.py").write_text("x = 12\n"),
    "replaced": _replaced,
    "added": lambda top: (top / "room" / "window.py").touch(),
    "taken away": lambda top: (top / "room" / "door.py").unlink(),
    "gone": shutil.rmtree,
}


@pytest.mark.parametrize("change", CHANGES)
async def test_an_upgrade_is_noticed(program: Path, change: str) -> None:
    installed = Installed(program)
    await installed.look(every=0)
    assert not installed.changed
    CHANGES[change](program)
    await installed.look(every=0)
    assert installed.changed


async def test_what_python_keeps_beside_it_is_no_upgrade(program: Path) -> None:
    installed = Installed(program)
    (program / "__pycache__").mkdir()
    (program / "room" / "__pycache__" / "door.pyc").touch()
    (program / "room" / ".door.py.swp").touch()
    await installed.look(every=0)
    assert not installed.changed


async def test_looks_are_not_repeated_at_once(program: Path) -> None:
    installed = Installed(program)
    CHANGES["added"](program)
    await installed.look(every=1000)
    assert not installed.changed
