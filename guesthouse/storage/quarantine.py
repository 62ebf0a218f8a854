"""Nothing is deleted while a document cannot be read: it may need what would be deleted."""

from __future__ import annotations

from guesthouse.errors import Conflict
from guesthouse.store.view import View


def refuse_quarantined(view: View, purpose: str) -> None:
    """:raise Conflict: documents are quarantined, so it is unknown what they need."""
    if view.quarantined:
        keys = sorted(view.quarantined)
        raise Conflict(
            f"Cannot {purpose} while {len(keys)} document{'s' if len(keys) > 1 else ''} cannot be "
            f"read ({', '.join(keys[:3])}): they may need what would be deleted.",
            hint="See `guest daemon status` for the reasons, and repair or remove them first.",
            quarantined=keys,
        )
