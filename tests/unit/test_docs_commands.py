"""Commands and options that the pages name are ones of ours, in blocks and within sentences."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from guesthouse.cli.app import COMMANDS, app

ROOT = Path(__file__).parents[2]


def _pages() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:  # not a checkout: an unpacked archive
        return [page for page in sorted(ROOT.rglob("*.md")) if ".venv" not in page.parts]
    names = sorted({name for name in listed.stdout.decode().split("\0") if name})
    return [page for name in names if (page := ROOT / name).exists()]


PAGES = _pages()


class Named(NamedTuple):
    line: int
    words: list[str]


# Where a command begins: on a line, or where a shell begins another one.
_BEGIN = re.compile(r"(?:^\$ |^|\| |; |&& |\()guest (?=[a-z-])")
# A command ends where the shell goes on: a pipe, a list, a redirection, a closing bracket.
_END = re.compile(r"[|;&<>)]")


def commands_in(text: str) -> Iterator[Named]:
    """`guest …` in blocks of code, and between backquotes."""
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            inside = not inside and line[3:] in {"console", "sh", "bash"}
            continue
        typed = [line] if inside and line.startswith(("$ ", "guest ")) else []
        spoken = [] if inside else re.findall(r"`([^`]+)`", line)
        for piece in [*typed, *(one for one in spoken if one.startswith("guest "))]:
            for start in _BEGIN.finditer(piece):
                yield Named(number, _words(piece[start.end() :]))


def _words(rest: str) -> list[str]:
    """As a shell would take them apart; quotes that do not close end the command."""
    rest = rest.split(" #", maxsplit=1)[0]
    for end in range(len(rest), 0, -1):
        try:
            words = shlex.split(rest[:end])
        except ValueError:
            continue
        break
    else:
        words = []
    taken = []
    for word in words:
        if _END.match(word) or word.startswith("$("):
            break
        taken.append(word)
        if word == "--":
            break
        if word[-1:] in {";", ")"}:
            taken[-1] = word[:-1]
            break
    return taken


def unknown(words: list[str]) -> str | None:
    """What of a command line is no command or option of ours."""
    context = click.Context(app)
    names = words[0].split(",") if words and words[0] != "help" else []
    for name in [one for one in names if one]:
        if name.startswith("-"):
            return None if name in {"--help", "--version", "-h"} else name
        if name not in COMMANDS:
            return name
        command = app.get_command(context, name)
        rest = words[1:]
        while isinstance(command, click.Group):
            if not rest or rest[0].startswith("-"):
                return None
            below = [one for one in re.split(r"[|,]", rest[0]) if one]
            for one in below:
                if one not in command.commands:
                    return f"{name} {one}"
            command, rest = command.commands[below[0]], rest[1:]
        assert command is not None
        options = {text for one in command.params for text in one.opts}
        for word in rest:
            if word == "--":
                break
            option = word.split("=")[0]
            if re.match(r"--[a-z]", option) and option not in {*options, "--help"}:
                return f"{name} {option}"
    return None


TYPED = [page for page in PAGES if page.name != "commands.md"]  # that one is made from them


@pytest.mark.parametrize("page", TYPED, ids=[page.name for page in TYPED])
def test_commands_are_commands(page: Path) -> None:
    # The tutorial shows a misspelt option, and what comes of it.
    wrong = {"first-hour.md": {"ls --jsno"}}.get(page.name, set())
    found = [
        f"{page.name}:{one.line}: guest {one.words}: {bad}"
        for one in commands_in(page.read_text())
        if (bad := unknown(one.words)) is not None and bad not in wrong
    ]
    assert found == []


def test_a_command_that_is_none_is_found() -> None:
    text = """
`guest lanuch web` and `guest rm --yes --wrong`, `guest image bild x`
```console
$ echo x | guest exec web -- tr --anything
$ kill $(guest daemon statsu)
$ guest stop a; guest wait b
```
"""
    found = [unknown(one.words) for one in commands_in(text)]
    assert found == ["lanuch", "rm --wrong", "image bild", None, "daemon statsu", None, "wait"]
