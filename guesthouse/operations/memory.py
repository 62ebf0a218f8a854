"""Whether the memory that guests want is there."""

from __future__ import annotations

from guesthouse.errors import InvalidInput, NoMemory
from guesthouse.host.memory import available
from guesthouse.model.guest import Guest
from guesthouse.model.host import HostFacts
from guesthouse.model.units import format_size


def check_total(wanted: int | None, facts: HostFacts) -> None:
    """Before a guest gets so much. :raise InvalidInput: more than this host has in all."""
    if wanted is None or wanted <= facts.memory:
        return
    raise InvalidInput(
        f"No guest can have {format_size(wanted)} of memory here: this host has"
        f" {format_size(facts.memory)} in all.",
        hint="Ask for less.",
        field="memory",
        wanted=wanted,
        total=facts.memory,
    )


def check_start(guest: Guest, facts: HostFacts, *, new: bool) -> None:
    """A guest that cannot fit is refused; one that may fit is not held back by a guess.

    :param new: it goes when it cannot be started, so it cannot be changed either.
    :raise NoMemory: it wants more than the host has, or far more than is available now.
    """
    wanted, free = guest.spec.memory, available()
    if wanted <= free or (wanted <= facts.memory // 2 and wanted <= free * 2):
        return
    less = "launch it with less: --memory" if new else f"guest set {guest.name} memory=…"
    raise NoMemory(
        f"Guest {guest.name!r} wants {format_size(wanted)} of memory; this host has"
        f" {format_size(facts.memory)}, of which {format_size(free)} are available.",
        hint=f"Give it less ({less}), or stop other guests.",
        wanted=wanted,
        available=free,
    )
