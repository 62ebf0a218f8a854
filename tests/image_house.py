"""The rooms that images need, on a real store, pool and cache, with a builder that is quick."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from guesthouse.images.building import BuildImage, RemoveImage
from guesthouse.images.cache import BuildCache
from guesthouse.images.catalogue import Catalogue, Known
from guesthouse.images.importing import ImportImage
from guesthouse.images.spec import BuildRequest, BuiltImage, Progress
from guesthouse.jobs.registry import Registry
from guesthouse.jobs.runner import JobRunner
from guesthouse.storage.collect import Collect
from guesthouse.storage.pool import DirectoryPool
from guesthouse.storage.uploads import Uploads
from guesthouse.store.documents import Documents
from guesthouse.store.sqlite import SqliteStore
from guesthouse.store.view import View

SIZE = 8 << 20
KNOWN = [Known("debian/12", "a disk"), Known("micro", "no disk")]


def tool(*argv: object) -> None:
    subprocess.run([str(word) for word in argv], check=True, stdout=subprocess.DEVNULL)


@dataclass
class QuickBuilder:
    """:ivar recipe: change it for another build key. :ivar before: awaited in the middle."""

    recipe: str = "one"
    builds: int = 0
    before: Callable[[Path], object] = field(default=lambda folder: asyncio.sleep(0))

    def build_key(self, request: BuildRequest) -> str:
        return hashlib.sha256(f"{request.name} {self.recipe}".encode()).hexdigest()

    async def build(
        self,
        request: BuildRequest,
        into: Path,
        *,
        mirrors: Sequence[str] = (),
        progress: Progress,
        cancelled: asyncio.Event | None = None,
    ) -> BuiltImage:
        self.builds += 1
        progress(0.5, "building")
        (into / "build.log").write_text("the builder began\n")
        (into / "kernel").write_bytes(f"kernel {self.recipe}".encode())
        (into / "initrd").write_bytes(f"initrd {self.recipe}".encode())
        await self.before(into)
        disk = None
        if request.name != "micro":
            disk = into / "disk.qcow2"
            self._disk(disk)
        return BuiltImage(
            name=request.name, build_key=self.build_key(request), disk=disk,
            kernel=into / "kernel", initrd=into / "initrd", cmdline="quiet",
            virtual_size=SIZE if disk else 0, os={"id": "x"}, facts={},
        )  # fmt: skip

    def _disk(self, path: Path) -> None:
        raw = path.with_suffix(".raw")
        raw.write_bytes(self.recipe.encode().ljust(4096))
        os.truncate(raw, SIZE)
        tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
        raw.unlink()


@dataclass
class ImageHouse:
    documents: Documents
    view: View
    pool: DirectoryPool
    catalogue: Catalogue
    cache: BuildCache
    builder: QuickBuilder
    jobs: JobRunner
    uploads: Uploads


@asynccontextmanager
async def image_house(
    folder: Path,
    *,
    builder: QuickBuilder | None = None,
    cache: Path | None = None,
    observer: Callable[..., object] | None = None,
    most: int = 1 << 40,
) -> AsyncIterator[ImageHouse]:
    """A house in `folder`; opening it again is what a restarted daemon does, without recovery."""
    folder.mkdir(exist_ok=True)
    store = await SqliteStore.open(folder / "guesthouse.db")
    view = await View.open(store)
    documents = Documents(store)
    pool = await DirectoryPool.open(folder / "pool")
    catalogue = Catalogue(documents, view, pool, folder / "images", known=lambda: KNOWN)
    kept = BuildCache(cache or folder / "cache")
    quick = builder or QuickBuilder()
    registry = Registry()
    registry.register(BuildImage(catalogue, kept, builder=quick, space=0))
    registry.register(RemoveImage(catalogue))
    uploads = Uploads(folder / "uploads")
    registry.register(ImportImage(catalogue, uploads, most=lambda: most))
    registry.register(Collect(documents, view, pool))
    jobs = JobRunner(documents, registry, folder / "jobs", observer=observer)
    try:
        yield ImageHouse(documents, view, pool, catalogue, kept, quick, jobs, uploads)
    finally:
        await jobs.close()
        await view.close()
        await store.close()
