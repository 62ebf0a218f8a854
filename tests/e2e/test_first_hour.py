"""The tutorial is true: its commands are typed one after another, and what comes is compared.

In a block of the page marked `console`, a line that begins with `$ ` is typed; the lines below it
must come in this order, though others may come between them. An error that the page shows must be
one, and nothing else may fail.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from .conftest import House

pytestmark = pytest.mark.qemu

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "first-hour.md"


class Typed(NamedTuple):
    """:ivar shown: what the page shows below the command."""

    line: int
    command: str
    shown: list[str]


def typed(text: str) -> list[Typed]:
    found: list[Typed] = []
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            inside = line == "```console"
        elif inside and line.startswith("$ "):
            found.append(Typed(number, line[2:], []))
        elif inside:
            found[-1].shown.append(line)
    return found


# What is another at each run: spans of time, measured sizes, numbers of processes, ids, addresses.
_VOLATILE = [
    (r"\b01[0-9A-HJKMNP-TV-Z]{24}\b", "ID"),
    (r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\b", "TIME"),
    (r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", "MAC"),
    (r"\b\d+(?:\.\d+)?[smhd]\b", "SPAN"),
    (r"\b\d+M of the host's", "SIZE of the host's"),
    # The default network, or one of its own where this host has no networks.
    (r"\b10\.\d+\.\d+\.\d+\b", "ADDRESS"),
    (r"\(on network default;|\(in a network of its own;", "(ON A NETWORK;"),
    (r"^Network: (default|builtin),", "Network: IT,"),
    (r"^web +[\d.]+ +\S+ +\S+ +256M +.*$", "web AND WHAT IT TAKES"),  # guest top
]


def tame(line: str) -> str:
    line = " ".join(line.split())
    for pattern, name in _VOLATILE:
        line = re.sub(pattern, name, line)
    return line


def matches(shown: str, said: str) -> bool:
    """`…` stands for anything."""
    parts = [re.escape(part) for part in tame(shown).split("…")]
    return re.fullmatch(".*".join(parts), tame(said)) is not None


def missing(shown: list[str], said: list[str]) -> str | None:
    """The first line of the page that did not come after those before it."""
    rest = iter(said)
    for line in shown:
        if line.strip() in {"", "…"}:
            continue
        if not any(matches(line, came) for came in rest):
            return line
    return None


@pytest.fixture(scope="module")
def own_house() -> Iterator[House]:
    made = House(Path(tempfile.mkdtemp(prefix="gh-")))
    try:
        yield made
    finally:
        made.close()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_every_line_of_the_first_hour(own_house: House, tmp_path: Path) -> None:
    text = PAGE.read_text()
    for port in ("8080", "8081"):  # somebody may hold them here
        text = text.replace(port, str(_free_port()))
    path = f"{Path(sys.executable).parent}:{own_house.env['PATH']}"
    bash = shutil.which("bash")
    assert bash is not None
    commands = typed(text)
    assert len(commands) > 40
    for one in commands:
        done = subprocess.run(
            [bash, "-c", one.command],
            env={**own_house.env, "PATH": path},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=600,
            check=False,
        )
        said = done.stdout.decode(errors="replace").splitlines()
        where = f"{PAGE.name}:{one.line}: $ {one.command}\n" + "\n".join(said)
        fails = any(line.startswith("guest: error:") for line in one.shown)
        assert (done.returncode != 0) == fails, f"exit code {done.returncode}: {where}"
        lacking = missing(one.shown, said)
        assert lacking is None, f"{lacking!r} did not come: {where}"


def test_the_comparison_can_fail() -> None:
    shown = ["NAME  STATE", "web   running  4s", "", "Process …, fine"]
    assert missing(shown, ["NAME STATE", "other", "web  running  12m", "Process 7, fine"]) is None
    assert missing(shown, ["NAME STATE", "web  stopped  4s"]) == "web   running  4s"
    assert missing(["b", "a"], ["a", "b"]) == "a"
    assert missing(["Process …, fine"], ["Process 7, bad"]) == "Process …, fine"
    assert typed("```console\n$ a\nb\n```\n$ c\n```text\n$ d\n```\n") == [Typed(2, "a", ["b"])]
