"""Writes docs/reference/ from the code: commands, errors, settings, the API.

    python docs/generate.py            writes what has changed, and names it
    python docs/generate.py --check    writes nothing; the exit code is 1 when a page is stale

A test does the latter, so a change of the code and its pages come in one commit.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import click
import msgspec

from guesthouse import errors
from guesthouse.api.app import build_app
from guesthouse.api.facade import House
from guesthouse.api.openapi import document
from guesthouse.cli.app import SECTIONS, app
from guesthouse.cli.command import Command
from guesthouse.cli.family import Family
from guesthouse.host.settings import FILE_NAME, Settings
from guesthouse.model import folders
from guesthouse.model.reports import ProblemDetails

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Made by docs/generate.py from the code; change that. -->"


def pages() -> dict[str, str]:
    """Content by file name."""
    described = document(build_app(cast(House, None), asyncio.Event()))
    return {
        "commands.md": commands_page(),
        "errors.md": errors_page(),
        "settings.md": settings_page(),
        "api.md": api_page(described),
        "openapi.json": json.dumps(described, indent=1, ensure_ascii=False) + "\n",
    }


def stale() -> list[str]:
    """Names of pages that are not as the code would have them."""
    return [name for name, text in pages().items() if _read(FOLDER / name) != text]


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _table(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --- Commands ------------------------------------------------------------------------------------


def every_command() -> Iterator[tuple[str, str, click.Command]]:
    """(section, full name, command), families before their members."""
    context = click.Context(app, info_name="guest")
    for section, commands in SECTIONS.items():
        for name in commands:
            found = app.get_command(context, name)
            assert found is not None  # `SECTIONS` names what there is
            for path, one in _with_members(f"guest {name}", found):
                yield section, path, one


def _with_members(path: str, found: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield path, found
    if isinstance(found, click.Group):
        for below, one in found.commands.items():
            yield from _with_members(f"{path} {below}", one)


def commands_page() -> str:
    parts = [
        NOTE,
        "# Commands",
        "Every command takes `--help` (`-h`). Exit codes are in [exit-codes.md](exit-codes.md). "
        "A guest is named by its name, its id, or a unique beginning of its id.",
    ]
    listed = ""
    for section, name, found in every_command():
        if section != listed:
            parts.append(f"## {section}")
            listed = section
        parts.append(f"### {name}")
        parts += _command(name, found)
    return "\n\n".join(parts) + "\n"


def _command(name: str, found: click.Command) -> Iterator[str]:
    context = click.Context(found, info_name=name)
    yield f"```\n{' '.join(_usage(found, context))}\n```"
    yield from _help(found.help or "")
    if isinstance(found, click.Group):
        return
    options = [one for one in found.params if isinstance(one, click.Option)]
    if options:
        yield _table(
            ["option", "meaning"], [[_option(one, context), one.help or ""] for one in options]
        )
    assert isinstance(found, Command | Family)
    lines = [f"{line}{f'    # {meaning}' if meaning else ''}" for line, meaning in found.examples]
    yield "```sh\n{}\n```".format("\n".join(lines))


def _usage(found: click.Command, context: click.Context) -> list[str]:
    return [context.command_path, *found.collect_usage_pieces(context)]


def _help(text: str) -> Iterator[str]:
    """Paragraphs; one that click is told not to wrap (\\b) keeps its lines."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            yield f"```\n{paragraph[2:]}\n```"
        else:
            yield paragraph


