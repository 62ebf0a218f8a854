"""The command line in front of a fake house: in this process, or as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from guesthouse.cli import entry

from .fake_house import FakeHouse, fake_house

GUEST = [
    sys.executable,
    "-c",
    "import sys; from guesthouse.cli.entry import main; sys.exit(main())",
]


class Said(NamedTuple):
    code: int
    out: str
    err: str


class Room:
    def __init__(self, house: FakeHouse, capfd: pytest.CaptureFixture[str]) -> None:
        self.house = house
        self._capfd = capfd

    def __call__(self, *arguments: str) -> Said:
        """Run `guest` in this process."""
        self._capfd.readouterr()
        code = 0 if entry.short([*arguments]) else entry.full([*arguments])
        return Said(code, *self._capfd.readouterr())

    def json(self, *arguments: str) -> Any:
        said = self(*arguments, "--json")
        assert said.code == 0, said
        return json.loads(said.out)

    def process(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start `guest` as a process of its own, with the signals of a fresh shell."""
        return subprocess.Popen(
            [*GUEST, *arguments],
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
                **options,
            },
        )

    def bodies(self, method: str, path: str) -> list[Any]:
        """What was sent to `path`, in order."""
        return [body for verb, seen, body in self.house.seen if (verb, seen) == (method, path)]


def make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Room]:
    with fake_house(tmp_path) as house:
        house.add("web")
        monkeypatch.setenv("GUESTHOUSE_SOCKET", str(house.path))
        monkeypatch.setenv("NO_COLOR", "1")
        for name in [name for name in os.environ if name.startswith("GUESTHOUSE_")]:
            if name != "GUESTHOUSE_SOCKET":
                monkeypatch.delenv(name)
        yield Room(house, capfd)


def read_all(fd: int) -> str:
    data = b""
    while True:
        try:
            piece = os.read(fd, 4096)
        except OSError:  # EIO: the other end of a terminal has closed
            return data.decode()
        if not piece:
            return data.decode()
        data += piece
