"""Jobs of the catalogue: `image.build` and `image.remove`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from guesthouse.errors import (
    BuildFailed,
    Cancelled,
    EngineError,
    InvalidInput,
    NoSpace,
    UnknownImage,
)
from guesthouse.host import userns
from guesthouse.images import build as builders
from guesthouse.images.cache import BuildCache, CacheEntry
from guesthouse.images.catalogue import Catalogue
from guesthouse.images.spec import BuildRequest, BuiltImage, Progress, part
from guesthouse.jobs.context import JobContext
from guesthouse.jobs.registry import Operation
from guesthouse.model.document import Noun, decode_document, encode
from guesthouse.model.ids import new_id
from guesthouse.model.image import Image
from guesthouse.storage.durable import no_space, require_space

BUILD_SPACE = 2 << 30
"""Bytes that must be free. A build of debian/12 was seen to take 1.2 GiB at its height (unpacked
tree, disk as it is written, compressed disk), micro 0.3 GiB."""
_LOG_LINES = 200
_BUILT = 0.9  # share of the progress that building takes


class BuildParams(Noun, kw_only=True, frozen=True):
    """:ivar rebuild: build again though an image of the same recipe is there."""

    name: str
    rebuild: bool = False


class RemoveParams(Noun, kw_only=True, frozen=True):
    """:ivar image: its id."""

    image: str


class Builder(Protocol):
    """What builds: the module `images.build`, or a stand-in."""

    def build_key(self, request: BuildRequest) -> str: ...

    async def build(
        self,
        request: BuildRequest,
        into: Path,
        *,
        mirrors: Sequence[str] = (),
        progress: Progress,
        cancelled: asyncio.Event | None = None,
    ) -> BuiltImage: ...


class BuildImage(Operation[BuildParams]):
    """From the catalogue, else from the cache, else built.

    :param mirrors: lines for sources.list; none to take the host's own.
    """

    kind = "image.build"
    Params = BuildParams

    def __init__(
        self,
        catalogue: Catalogue,
        cache: BuildCache,
        *,
        mirrors: Callable[[], Sequence[str]] = tuple,
        builder: Builder = builders,
        space: int = BUILD_SPACE,
    ) -> None:
        self.catalogue = catalogue
        self.cache = cache
        self.mirrors = mirrors
        self.builder = builder
        self.space = space

    def locks(self, params: BuildParams) -> tuple[str, ...]:
        return (f"images/{params.name}",)

    async def run(self, ctx: JobContext, params: BuildParams) -> dict[str, str]:
        """:raise BuildFailed: :raise NoSpace: :raise HostLacks: :raise UnknownImage:"""
        request = BuildRequest(name=params.name)
        key = await asyncio.to_thread(self.builder.build_key, request)
        current = self.catalogue.current(params.name)
        if current is not None and current.build_key == key and not params.rebuild:
            return {"image": current.id, "name": current.name}
        ids = await ctx.step("add", image=new_id, volume=new_id)

        async def undo() -> None:
            await self.catalogue.discard(ids["image"], ids["volume"])

        ctx.undo(undo)

        def waiting() -> None:
            ctx.progress(None, f"another house builds {params.name}: waiting for it")

        async with self.cache.lock(key, waiting):
            image = await self._from_cache(ctx, params, key, ids)
            if image is None:
                image = await self._add(ctx, await self._build(ctx, request, key), ids)
            ctx.keep()
            await self.cache.prune(params.name)
        await self.catalogue.prune()
        ctx.progress(1.0, f"{image.name} is ready")
        return {"image": image.id, "name": image.name}

    async def _from_cache(
        self, ctx: JobContext, params: BuildParams, key: str, ids: dict[str, str]
    ) -> Image | None:
        """None when it must be built: there is no entry, it is damaged, or the user wants it."""
        if params.rebuild and ids["image"] not in self.catalogue.view.images:
            return None
        entry = await self.cache.lookup(key)
        if entry is None:
            return None
        ctx.progress(None, f"{params.name} was built before: taking it from the cache")
        try:
            return await self._add(ctx, entry, ids)
        except (InvalidInput, EngineError, FileNotFoundError) as error:
            ctx.log(f"the cached image is damaged and is removed: {error}")
            await self.catalogue.discard(ids["image"], ids["volume"])
            await self.cache.remove(key)
            return None

    async def _build(self, ctx: JobContext, request: BuildRequest, key: str) -> CacheEntry:
        folder = await self.cache.begin(key)
        progress = part(_logged(ctx), 0.0, _BUILT)
        try:
            await asyncio.to_thread(
                require_space, folder, self.space, f"build the image {request.name}"
            )
            built = await self.builder.build(
                request,
                folder,
                mirrors=self.mirrors(),
                progress=progress,
                cancelled=ctx.cancelled,
            )
            return await self.cache.store(built)
        except BuildFailed as error:
            await self._explain(ctx, folder)
            raise _reason(error, folder, self.space) from error
        except (Cancelled, asyncio.CancelledError):
            await self._explain(ctx, folder)
            raise
        finally:
            await asyncio.shield(userns.remove_tree(folder))

    async def _explain(self, ctx: JobContext, folder: Path) -> None:
        """Keep the end of the build's log in the job's: its folder goes."""
        log = folder / "build.log"
        if log.is_file():
            text = await asyncio.to_thread(log.read_text, "utf-8", "replace")
            for line in text.splitlines()[-_LOG_LINES:]:
                ctx.log(line)

    async def _add(self, ctx: JobContext, entry: CacheEntry, ids: dict[str, str]) -> Image:
        ctx.progress(_BUILT, f"adding {entry.built.name} to the catalogue")
        return await self.catalogue.add_built(
            entry.built,
            image_id=ids["image"],
            volume_id=ids["volume"],
            digests=entry.digests,
            progress=lambda done: ctx.progress(
                _BUILT + (1 - _BUILT) * done, f"adding {entry.built.name} to the catalogue"
            ),
        )


class RemoveImage(Operation[RemoveParams]):
    """Refuses while a guest needs the image."""

    kind = "image.remove"
    Params = RemoveParams
    may_cancel = False

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def locks(self, params: RemoveParams) -> tuple[str, ...]:
        return (self.catalogue.documents.images.key(params.image),)

    async def run(self, ctx: JobContext, params: RemoveParams) -> dict[str, int]:
        """The document is journaled, because a removal that is taken up again may have to put it
        back, see `Catalogue.remove`.

        :raise UnknownImage: :raise InUse: :raise Conflict: documents are quarantined.
        """
        found = await self.catalogue.documents.images.get(params.image)
        text = encode(found.doc).decode() if found else ""
        document = (await ctx.step("remove", document=text))["document"]
        if not document:
            raise UnknownImage(
                f"There is no image {params.image}.", hint="See what there is: guest image ls"
            )
        return {"freed": await self.catalogue.remove(decode_document(document.encode(), Image))}


def _logged(ctx: JobContext) -> Progress:
    """The job's progress, whose stages stand in its log as well, each once."""
    said = set[str]()

    def report(fraction: float, doing: str) -> None:
        if doing not in said:
            said.add(doing)
            ctx.log(doing)
        ctx.progress(fraction, doing)

    return report


def _reason(error: BuildFailed, folder: Path, needed: int) -> BuildFailed | NoSpace:
    """A tool that met a full disk says so only in its output."""
    if "No space left on device" in msgspec.json.encode(error.detail).decode():
        return no_space(folder.parent, needed, "build the image")
    return error
