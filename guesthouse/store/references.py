"""How people refer to documents: by name, by id, by the beginning of an id."""

from __future__ import annotations

import difflib

from guesthouse.errors import InvalidInput
from guesthouse.model.document import D
from guesthouse.store.documents import unknown
from guesthouse.store.shelf import Rows

SHORTEST = 6
"""Least characters of an id that stand for it."""
MANY = 1000
"""Names that are compared when a reference is unknown."""


def resolve(rows: Rows[D], ref: str) -> D:
    """:raise NotFound: with similar names. :raise InvalidInput: several ids begin like that."""
    if found := rows.documents.get(ref):
        return found
    if ids := rows.names.get(ref):
        return rows.documents[max(ids)]  # ids sort by age, so this is the newest of a name
    start = ref.upper()
    if len(start) >= SHORTEST:
        matches = [id for id in rows.documents if id.startswith(start)]
        if len(matches) == 1:
            return rows.documents[matches[0]]
        if matches:
            raise InvalidInput(
                f"{ref!r} could be {len(matches)} different {rows.kind.noun}s.",
                hint=f"Write more of the id: {', '.join(sorted(matches)[:3])} …",
                matches=sorted(matches)[:20],
            )
    names = list(rows.names)
    if len(names) > MANY:  # comparing is slow, and the first letter is rarely what is mistyped
        names = [name for name in names if name[:1] == ref[:1]][:MANY]
    similar = difflib.get_close_matches(ref, names, n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(similar)}?" if similar else ""
    raise unknown(rows.kind.noun, ref, hint=hint, similar=similar)
