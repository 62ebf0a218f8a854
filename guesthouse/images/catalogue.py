"""The images of this house: documents, their immutable layers in the pool, their boot files."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from guesthouse.errors import Conflict, InUse, NotFound, RevisionConflict, UnknownImage
from guesthouse.images.boot import BootFolder
from guesthouse.images.cache import parts
from guesthouse.images.recipes import RECIPES
from guesthouse.images.spec import BuiltImage
from guesthouse.model.guest import Guest
from guesthouse.model.image import BootFiles, Image, ImageKind, Seed
from guesthouse.model.names import check_image_name
from guesthouse.model.volume import Volume
from guesthouse.storage.pool import DirectoryPool
from guesthouse.storage.quarantine import refuse_quarantined
from guesthouse.storage.transfer import Progress, Way, in_thread, on_loop, sha256_of
from guesthouse.storage.usage import Holder, doom, lineage, tops_of, users_of
from guesthouse.store.contract import ABSENT, Op, Put
from guesthouse.store.documents import Documents
from guesthouse.store.view import View

GRACE = 3600.0
"""Seconds that a replaced image stays, so that a launch which just chose it finds it."""
_ATTEMPTS = 8


class Known(NamedTuple):
    """An image that this house can build."""

    name: str
    description: str
    seed: Seed = Seed.HOUSE


def buildable() -> list[Known]:
    """What the builders know."""
    return [Known(recipe.name, recipe.description, recipe.seed) for recipe in RECIPES]


class Catalogue:
    """:ivar boot: where boot files lie.

    :param known: what can be built. :param holders: what else holds layers, such as snapshots.
    """

    def __init__(
        self,
        documents: Documents,
        view: View,
        pool: DirectoryPool,
        folder: Path,
        *,
        known: Callable[[], Sequence[Known]] = buildable,
        holders: Callable[[], Iterable[Holder]] = tuple,
    ) -> None:
        self.documents = documents
        self.view = view
        self.pool = pool
        self.boot = BootFolder(folder)
        self.known = known
        self.holders = holders

    def current(self, name: str) -> Image | None:
        """The newest image of exactly this name: the one that launches use."""
        mine = [image for image in self.view.images.values() if image.name == name]
        return max(mine, key=lambda image: image.id, default=None)

    def resolve(self, ref: str) -> Image:
        """By name (the newest of it), id or unique prefix of an id.

        :raise UnknownImage: the hint names similar ones and those that can be built.
        :raise InvalidInput: the prefix is not unique.
        """
        try:
            return self.view.image(ref)
        except UnknownImage:
            raise self._unknown(ref) from None

    def _unknown(self, ref: str) -> UnknownImage:
        names = [known.name for known in self.known()]
        if ref in names:
            hint = f"It can be built: guest image build {ref}"
        else:
            all_names = {*names, *(image.name for image in self.view.images.values())}
            similar = difflib.get_close_matches(ref, sorted(all_names), n=3, cutoff=0.5)
            hint = f"Did you mean {' or '.join(similar)}? " if similar else ""
            hint += f"These can be built: {', '.join(names)}."
        return UnknownImage(
            f"There is no image {ref!r} here.", hint=hint, image=ref, buildable=names
        )

    def boot_files(self, image_id: str) -> BootFiles | None:
        """With absolute paths; None for an image without.

        :raise UnknownImage: no such image. :raise NotFound: a file is missing.
        """
        return self.boot.located(self.resolve(image_id))

    def users(self, image: Image) -> list[Guest]:
        """The guests that need this image, also those in the trash."""
        volumes = self.view.volumes

        def needs(guest: Guest) -> bool:
            return guest.spec.image_id == image.id or any(
                image.volume in lineage(volumes, top) for top in tops_of(guest)
            )

        return [guest for guest in self.view.guests.values() if needs(guest)]

    def _needed_by(self, image: Image) -> list[str]:
        """Who needs it, as people call them. Other images that share its layer do not count: the
        layer stays as long as one of them does.
        """
        guests = [
            f"guest {guest.name} (in the trash)" if guest.in_trash else f"guest {guest.name}"
            for guest in self.users(image)
        ]
        volumes = self.view.volumes.values()
        return [*guests, *users_of(image.volume, (), (), volumes, self.holders())]

    async def add_built(
        self,
        built: BuiltImage,
        *,
        image_id: str,
        volume_id: str,
        digests: Mapping[str, str] | None = None,
        source: str = "built",
        progress: Progress | None = None,
    ) -> Image:
        """Take a built image in; afterwards its name means this one.

        May be repeated with the same ids. If the name already means an image with this content,
        that one is the answer. A layer that is here already is not kept twice. The built files
        stay where they are; their disk may end up shared with the pool by a hard link.

        :param digests: SHA-256 by part (`disk`, `kernel`, `initrd`) as recorded by the builder;
            checked. None to compute them.
        :raise InvalidInput: the files are not those of `digests`. :raise EngineError: the disk is
            not sound. :raise NoSpace:
        """
        check_image_name(built.name, field="name")
        known = digests if digests is not None else await _digests_of(built)
        content = _content_digest(known, built.cmdline)
        current = self.current(built.name)
        if current is not None and (current.digest == content or current.id == image_id):
            return await self._again(current, built.build_key)
        shared = self._layer(known.get("disk", ""))
        volume = shared or await self._import(built, volume_id, known, progress)
        boot_files = await in_thread(lambda stop: self.boot.add(image_id, built, known, stop))
        image = Image(
            id=image_id,
            name=built.name,
            digest=content,
            build_key=built.build_key,
            volume=volume.id if volume else "",
            size=await asyncio.to_thread(_size_of, built),
            virtual_size=built.virtual_size,
            boot_files=boot_files,
            os=built.os,
            facts=built.facts,
            created_at=time.time(),
            source=source,
            kind=ImageKind.DISK if volume else ImageKind.KERNEL,
            seed=built.seed,
            ssh_port=built.seed is Seed.HOUSE,
        )
        await self._commit(image, volume, shared=shared is not None)
        return image

    async def add(self, image: Image, volume: Volume) -> None:
        """Take in an image whose layer is in the pool already. May be repeated."""
        await self._commit(image, volume)

    def _layer(self, digest: str) -> Volume | None:
        """A layer of an image with this content that is here already."""
        held = (self.view.volumes.get(image.volume) for image in self.view.images.values())
        return next((v for v in held if v and digest and v.digest == digest), None)

    async def _import(
        self,
        built: BuiltImage,
        volume_id: str,
        digests: Mapping[str, str],
        progress: Progress | None,
    ) -> Volume | None:
        if built.disk is None:
            return None
        volume = Volume(
            id=volume_id,
            immutable=True,
            size=built.virtual_size,
            digest=digests["disk"],
            created_at=time.time(),
            note=f"image {built.name}",
        )
        await self.pool.import_file(
            volume, built.disk, Way.LINK, digest=volume.digest, progress=progress
        )
        return volume

    async def _again(self, image: Image, build_key: str) -> Image:
        """The same content from another recipe: remember the recipe, so it counts as built."""

        def change(doc: Image) -> Image:
            return msgspec.structs.replace(doc, build_key=build_key)

        found = await self.documents.images.update(image.id, change)
        await self.view.wait_for(found.revision)
        return found.doc

    async def _commit(
        self, image: Image, volume: Volume | None = None, *, shared: bool = False
    ) -> None:
        """Volume, image and name in one transaction; complete already when it was made before."""
        for attempt in range(1, _ATTEMPTS + 1):
            if (found := await self.documents.images.get(image.id)) is not None:
                await self.view.wait_for(found.revision)
                return
            ops: list[Op] = [self.documents.images.put_op(image, expect=ABSENT)]
            ops.append(await self._name_op(image))
            if volume is not None:
                ops.append(await self._volume_op(volume, shared))
            try:
                await self.view.wait_for(await self.documents.store.commit(ops))
                return
            except RevisionConflict:
                if attempt == _ATTEMPTS:
                    raise

    async def _name_op(self, image: Image) -> Op:
        named = await self.documents.images.named(image.name)
        key = self.documents.images.name_key(image.name)
        current = self.current(image.name)
        newest = max(image.id, current.id if current else "")
        return Put(key, newest.encode(), named.revision if named else ABSENT)

    async def _volume_op(self, volume: Volume, shared: bool) -> Op:
        """A shared one is written again, so that a removal that is under way notices us.

        :raise NotFound: a removal was quicker.
        """
        volumes = self.documents.volumes
        expect = (await volumes.require(volume.id)).revision if shared else ABSENT
        return volumes.put_op(volume, expect)

    async def restore(self, image: Image) -> None:
        """Put a document back whose parts are here, with its name. May be repeated."""
        await self._commit(image)

    async def discard(self, image_id: str, volume_id: str) -> None:
        """Undo `add_built`, as far as no document came of it."""
        if await self.documents.images.get(image_id) is None:
            await asyncio.to_thread(self.boot.remove, image_id)
        if await self.documents.volumes.get(volume_id) is None:
            await self.pool.delete(volume_id)

    async def remove(self, image: Image) -> int:
        """Remove an image that nobody uses; answers the bytes freed. May be repeated.

        The document goes first and its users are looked for again after that, since a launch may
        have used it in between: then it is put back.

        :raise InUse: names the users. :raise Conflict: documents are quarantined.
        """
        await self._caught_up()
        refuse_quarantined(self.view, "remove an image")
        found = await self.documents.images.get(image.id)
        if found is not None:
            self._refuse_used(image)
            await self._retire(found.doc, found.revision)
        try:
            self._refuse_used(image)
        except InUse:
            await self._commit(image)
            raise
        await self.pool.remove_copy("images", image.id)
        freed = await self._remove_layer(image.volume) if image.volume else 0
        await asyncio.to_thread(self.boot.remove, image.id)
        return freed

    async def _caught_up(self) -> None:
        await self.view.wait_for(self.documents.store.revision)

    def _refuse_used(self, image: Image) -> None:
        users = self._needed_by(image)
        if users:
            more = f" and {len(users) - 3} more" if len(users) > 3 else ""
            hint = "Remove those first; a newer build can replace the image's name meanwhile."
            if trashed := [guest.id for guest in self.users(image) if guest.in_trash]:
                hint += f" For those in the trash: guest trash empty {' '.join(trashed[:3])}"
            raise InUse(
                f"The image {image.name} is used by {', '.join(users[:3])}{more}.",
                hint=hint,
                users=users,
            )

    async def _retire(self, image: Image, revision: int) -> None:
        """Delete the document; its name goes to the next older image, or is free."""
        images = self.documents.images
        ops: list[Op] = [images.delete_op(image.id, expect=revision)]
        named = await images.named(image.name)
        if named is not None and named.id == image.id:
            others = [i.id for i in self.view.images.values() if i.name == image.name]
            older = max((i for i in others if i != image.id), default="")
            ops.append(
                Put(images.name_key(image.name), older.encode(), named.revision)
                if older
                else images.release_op(image.name, named.revision)
            )
        await self.view.wait_for(await self.documents.store.commit(ops))

    async def _remove_layer(self, volume_id: str) -> int:
        """Unless another image shares it; one that others lie on waits for the collection."""
        if any(image.volume == volume_id for image in self.view.images.values()):
            return 0
        volumes = self.documents.volumes
        found = await volumes.get(volume_id)
        if found is not None:
            if any(volume.parent == volume_id for volume in self.view.volumes.values()):
                await volumes.update(volume_id, doom)
                return 0
            deletion = volumes.delete_op(volume_id, expect=found.revision)
            await self.view.wait_for(await self.documents.store.commit([deletion]))
        # The copy goes before the file: a file without both is one for the collection.
        await self.pool.remove_copy("volumes", volume_id)
        return await self.pool.delete(volume_id)

    async def prune(self, grace: float = GRACE) -> int:
        """Remove images whose name means a newer one for longer than `grace` seconds and that
        nobody uses; answers the bytes freed.
        """
        freed = 0
        for image in list(self.view.images.values()):
            newest = self.current(image.name)
            if newest is None or newest.id == image.id:
                continue
            if newest.created_at > time.time() - grace or self._needed_by(image):
                continue
            try:
                freed += await self.remove(image)
            except (Conflict, NotFound):
                continue  # somebody was quicker, or uses it by now
        return freed


async def _digests_of(built: BuiltImage) -> dict[str, str]:
    quiet = on_loop(None)

    def digest(path: Path) -> Callable[..., str]:
        return lambda stop: sha256_of(path, progress=quiet, stop=stop)

    return {part: await in_thread(digest(path)) for part, path in parts(built).items()}


def _content_digest(digests: Mapping[str, str], cmdline: str) -> str:
    """SHA-256 over what a guest gets: disk, boot files and the command line that starts them."""
    lines = [f"{part} {digests[part]}" for part in sorted(digests)]
    return hashlib.sha256("\n".join([*lines, f"cmdline {cmdline}"]).encode()).hexdigest()


def _size_of(built: BuiltImage) -> int:
    return sum(path.stat().st_size for path in parts(built).values())
