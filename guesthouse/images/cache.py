"""Built images, kept by the hash of what built them and shared by all houses of a user.

    <root>/<build key>/image.json, disk.qcow2, kernel, initrd, build.log
    <root>/locks/<build key>            flock: two houses that build one image wait for each other
    <root>/.<build key>.<random>.tmp    a build that is going on, or the leavings of a dead one

Files of an entry are frozen (0444), since pools may share them by hard links. The whole folder may
be deleted at any time: no guest depends on it.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import NamedTuple

from guesthouse.errors import Internal, InvalidInput
from guesthouse.host import userns
from guesthouse.images.spec import BuiltImage
from guesthouse.model.document import Noun, decode_strict, encode
from guesthouse.model.image import Seed
from guesthouse.storage.durable import (
    FROZEN_FILE,
    filling,
    fsync_file,
    fsync_folder,
    is_temporary,
    make_folder,
    temporary_beside,
    write_file,
)
from guesthouse.storage.filelock import file_lock, try_lock
from guesthouse.storage.transfer import in_thread, sha256_of

_KEY = re.compile(r"[0-9a-f]{64}")
_MANIFEST = "image.json"
_NAMES = {"disk": "disk.qcow2", "kernel": "kernel", "initrd": "initrd"}
_KEPT_RECIPES = 2
"""Entries of one image name that stay: the newest recipe, and the one before for a way back."""


class CachedFile(Noun, kw_only=True, frozen=True):
    size: int
    sha256: str


class Manifest(Noun, kw_only=True, frozen=True):
    """:ivar files: by part: `disk`, `kernel`, `initrd`."""

    version: int = 1
    name: str
    build_key: str
    cmdline: str
    virtual_size: int
    os: dict[str, str]
    facts: dict[str, str]
    files: dict[str, CachedFile]
    created_at: float
    seed: Seed = Seed.HOUSE


class CacheEntry(NamedTuple):
    """:ivar built: with the paths of the cache. :ivar digests: SHA-256 by part, as recorded.

    :ivar size: bytes of its files.
    """

    built: BuiltImage
    digests: dict[str, str]
    size: int
    created_at: float


class BuildCache:
    """:ivar root: `guesthouse/images` in the user's cache folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def lock(
        self, key: str, waiting: Callable[[], None] | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Held while the entry is looked up, built, stored, removed or taken from, by any process.

        :param waiting: called once when another one holds it.
        """
        return file_lock(self._lock_path(key), waiting)

    async def lookup(self, key: str) -> CacheEntry | None:
        """The entry, if it is whole as far as sizes tell; a damaged one is removed. Under the lock.

        Digests are checked by whoever copies the files, see `Catalogue.add_built`.
        """
        entry = await asyncio.to_thread(self._read, key)
        if entry is None:
            await self.remove(key)
        return entry

    async def begin(self, key: str) -> Path:
        """A new, empty folder to build in; what dead builds of this key left is removed first.

        Under the lock, which is how we know that they are dead. :raise NoSpace:
        """
        await self.sweep(key)
        folder = temporary_beside(self._folder(key))
        with filling(self.root.parent, 0, "build an image"):
            await asyncio.to_thread(make_folder, folder)
        return folder

    async def sweep(self, key: str) -> None:
        """Remove unfinished builds of this key. Under the lock."""
        for name in await asyncio.to_thread(self._unfinished):
            if name.startswith(f".{key}."):
                await userns.remove_tree(self.root / name)

    async def store(self, built: BuiltImage) -> CacheEntry:
        """Take what was built in a folder of `begin`, whole or not at all. Under the lock.

        :raise NoSpace:
        """
        source = next(path for path in (built.disk, built.kernel, built.initrd) if path).parent
        if source.parent != self.root or not is_temporary(source.name):
            raise Internal(f"{source} was not made by this cache.")

        def work(stop: threading.Event) -> CacheEntry:
            with filling(self.root, 0, f"keep the image {built.name}"):
                return self._store(built, source, stop)

        return await in_thread(work)

    async def remove(self, key: str) -> int:
        """Remove an entry; answers the bytes freed. Under the lock."""
        return await asyncio.to_thread(self._remove, self._folder(key))

    async def entries(self) -> list[CacheEntry]:
        """All whole entries, newest first."""

        def work() -> list[CacheEntry]:
            found = [entry for key in self._keys() if (entry := self._read(key))]
            return sorted(found, key=lambda entry: -entry.created_at)

        return await asyncio.to_thread(work)

    async def size(self) -> int:
        """Bytes that the cache takes, unfinished builds included."""
        return await asyncio.to_thread(_tree_size, self.root)

    async def clear(self) -> int:
        """Remove everything that nobody is building or taking right now; answers bytes freed."""
        return await self._clear(await asyncio.to_thread(self._all_keys))

    async def prune(self, name: str) -> int:
        """Remove entries of older recipes of the image `name`; answers bytes freed.

        The caller holds the lock of the newest, which stays anyway.
        """
        mine = [entry for entry in await self.entries() if entry.built.name == name]
        return await self._clear({entry.built.build_key for entry in mine[_KEPT_RECIPES:]})

    async def _clear(self, keys: set[str]) -> int:
        freed = 0
        for key in sorted(keys):
            lock = await asyncio.to_thread(try_lock, self._lock_path(key))
            if lock is None:
                continue
            try:
                freed += await self.remove(key)
                await self.sweep(key)
            finally:
                os.close(lock)
        return freed

    def _folder(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise Internal(f"{key!r} is no build key.")
        return self.root / key

    def _lock_path(self, key: str) -> Path:
        return self.root / "locks" / self._folder(key).name

    def _inside(self) -> list[str]:
        try:
            return [path.name for path in self.root.iterdir()]
        except FileNotFoundError:
            return []

    def _keys(self) -> list[str]:
        return [name for name in self._inside() if _KEY.fullmatch(name)]

    def _unfinished(self) -> list[str]:
        return [name for name in self._inside() if is_temporary(name)]

    def _all_keys(self) -> set[str]:
        unfinished = {name[1:65] for name in self._unfinished()}
        return {*self._keys(), *(key for key in unfinished if _KEY.fullmatch(key))}

    def _read(self, key: str) -> CacheEntry | None:
        folder = self._folder(key)
        try:
            data = (folder / _MANIFEST).read_bytes()
            manifest = decode_strict(data, Manifest, what="cached image")
            if manifest.build_key != key or not manifest.files:
                return None
            for part, record in manifest.files.items():
                facts = (folder / _NAMES[part]).lstat()
                if not stat.S_ISREG(facts.st_mode) or facts.st_size != record.size:
                    return None
        except (OSError, InvalidInput, KeyError):
            return None
        return self._entry(folder, manifest)

    def _entry(self, folder: Path, manifest: Manifest) -> CacheEntry:
        paths = {part: folder / _NAMES[part] for part in manifest.files}
        built = BuiltImage(
            name=manifest.name,
            build_key=manifest.build_key,
            disk=paths.get("disk"),
            kernel=paths.get("kernel"),
            initrd=paths.get("initrd"),
            cmdline=manifest.cmdline,
            virtual_size=manifest.virtual_size,
            os=manifest.os,
            facts=manifest.facts,
            seed=manifest.seed,
        )
        return CacheEntry(
            built,
            {part: record.sha256 for part, record in manifest.files.items()},
            sum(record.size for record in manifest.files.values()),
            manifest.created_at,
        )

    def _store(self, built: BuiltImage, source: Path, stop: threading.Event) -> CacheEntry:
        files: dict[str, CachedFile] = {}
        for part, path in parts(built).items():
            if path != source / _NAMES[part]:
                raise Internal(f"The builder called its {part} {path.name}.")
            path.chmod(FROZEN_FILE)
            fsync_file(path)
            files[part] = CachedFile(
                size=path.stat().st_size,
                sha256=sha256_of(path, progress=lambda _: None, stop=stop),
            )
        manifest = Manifest(
            name=built.name,
            build_key=built.build_key,
            cmdline=built.cmdline,
            virtual_size=built.virtual_size,
            os=built.os,
            facts=built.facts,
            files=files,
            created_at=time.time(),
            seed=built.seed,
        )
        write_file(source / _MANIFEST, encode(manifest))
        target = self._folder(built.build_key)
        self._remove(target)
        source.rename(target)
        fsync_folder(self.root)
        return self._entry(target, manifest)

    def _remove(self, folder: Path) -> int:
        """By a rename first, so that nobody ever finds half of it."""
        doomed = temporary_beside(folder)
        try:
            folder.rename(doomed)
        except FileNotFoundError:
            return 0
        size = _tree_size(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
        return size


def parts(built: BuiltImage) -> dict[str, Path]:
    """The files that `built` has, by part."""
    found = {"disk": built.disk, "kernel": built.kernel, "initrd": built.initrd}
    return {part: path for part, path in found.items() if path is not None}


def _tree_size(folder: Path) -> int:
    """Bytes on disk of the files in `folder`; a file that others share counts fully."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(place) / name).lstat().st_blocks * 512
    return total
