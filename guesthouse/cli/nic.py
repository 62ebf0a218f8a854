"""`guest nic set|capture`: packets of a guest's network cards."""

from __future__ import annotations

import click

from guesthouse.cli.capture import capture
from guesthouse.cli.command import command, guest_argument
from guesthouse.cli.family import Family
from guesthouse.cli.impair import HELP, complete_impairment, impair_card
from guesthouse.cli.session import open_house


@click.group(
    "nic",
    cls=Family,
    examples=[
        ("guest nic set web 0 latency=80ms loss=1%", "A bad network, at once"),
        ("guest nic set web 0 clear", ""),
        ("guest nic capture web 0 -o web.pcapng", ""),
    ],
)
def nic() -> None:
    """Network cards of a guest: bad networks on purpose, and captures."""


@command(
    "set",
    examples=[
        ("guest nic set web 0 latency=80ms loss=1%", "At once, where the guest runs"),
        ("guest nic set web 0 in.rate=8mbit", "Only what the guest gets"),
        ("guest nic set web 0 loss=0", "No longer; the rest stays"),
        ("guest nic set web 0 clear", "As good as it can be"),
    ],
    help=f"Impair a network card on purpose.\n\n{HELP}\n\n"
    "What this host's kernel cannot do is refused by name; 'guest doctor' lists it.",
)
@guest_argument()
@click.argument("card", metavar="CARD")
@click.argument(
    "changes",
    nargs=-1,
    required=True,
    metavar="KEY=VALUE...",
    shell_complete=lambda ctx, param, incomplete: complete_impairment(
        incomplete, ctx.params.get("changes") or ()
    ),
)
def nic_set(name: str, card: str, changes: tuple[str, ...]) -> None:
    impair_card(open_house(), name, card, changes)


for _command in (nic_set, capture):
    nic.add_command(_command)
