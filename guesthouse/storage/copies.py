"""Copies of documents beside the layers, from which `guest recover` rebuilds a lost database.

    <folder>/<kind>/<id>.json

A copy is the document as the store has it. Names, numbers and what is in use follow from the
documents; keys of guests and boot files of images lie in files of their own anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container
from contextlib import suppress
from pathlib import Path

from guesthouse.errors import Internal
from guesthouse.model.document import Document, encode
from guesthouse.model.ids import is_id
from guesthouse.storage.durable import make_folder, remove_file, write_file

KINDS = (
    "volumes",
    "images",
    "address-sets",
    "security-groups",
    "networks",
    "guests",
    "leases",
)
"""Kinds of documents that are copied; those that others refer to come first."""


class Copies:
    """One after another: a copy that is removed is not written again behind the remover's back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._keys: set[str] = set()
        self._alone = asyncio.Lock()

    def load(self) -> None:
        """Look which copies there are. Blocks."""
        self._keys = {
            f"{kind}/{path.stem}"
            for kind in KINDS
            if (self.folder / kind).is_dir()
            for path in (self.folder / kind).iterdir()
            if path.suffix == ".json" and is_id(path.stem)
        }

    @property
    def keys(self) -> list[str]:
        """Of all copies, as the store's: `guests/01J…`."""
        return sorted(self._keys)

    def unknown(self, known: Container[str]) -> list[str]:
        """Keys of copies whose documents are not among `known`."""
        return sorted(key for key in self._keys if key not in known)

    async def write(
        self, kind: str, doc: Document, *, wanted: Callable[[], bool] = lambda: True
    ) -> None:
        """Keep a copy of `doc`. Durable when this returns.

        :param wanted: asked when nobody else works here; whether the document is still there.
        :raise NoSpace: the old copy is still there.
        """
        target = self._path(kind, doc.id)

        def work() -> None:
            make_folder(target.parent)
            write_file(target, encode(doc))

        async with self._alone:
            if wanted():
                await asyncio.to_thread(work)
                self._keys.add(f"{kind}/{doc.id}")

    async def remove(self, kind: str, doc_id: str) -> None:
        """Remove a copy durably, after its document; none is fine."""
        target = self._path(kind, doc_id)
        async with self._alone:
            await asyncio.to_thread(remove_file, target)
            self._keys.discard(f"{kind}/{doc_id}")

    async def read(self, key: str) -> bytes | None:
        """The copy of the document with that key in the store, or None."""
        kind, _, doc_id = key.partition("/")
        with suppress(FileNotFoundError):
            return await asyncio.to_thread(self._path(kind, doc_id).read_bytes)
        return None

    def _path(self, kind: str, doc_id: str) -> Path:
        if not is_id(doc_id) or kind not in KINDS:
            raise Internal(f"No copy can be kept of {kind} {doc_id!r}.")
        return self.folder / kind / f"{doc_id}.json"
