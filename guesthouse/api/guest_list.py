"""The list of all guests as JSON, for which each guest is encoded again only when it changed."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

from guesthouse.model.document import encode
from guesthouse.model.guest import Guest
from guesthouse.model.reports import GuestView

BUDGET = 8 << 20
"""Bytes of JSON that are kept; guests beyond are encoded each time."""


class _Kept(NamedTuple):
    guest: Guest
    view: GuestView
    data: bytes
    digest: bytes

    def still(self, guest: Guest, view: GuestView) -> bool:
        """Documents are immutable, so the same object says the same; the rest is from memory."""
        kept = self.view
        return (
            self.guest is guest
            and kept.job == view.job
            and kept.readiness == view.readiness
            and kept.addresses == view.addresses
            and kept.pending == view.pending
        )


class GuestList:
    """Keeps what it encoded last."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def encode(self, pairs: Iterable[tuple[Guest, GuestView]]) -> tuple[bytes, str]:
        """A JSON array in that order, and an entity tag that names exactly it."""
        before, kept, room = self._kept, dict[str, _Kept](), BUDGET
        pieces: list[bytes] = []
        whole = blake2b(digest_size=16)
        for guest, view in pairs:
            found = before.get(guest.id)
            if found is None or not found.still(guest, view):
                data = encode(view)
                found = _Kept(guest, view, data, blake2b(data, digest_size=16).digest())
            if room >= len(found.data):
                room -= len(found.data)
                kept[guest.id] = found
            pieces.append(found.data)
            whole.update(found.digest)
        self._kept = kept
        return b"[%b]" % b",".join(pieces), f'"{whole.hexdigest()}"'