def _option(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    if not (option.is_flag or option.count):
        names += f" `{option.make_metavar(context)}`"
    if option.show_default and option.default not in (None, ()):
        names += f" (default {option.default})"
    return names


# --- Errors --------------------------------------------------------------------------------------


def errors_page() -> str:
    parts = [
        NOTE,
        "# Errors",
        "Each error has a stable code. The API answers its HTTP status with "
        "[problem details](https://www.rfc-editor.org/rfc/rfc9457) whose `type` is "
        "`urn:guesthouse:error:` and the code; the command line prints message and hint and leaves "
        "with its exit code. An error in italics gathers those below it, and is also used itself.",
        _table(["code", "title", "HTTP", "exit", "meaning"], list(_errors(errors.GuesthouseError))),
        "## What an answer holds",
        _table(
            ["field", "meaning"],
            [[f"`{name}`", text] for name, text in _ivars(ProblemDetails).items()],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _errors(kind: type[errors.GuesthouseError], depth: int = -1) -> Iterator[list[str]]:
    below = sorted(kind.__subclasses__(), key=_line_of)
    if depth >= 0:
        meaning = inspect.cleandoc(kind.__doc__ or "")
        indent = "&nbsp;" * 4 * depth
        code = f"{indent}`{kind.code}`"
        title = f"*{kind.title}*" if below else kind.title
        yield [code, title, str(kind.status), str(kind.exit_code), _code_marks(meaning)]
    for one in below:
        yield from _errors(one, depth + 1)


def _line_of(kind: type) -> int:
    return inspect.getsourcelines(kind)[1]


def _code_marks(text: str) -> str:
    return text.replace('`detail["', "`context.").replace('"]`', "`")


# --- Settings ------------------------------------------------------------------------------------


def settings_page() -> str:
    explained = _ivars(Settings)
    rows = []
    for one in msgspec.structs.fields(Settings):
        rows.append([f"`{one.name}`", f"`{_toml(one.default)}`", explained[one.name]])
    example = "\n".join(
        f"{one.name} = {_toml(one.default)}" for one in msgspec.structs.fields(Settings)
    )
    return (
        "\n\n".join(
            [
                NOTE,
                "# Settings and environment",
                f"## {FILE_NAME}",
                f"`~/.config/guesthouse/{FILE_NAME}` (below `XDG_CONFIG_HOME`, if that is set) for "
                f"a personal house, `{folders.SYSTEM_CONFIG}/{FILE_NAME}` for the system's. The "
                "daemon reads it once, at its start: `guest daemon restart` takes a change up. An "
                "unknown setting is an error that names the ones there are.",
                _table(["setting", "default", "meaning"], rows),
                f"The file that says nothing new:\n\n```toml\n{example}\n```",
                "## Environment",
                _table(["variable", "meaning"], list(_environment())),
            ]
        )
        + "\n"
    )


def _toml(value: object) -> str:
    """The few kinds of values that settings have are the same in JSON."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _environment() -> Iterator[list[str]]:
    text = inspect.cleandoc(folders.__doc__ or "")
    entries = re.findall(r"^((?:``\w+``(?:, )?)+)\n((?:    .*\n?)+)", text, re.MULTILINE)
    for names, meaning in entries:
        yield [names.replace("``", "`"), meaning]
    yield ["`GUESTHOUSE_QEMU`", "the QEMU to use in place of the one on PATH"]
    yield ["`NO_COLOR`", "not empty: no colours (no-color.org)"]
    yield ["`GUESTHOUSE_DEBUG`", "not empty: a defect of `guest` shows where it happened"]
    yield ["`GUESTHOUSE_LOG`", "what the daemon logs: DEBUG, INFO (the default), WARNING, ERROR"]


def _ivars(kind: type) -> dict[str, str]:
    """What a docstring says of each field (`:ivar name: text`)."""
    _, *parts = re.split(r":ivar (\w+): ", inspect.cleandoc(kind.__doc__ or ""))
    return {
        name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)
    }


# --- The API -------------------------------------------------------------------------------------


def api_page(described: dict[str, Any]) -> str:
    groups: dict[str, list[list[str]]] = {}
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            row = [f"`{method.upper()} {path}`", f"{operation['summary']}."]
            groups.setdefault(operation["tags"][0], []).append(row)
    sockets = [
        [f"`{path}`", f"{about['summary']}."] for path, about in described["x-websockets"].items()
    ]
    parts = [
        NOTE,
        "# The HTTP API",
        described["info"]["description"],
        "The whole of it is in [openapi.json](openapi.json), which a daemon also answers at "
        "`/v1/openapi.json`. `guest daemon status` names the socket:",
        '```sh\ncurl --unix-socket "$(guest daemon status --json | jq -r .socket)" '
        "http://guesthouse/v1/guests\n```",
    ]
    for group, rows in groups.items():
        parts += [f"## {group}", _table(["route", "what it does"], rows)]
    parts += ["## WebSockets", _table(["route", "what it does"], sockets)]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        old = stale()
        for name in old:
            sys.stderr.write(f"docs/reference/{name} is stale: run python docs/generate.py\n")
        return 1 if old else 0
    if sys.argv[1:]:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    for name, text in pages().items():
        path = FOLDER / name
        if _read(path) != text:
            path.write_text(text)
            sys.stdout.write(f"wrote docs/reference/{name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
