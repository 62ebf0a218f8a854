"""`guest completion`."""

from __future__ import annotations

import click

from guesthouse.cli.command import command
from guesthouse.cli.table import show

SHELLS = ("bash", "zsh", "fish")


@command(
    "completion",
    examples=[
        ('eval "$(guest completion bash)"', "In ~/.bashrc"),
        ('eval "$(guest completion zsh)"', "In ~/.zshrc, after compinit"),
        ("guest completion fish > ~/.config/fish/completions/guest.fish", ""),
    ],
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    It completes commands, options, and the names of guests, images, networks and jobs that there
    are. It never starts a daemon for that.
    """
    from click.shell_completion import get_completion_class

    from guesthouse.cli.app import app

    found = get_completion_class(shell)
    assert found is not None  # click brings all of SHELLS
    show(found(app, {}, "guest", "_GUEST_COMPLETE").source() + "\n")
