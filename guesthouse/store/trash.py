"""How people refer to guests in the trash, whose names may belong to others by now. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from guesthouse.errors import GuesthouseError, InvalidInput, NotFound
from guesthouse.model.guest import Guest
from guesthouse.store.documents import unknown
from guesthouse.store.references import SHORTEST


def trash_of(guests: Iterable[Guest]) -> list[Guest]:
    """Those in the trash, the last one moved there first."""
    found = [guest for guest in guests if guest.in_trash]
    return sorted(found, key=lambda guest: (guest.deleted_at or 0.0, guest.id), reverse=True)


def resolve_trashed(guests: Iterable[Guest], ref: str) -> Guest:
    """By name (the last one moved there of several), id or unique prefix of an id.

    :raise NotFound: the trash has none like that. :raise InvalidInput: several ids begin so.
    """
    trash = trash_of(guests)
    for guest in trash:
        if ref in {guest.id, guest.name}:
            return guest
    start = ref.upper()
    matches = [guest for guest in trash if len(start) >= SHORTEST and guest.id.startswith(start)]
    if len(matches) > 1:
        raise InvalidInput(
            f"{ref!r} could be {len(matches)} different guests of the trash.",
            hint="Write more of the id: guest trash ls",
        )
    if not matches:
        raise NotFound(f"The trash holds no guest {ref!r}.", hint="See its content: guest trash ls")
    return matches[0]


def in_trash(ref: str) -> GuesthouseError:
    """The error for a reference that means a guest in the trash, where it cannot be used."""
    return unknown(
        "guest", ref, hint=f"One is in the trash; bring it back with: guest undelete {ref}."
    )


def in_trash_named(guests: Iterable[Guest], name: str) -> Guest | None:
    """The one of that name that was moved to the trash last."""
    return next((guest for guest in trash_of(guests) if guest.name == name), None)
