"""The job `image.import`: from an upload to an image of the catalogue."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from guesthouse.errors import NameTaken
from guesthouse.images.catalogue import Catalogue
from guesthouse.images.foreign.converting import convert
from guesthouse.images.foreign.looking import look
from guesthouse.images.foreign.window import Foreign, too_large
from guesthouse.images.spec import part
from guesthouse.jobs.context import JobContext
from guesthouse.jobs.registry import Operation
from guesthouse.model.ids import new_id
from guesthouse.model.image import Image, ImageKind, Seed, SourceFormat
from guesthouse.model.imports import ImportImageRequest
from guesthouse.model.names import check_image_name
from guesthouse.model.volume import Volume, VolumeFormat
from guesthouse.storage.transfer import Way, in_thread, on_loop, sha256_of
from guesthouse.storage.uploads import Uploads

_CONVERTED = 0.85  # share of the progress that converting takes


class ImportImage(Operation[ImportImageRequest]):
    """Look at the upload, convert it to a layer of ours, and name that.

    A disc to boot from stays as it is. The upload is gone afterwards, whatever came of it.

    :param most: largest disk that is taken, in bytes.
    """

    kind = "image.import"
    Params = ImportImageRequest

    def __init__(self, catalogue: Catalogue, uploads: Uploads, *, most: Callable[[], int]) -> None:
        self.catalogue = catalogue
        self.uploads = uploads
        self.most = most

    def locks(self, params: ImportImageRequest) -> tuple[str, ...]:
        return (f"images/{params.name}",)

    async def run(self, ctx: JobContext, params: ImportImageRequest) -> dict[str, str]:
        """:raise InvalidInput: the file is refused; `detail["reason"]` says why.

        :raise NotFound: there is no such upload. :raise NameTaken: :raise NoSpace:
        :raise Conflict: the upload is still being written.
        """
        ids = await ctx.step("add", image=new_id, volume=new_id)

        async def undo() -> None:
            await self.catalogue.discard(ids["image"], ids["volume"])
            await self.uploads.remove(params.upload)

        ctx.undo(undo)
        await refuse_taken(self.catalogue, params.name, but=ids["image"])
        if await self.catalogue.documents.images.get(ids["image"]) is None:
            found = await asyncio.to_thread(self._look, params, ids["volume"])
            for note in found.notes:
                ctx.log(note)
            volume = await self._layer(ctx, params, found, ids["volume"])
            await self.catalogue.add(self._image(params, found, volume, ids["image"]), volume)
        ctx.keep()
        await self.uploads.remove(params.upload)
        ctx.progress(1.0, f"{params.name} is ready")
        return {"image": ids["image"], "name": params.name}

    def _look(self, params: ImportImageRequest, volume_id: str) -> Foreign:
        """What the upload is. A disc's file may have become the layer already."""
        disc = self.catalogue.pool.layers.folder / f"{volume_id}.{VolumeFormat.RAW.value}"
        if disc.is_file():
            return Foreign(SourceFormat.ISO, disc.stat().st_size)
        fd = os.open(self.uploads.take(params.upload), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return look(fd, params.format, self.most())
        finally:
            os.close(fd)

    async def _layer(
        self, ctx: JobContext, params: ImportImageRequest, found: Foreign, volume_id: str
    ) -> Volume:
        """The layer in the pool; one that an earlier attempt finished is taken as it is."""
        pool = self.catalogue.pool
        ready = await asyncio.to_thread(pool.layers.volume_of, volume_id)
        if ready is None:
            if found.format is SourceFormat.ISO:
                source = self.uploads.path(params.upload)
                await asyncio.to_thread(os.truncate, source, found.size)
                size, kind = found.size, VolumeFormat.RAW
            else:
                source = self.uploads.made(params.upload)
                size, kind = await self._convert(ctx, params, found), VolumeFormat.QCOW2
            made = Volume(id=volume_id, format=kind, immutable=True, size=size, created_at=0)
            ctx.progress(_CONVERTED, "adding it to the catalogue")
            await pool.import_file(made, source, Way.MOVE)
            ready = made
        path = pool.path(ready)
        progress = part(ctx.progress, _CONVERTED, 1.0)
        tell = on_loop(lambda fraction: progress(fraction, "computing its digest"))
        digest = await in_thread(lambda stop: sha256_of(path, progress=tell, stop=stop))
        return Volume(
            id=volume_id,
            format=ready.format,
            immutable=True,
            size=ready.size,
            digest=digest,
            created_at=time.time(),
            note=f"image {params.name}",
        )

    async def _convert(self, ctx: JobContext, params: ImportImageRequest, found: Foreign) -> int:
        target = self.uploads.made(params.upload)
        target.unlink(missing_ok=True)  # what an interrupted attempt left
        doing = f"converting {found.format.value}"
        progress = part(ctx.progress, 0.0, _CONVERTED)
        progress(0.0, doing)
        size = await convert(
            self.uploads.path(params.upload), found, target, progress=lambda f: progress(f, doing)
        )
        if size > self.most():
            raise too_large(found.format, size, self.most())
        return size

    def _image(
        self, params: ImportImageRequest, found: Foreign, volume: Volume, image_id: str
    ) -> Image:
        disc = found.format is SourceFormat.ISO
        return Image(
            id=image_id,
            name=params.name,
            digest=volume.digest,
            volume=volume.id,
            size=self.catalogue.pool.path(volume).stat().st_size,
            virtual_size=volume.size,
            os={"pretty": params.os} if params.os else {},
            facts={"left out": "; ".join(found.notes)} if found.notes else {},
            created_at=time.time(),
            source="imported",
            kind=ImageKind.ISO if disc else ImageKind.DISK,
            format=found.format,
            description=params.description,
            seed=Seed.NONE if disc else params.seed,
            agent=params.agent and not disc,
            ssh_port=False,
        )


async def refuse_taken(catalogue: Catalogue, name: str, *, but: str = "") -> None:
    """Nothing that cannot be built again is put in another one's place.

    :param but: id of the image that may have the name.
    :raise NameTaken: an image has it, or the house builds one of that name.
    """
    check_image_name(name)
    if name in {known.name for known in catalogue.known()}:
        raise NameTaken(
            f"{name!r} is the name of an image that this house builds.",
            hint="Choose another name.",
            name=name,
        )
    named = await catalogue.documents.images.named(name)
    if named is not None and named.id and named.id != but:
        raise NameTaken(
            f"There is already an image {name!r}.",
            hint=f"Choose another name, or remove that one: guest image rm {name}",
            name=name,
        )
