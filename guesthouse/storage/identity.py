"""What a pool says about itself: `pool.json`. Blocking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guesthouse.errors import EngineError, InvalidInput, ReadOnlyStore
from guesthouse.model.document import Noun, convert_strict, decode_strict, encode
from guesthouse.model.ids import new_id
from guesthouse.storage.durable import write_file

VERSION = 1
"""The layout of folders that this program knows."""


class PoolIdentity(Noun, kw_only=True, frozen=True):
    version: int
    id: str


def open_identity(path: Path) -> PoolIdentity:
    """Read `pool.json`, or write it for a new pool.

    :raise ReadOnlyStore: the pool is of a newer version. :raise EngineError: it does not parse; it
        is never overwritten.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        identity = PoolIdentity(version=VERSION, id=new_id())
        write_file(path, encode(identity))
        return identity
    try:
        # The version comes first: a newer file may have fields that we do not know.
        raw = decode_strict(data, dict[str, Any], what="pool's description")
        version = raw.get("version")
        if isinstance(version, int) and version > VERSION:
            raise ReadOnlyStore(
                f"The pool {path.parent} has version {version}; "
                f"this Guesthouse knows up to {VERSION}.",
                hint="Start the newer Guesthouse that wrote it.",
                version=version,
            )
        return convert_strict(raw, PoolIdentity, what="pool's description")
    except InvalidInput as error:
        raise EngineError(
            f"{path} is damaged: {error.message}",
            hint="Bring it back from a backup; the disks beside it are left untouched.",
        ) from error
