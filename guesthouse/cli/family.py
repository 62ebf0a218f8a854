"""Commands with commands of their own: image, job, daemon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from guesthouse.cli.command import write_examples

_ELSEWHERE = {"list": "ls", "delete": "rm", "remove": "rm", "inspect": "info", "show": "info"}


class Family(click.Group):
    """:ivar examples: as `Command.examples`."""

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.examples = tuple(examples)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from guesthouse.cli.app import unknown_command

        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            elsewhere = {key: own for key, own in _ELSEWHERE.items() if own in self.commands}
            raise unknown_command(name, list(self.commands), elsewhere, above=ctx.command_path)
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)
