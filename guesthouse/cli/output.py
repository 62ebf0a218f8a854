"""What the command line says: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from guesthouse.cli.table import RED, YELLOW, colourful, paint, plain, show, terminal_width
from guesthouse.errors import GuesthouseError, InvalidInput


def note(message: str) -> None:
    """Something worth knowing."""
    _say(f"guest: {message}")


def warning(message: str, hint: str = "") -> None:
    _say(f"guest: {_tinted('warning:', YELLOW)} {message}")
    if hint:
        _say(f"  hint: {hint}")


def error(problem: GuesthouseError, *, about: str = "") -> None:
    """What went wrong and what to do next. :param about: which of several it is."""
    prefix = f"{about}: " if about else ""
    _say(f"guest: {_tinted('error:', RED)} {prefix}{_lines(problem.message)}")
    if problem.hint:
        _say(f"  hint: {_lines(problem.hint)}")


def result(text: str) -> None:
    """A line of the result."""
    show(f"{plain(text)}\n")


def json_result(value: Any) -> None:
    """`value` as JSON: indented for people at a terminal, one line for programs."""
    indent = 2 if os.isatty(1) else None
    show(json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def pairs(rows: list[tuple[str, str]], *, colours: Mapping[str, str] = {}) -> None:
    """Names and values below each other; long values wrap at their spaces, under themselves.

    A row of two empty texts is an empty line.

    :param colours: by name, the colour of the first word of the value.
    """
    left = max((len(name) for name, _ in rows), default=0) + 2
    width = terminal_width()
    for name, value in rows:
        head = (f"{name}:" if name else "").ljust(left)
        tint = colours.get(name, "") if colourful() else ""
        for line in _wrapped(plain(value), None if width is None else max(width - left, 16)):
            first, rest = _first_word(line)
            show(f"{head}{paint(first, tint)}{rest}".rstrip() + "\n")
            head, tint = " " * left, ""


def _first_word(text: str) -> tuple[str, str]:
    word = text.split(" ", 1)[0]
    return word, text[len(word) :]


def confirm(
    question: str, *, yes: bool, retry: str, why: str = "This cannot be taken back"
) -> bool:
    """Ask before something that may not be meant.

    :param yes: `--yes` was given. :param retry: the command that needs no question.
    :param why: why there is a question.
    :raise InvalidInput: nobody is there to answer.
    """
    if yes:
        return True
    if not (os.isatty(0) and os.isatty(2)):
        raise InvalidInput(
            f"{why}, and there is no terminal to ask at.",
            hint=f"If you mean it: {retry}",
        )
    _say(f"{question} [y/N] ", end="")
    answer = sys.stdin.readline()
    if not answer:
        _say("")
    return answer.strip().lower() in {"y", "yes"}


def _say(text: str, end: str = "\n") -> None:
    try:
        sys.stderr.write(text + end)
        sys.stderr.flush()
    except OSError:
        pass  # nobody listens; the exit code still speaks


def _tinted(text: str, colour: str) -> str:
    return paint(text, colour) if colourful(2) else text


def _lines(text: str) -> str:
    """Several lines stay lines, indented; nothing in them steers the terminal."""
    return "\n  ".join(plain(line) for line in text.splitlines())


def _wrapped(text: str, width: int | None) -> list[str]:
    if width is None or len(text) <= width:
        return [text]
    import textwrap

    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]
