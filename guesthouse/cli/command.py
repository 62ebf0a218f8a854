"""What every command shares: examples in its help, parameter types, live completion."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from guesthouse.errors import GuesthouseError, InvalidInput
from guesthouse.model.units import parse_size

COMPLETION_TIMEOUT = 2.0
"""Seconds that a completion may wait for the daemon."""


class Command(click.Command):
    """A command whose help ends with examples. :ivar examples: (command line, what it does)."""

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)


def write_examples(formatter: click.HelpFormatter, examples: Sequence[tuple[str, str]]) -> None:
    if not examples:
        return
    with formatter.section("Examples"):
        for line, meaning in examples:
            if meaning:
                formatter.write(f"{'':>{formatter.current_indent}}# {meaning}\n")
            formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def command(
    name: str, *, examples: Sequence[tuple[str, str]], **rest: Any
) -> Callable[[Callable[..., Any]], Command]:
    """Decorator: a `Command` called `name`; its docstring is its help."""

    def made(function: Callable[..., Any]) -> Command:
        built = click.command(name, cls=Command, examples=examples, **rest)(function)
        assert isinstance(built, Command)
        return built

    return made


class Size(click.ParamType[int]):
    """Bytes, written as `512M` or `2G`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        field = param.name if param is not None and param.name else "size"
        return parse_size(str(value), field=field)


SIZE = Size()


def live_list(target: str, field: str = "") -> list[dict[str, Any]]:
    """What the running daemon lists at `target`; nothing when there is none. Never starts one.

    :param field: of an object that has the list.
    """
    from guesthouse.client.start import find

    try:
        transport = find()
        if transport is None:
            return []
        found = transport.request("GET", target, timeout=COMPLETION_TIMEOUT).json()
        if field and isinstance(found, dict):
            found = found.get(field)
    except GuesthouseError:
        return []
    return found if isinstance(found, list) else []


def complete_guests(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of guests that are not on the line yet, with their state."""
    taken = ctx.params.get(param.name or "") or ()
    taken = (taken,) if isinstance(taken, str) else taken
    return [
        CompletionItem(guest["name"], help=guest["status"]["state"])
        for guest in live_list("/v1/guests")
        if guest["name"].startswith(incomplete) and guest["name"] not in taken
    ]


def complete_trash(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of guests in the trash."""
    names = dict.fromkeys(guest["name"] for guest in live_list("/v1/trash"))
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_images(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of images that the house has or can build."""
    names = {image["name"]: "" for image in live_list("/v1/images")}
    names |= {image["name"]: image["description"] for image in live_list("/v1/images-known")}
    return [
        CompletionItem(name, help=text)
        for name, text in sorted(names.items())
        if name.startswith(incomplete)
    ]


def complete_networks(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of networks that are not on the line yet, with their kind."""
    taken = ctx.params.get(param.name or "") or ()
    taken = (taken,) if isinstance(taken, str) else taken
    return [
        CompletionItem(network["name"], help=network["kind"])
        for network in live_list("/v1/networks")
        if network["name"].startswith(incomplete) and network["name"] not in taken
    ]


def complete_jobs(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return [
        CompletionItem(job["id"], help=f"{job['kind']} {job.get('target_name', '')}".strip())
        for job in live_list("/v1/jobs")
        if job["id"].startswith(incomplete)
    ]


def complete_paths(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Files of this host, and guests as `name:`."""
    if ":" in incomplete:
        return []
    guests = [] if os.sep in incomplete else complete_guests(ctx, param, incomplete)
    return [
        CompletionItem(incomplete, type="file"),
        *(CompletionItem(f"{guest.value}:", help=guest.help) for guest in guests),
    ]


def guest_argument(**rest: Any) -> Callable[[Any], Any]:
    """One guest: a name, an id, or a unique beginning of an id."""
    return click.argument("name", shell_complete=complete_guests, **rest)


def guests_argument() -> Callable[[Any], Any]:
    """One guest or more."""
    return click.argument(
        "names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_guests
    )


def positive(text: float | None, option: str) -> float | None:
    """:raise InvalidInput: seconds below zero."""
    if text is not None and text < 0:
        raise InvalidInput(f"{option} must not be negative.", field=option.lstrip("-"))
    return text


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
