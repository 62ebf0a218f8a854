"""Garbage collection of a pool: what no document refers to any more, after a grace period.

A layer without a document is kept for ever if a copy of its document lies beside it: then it is
the database that is lost or old, not the disk, and `guest recover` brings both together again.
While guests or images wait for that, every such layer is kept: one of them may need it.
Whoever deletes a layer on purpose removes the copy first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from guesthouse.errors import NotFound, RevisionConflict
from guesthouse.jobs.context import JobContext
from guesthouse.jobs.registry import Operation
from guesthouse.model.document import Noun
from guesthouse.model.ids import is_id
from guesthouse.model.job import Job
from guesthouse.model.units import format_size
from guesthouse.model.volume import Volume, VolumeFormat
from guesthouse.storage.durable import last_touched, remove_file, stale_files
from guesthouse.storage.pool import DirectoryPool
from guesthouse.storage.quarantine import refuse_quarantined
from guesthouse.storage.usage import DOOMED, Holder, unused
from guesthouse.store.documents import Documents
from guesthouse.store.view import View

GRACE = 3600.0
"""Seconds that a file stays after it was last touched, whatever the documents say."""
_SUFFIXES = {f".{kind.value}" for kind in VolumeFormat}


class CollectParams(Noun, kw_only=True, frozen=True):
    """:ivar grace: seconds."""

    grace: float = GRACE


class Collected(Noun, kw_only=True, frozen=True):
    """:ivar volumes: documents deleted. :ivar files: layers that had none. :ivar leavings: of
    interrupted work. :ivar kept: layers that only `guest recover` can tell about.
    :ivar freed: bytes.
    """

    volumes: int = 0
    files: int = 0
    kept: int = 0
    leavings: int = 0
    freed: int = 0


class Layer(NamedTuple):
    """A file in the pool. :ivar touched: seconds since the epoch."""

    volume: str
    touched: float

    def has_copy_in(self, folder: Path) -> bool:
        return (folder / f"{self.volume}.json").exists()


class Collect(Operation[CollectParams]):
    """:ivar holders: what else holds layers, such as snapshots."""

    kind = "storage.collect"
    Params = CollectParams

    def __init__(
        self,
        documents: Documents,
        view: View,
        pool: DirectoryPool,
        *,
        holders: Callable[[], Iterable[Holder]] = tuple,
    ) -> None:
        self.documents = documents
        self.view = view
        self.pool = pool
        self.holders = holders

    def locks(self, params: CollectParams) -> tuple[str, ...]:
        return (f"pools/{self.pool.name}",)

    async def run(self, ctx: JobContext, params: CollectParams) -> Collected:
        """:raise Conflict: documents are quarantined: what they need is unknown."""
        await self._look()
        await ctx.step("collect")
        ctx.progress(0.1, "looking for disks that nobody needs")
        volumes, freed = await self._doomed(ctx)
        files, kept, more = await self._files(ctx, time.time() - params.grace)
        ctx.progress(0.8, "removing what interrupted work left")
        leavings, rest = await asyncio.to_thread(_leavings, self.pool, params.grace)
        result = Collected(
            volumes=volumes, files=files, kept=kept, leavings=leavings, freed=freed + more + rest
        )
        ctx.progress(1.0, f"freed {format_size(result.freed)}")
        return result

    async def _look(self) -> None:
        """See everything that was durable a moment ago, or refuse."""
        await self.view.wait_for(self.documents.store.revision)
        refuse_quarantined(self.view, "collect garbage")

    async def _doomed(self, ctx: JobContext) -> tuple[int, int]:
        """Volumes marked for deletion that nobody uses: the document first, then the file."""
        count = freed = 0
        for volume in self._unused():
            if volume.note != DOOMED or volume.id in self._promised():
                continue
            ctx.log(f"disk {volume.id} was marked for deletion and nobody uses it")
            try:
                found = await self.documents.volumes.require(volume.id)
                await self.pool.remove_copy("volumes", volume.id)
                deletion = self.documents.volumes.delete_op(volume.id, expect=found.revision)
                await self.view.wait_for(await self.documents.store.commit([deletion]))
            except (NotFound, RevisionConflict):
                continue  # somebody else takes care of it
            freed += await self.pool.delete(volume.id)
            count += 1
        return count, freed

    def _unused(self) -> list[Volume]:
        """Doomed children first, so that their parents follow in the same run."""
        view = self.view
        mine = [volume for volume in view.volumes.values() if volume.pool == self.pool.name]
        lain_on = {volume.parent for volume in mine if volume.note != DOOMED}
        idle = unused(view.guests.values(), view.images.values(), mine, self.holders())
        return [volume for volume in idle if volume.id not in lain_on]

    async def _files(self, ctx: JobContext, newest: float) -> tuple[int, int, int]:
        """Layers without a document: (deleted, kept, bytes freed). Young ones are left alone."""
        count = kept = freed = 0
        for layer in await asyncio.to_thread(_layers, self.pool.layers.folder):
            if layer.volume in self.view.volumes or layer.touched > newest:
                continue
            await self._look()
            # The store's own answer, not only the view's: this cannot be undone.
            if layer.volume in self._promised() or await self._stored(layer.volume):
                continue
            if self._wait_for_recovery():
                ctx.log(f"disk {layer.volume} is unknown, and a recovery may need it")
                kept += 1
                continue
            if layer.has_copy_in(self.pool.documents / "volumes"):
                ctx.log(f"disk {layer.volume} is unknown, but a copy of its document is there")
                kept += 1
                continue
            ctx.log(f"disk {layer.volume} has no document")
            freed += await self.pool.delete(layer.volume)
            count += 1
        return count, kept, freed

    def _wait_for_recovery(self) -> bool:
        """Whether guests or images have copies and no documents."""
        unknown = self.pool.copies.unknown(self.view.revisions)
        return any(not key.startswith("volumes/") for key in unknown)

    async def _stored(self, volume_id: str) -> bool:
        volumes = self.documents.volumes
        return await self.documents.store.get(volumes.key(volume_id)) is not None

    def _promised(self) -> set[str]:
        """Ids in the journals of jobs that have not ended: they may be in the making."""
        return {made for job in self.view.jobs.values() if not job.ended for made in _made(job)}


def _made(job: Job) -> set[str]:
    """A step may record several ids in one text, separated by commas."""
    return {
        made
        for step in job.steps
        for text in step.creates.values()
        for made in text.split(",")
        if is_id(made)
    }


def _layers(folder: Path) -> list[Layer]:
    """All layers' files, newest first, so that children go before their parents."""
    found = []
    for path in folder.iterdir():
        if path.suffix in _SUFFIXES and is_id(path.stem):
            with suppress(FileNotFoundError):
                found.append(Layer(path.stem, last_touched(path.lstat())))
    return sorted(found, key=lambda layer: layer.volume, reverse=True)


def _leavings(pool: DirectoryPool, grace: float) -> tuple[int, int]:
    folders = [pool.root, pool.layers.folder, *(p for p in pool.documents.iterdir() if p.is_dir())]
    stale = [path for folder in folders for path in stale_files(folder, grace)]
    return len(stale), sum(remove_file(path) for path in stale)
