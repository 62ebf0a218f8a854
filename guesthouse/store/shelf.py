"""Typed documents in memory, with the indexes that finding them needs."""

from __future__ import annotations

from typing import Any, Generic

from guesthouse.errors import GuesthouseError, ReadOnlyStore
from guesthouse.model.document import D
from guesthouse.model.guest import Guest
from guesthouse.store.documents import (
    GROUPS,
    GUESTS,
    IMAGES,
    JOBS,
    LEASES,
    NETWORKS,
    SETS,
    VOLUMES,
    CollectionKind,
)


class Rows(Generic[D]):
    """The documents of one kind by id, and their ids by name."""

    def __init__(self, kind: CollectionKind[D]) -> None:
        self.kind = kind
        self.documents: dict[str, D] = {}
        self.names: dict[str, set[str]] = {}

    def put(self, key: str, value: bytes) -> D:
        """:raise InvalidInput: :raise ReadOnlyStore: see `CollectionKind.decode`."""
        doc = self.kind.decode(key, value)
        self.remove(doc.id)
        self.documents[doc.id] = doc
        if name := _name(doc):
            self.names.setdefault(name, set()).add(doc.id)
        return doc

    def remove(self, id: str) -> bool:
        """Whether it was there."""
        doc = self.documents.pop(id, None)
        if doc is None:
            return False
        if name := _name(doc):
            ids = self.names[name]
            ids.discard(id)
            if not ids:
                del self.names[name]
        return True

    def replace(self, other: Rows[D]) -> None:
        self.documents.clear()
        self.documents.update(other.documents)
        self.names = other.names


def _name(doc: object) -> str:
    """The name that it can be found by: a guest in the trash has given it up."""
    if isinstance(doc, Guest) and doc.in_trash:
        return ""
    name = getattr(doc, "name", "")
    return name if isinstance(name, str) else ""


class Shelf:
    """All documents of a house. :ivar newer: quarantined ones that a newer program wrote."""

    def __init__(self) -> None:
        self.guests = Rows(GUESTS)
        self.images = Rows(IMAGES)
        self.volumes = Rows(VOLUMES)
        self.jobs = Rows(JOBS)
        self.networks = Rows(NETWORKS)
        self.leases = Rows(LEASES)
        self.groups = Rows(GROUPS)
        self.sets = Rows(SETS)
        self.revisions: dict[str, int] = {}
        self.quarantined: dict[str, str] = {}
        self.newer: dict[str, str] = {}

    @property
    def _every(self) -> tuple[Rows[Any], ...]:
        return (
            self.guests,
            self.images,
            self.volumes,
            self.jobs,
            self.networks,
            self.leases,
            self.groups,
            self.sets,
        )

    def rows_of(self, key: str) -> Rows[Any] | None:
        return next((rows for rows in self._every if key.startswith(rows.kind.prefix)), None)

    def quarantine(self, key: str, error: GuesthouseError) -> None:
        self.quarantined[key] = str(error)
        if isinstance(error, ReadOnlyStore):
            self.newer[key] = str(error)

    def clear_quarantine(self, key: str) -> bool:
        """Whether it was in quarantine."""
        self.newer.pop(key, None)
        return self.quarantined.pop(key, None) is not None

    def replace(self, other: Shelf) -> None:
        for rows, new in zip(self._every, other._every, strict=True):
            rows.replace(new)
        for mine, theirs in (
            (self.quarantined, other.quarantined),
            (self.newer, other.newer),
        ):
            mine.clear()
            mine.update(theirs)
        self.revisions.clear()
        self.revisions.update(other.revisions)
