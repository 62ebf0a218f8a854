"""A pool that is a folder: layers as files, and copies of the documents beside them.

    <root>/pool.json                    version and id of the pool
    <root>/layers/<volume id>.<format>
    <root>/documents/<kind>/<id>.json   for `guest recover`, should the database be lost

Every file appears whole or not at all, and every method may be repeated: a job that is taken up
again after a crash finds what is there and goes on. Blocking work runs in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from guesthouse.errors import InvalidInput, NotFound
from guesthouse.model.document import Document
from guesthouse.model.units import format_size
from guesthouse.model.volume import Volume, VolumeFormat
from guesthouse.storage import chains, qemu_img
from guesthouse.storage.copies import Copies
from guesthouse.storage.durable import (
    Space,
    fsync_file,
    make_folder,
    require_space,
    space_of,
    temporary_beside,
    write_file,
)
from guesthouse.storage.identity import PoolIdentity, open_identity
from guesthouse.storage.incoming import Incoming
from guesthouse.storage.layers import NEW_LAYER, LayerFolder, mode_of
from guesthouse.storage.qemu_img import CheckReport, ImageInfo
from guesthouse.storage.transfer import Progress, Way, in_thread, on_loop


class DirectoryPool:
    """Use `open`. :ivar identity: what `pool.json` says."""

    def __init__(self, root: Path, identity: PoolIdentity, *, name: str = "default") -> None:
        self.root = root
        self.name = name
        self.identity = identity
        self.layers = LayerFolder(root / "layers", name)
        self.documents = root / "documents"
        self.copies = Copies(self.documents)

    @classmethod
    async def open(cls, root: Path, *, name: str = "default") -> DirectoryPool:
        """Open the pool at `root`, making it when the folder is absent or empty.

        :raise ReadOnlyStore: a newer Guesthouse wrote it. :raise EngineError: `pool.json` is
            damaged. :raise NoSpace:
        """
        root = root.absolute()

        def work() -> PoolIdentity:
            identity_file = root / "pool.json"
            make_folder(root)
            identity = open_identity(identity_file)
            make_folder(root / "layers")
            make_folder(root / "documents")
            return identity

        pool = cls(root, await asyncio.to_thread(work), name=name)
        await asyncio.to_thread(pool.copies.load)
        return pool

    def path(self, volume: Volume) -> Path:
        """Where the file of `volume` is, or will be."""
        return self.layers.path(volume)

    def chain(self, volumes: Mapping[str, Volume], top: str) -> list[Path]:
        """Paths of the layers of a disk, top first. Looks at documents only.

        :raise NotFound: a layer has no document. :raise EngineError: the layers form a loop, or
            one that lies below another is not immutable.
        """
        return [self.path(volume) for volume in chains.resolve(volumes, top)]

    async def verify_chain(self, volumes: Mapping[str, Volume], top: str) -> list[Path]:
        """`chain`, and every file is there and names the right one as its parent.

        :raise NotFound: a document or a file is missing. :raise EngineError: see
            `qcow2.assert_sound_header`.
        """
        found = chains.resolve(volumes, top)

        def work() -> None:
            for volume, below in zip(found, [*found[1:], None], strict=True):
                self.layers.assert_sound(
                    volume, self.path(volume), parent=below.filename if below else ""
                )

        await asyncio.to_thread(work)
        return [self.path(volume) for volume in found]

    async def create_overlay(
        self, volume: Volume, parent_path: Path, size: int | None = None
    ) -> Path:
        """A new qcow2 layer over `parent_path`, a frozen layer of this pool.

        :param size: virtual size in bytes, `volume.size` unless given; at least the parent's.
        :raise InvalidInput: smaller than the parent, or not a layer of this pool.
        :raise Conflict: another file has this volume's name. :raise NoSpace:
        """
        if parent_path.parent != self.layers.folder or parent_path.stem != volume.parent:
            raise InvalidInput(
                f"{parent_path.name} is not the parent of volume {volume.id} in this pool."
            )
        if volume.format is not VolumeFormat.QCOW2:
            raise InvalidInput("Only a qcow2 disk can lie on another one.")
        if not await asyncio.to_thread(parent_path.is_file):
            raise NotFound(
                f"The disk {volume.parent} that it would lie on is missing: {parent_path}.",
                hint="If it is an image's, build that again: guest image build --rebuild IMAGE",
                path=str(parent_path),
            )
        return await self._create(volume, volume.size if size is None else size, parent_path)

    async def create_empty(self, volume: Volume) -> Path:
        """A new layer full of zeroes, with no parent. Errors as `create_overlay`."""
        if volume.parent:
            raise InvalidInput(f"Volume {volume.id} has a parent, so it is not empty.")
        return await self._create(volume, volume.size, None)

    async def create_raw(self, volume: Volume, content: bytes) -> Path:
        """A new raw layer with that content. May be repeated. Errors as `create_overlay`."""
        target = self.path(volume)

        def work() -> None:
            if not self.layers.already(volume, len(content)):
                write_file(target, content, mode_of(volume))

        await asyncio.to_thread(work)
        return target

    async def create_filled(self, volume: Volume, raw: Path) -> Path:
        """A new qcow2 layer with the content of a raw file of this host, such as firmware
        variables; `volume.size` is that file's. Errors as `create_overlay`."""
        return await self._create(volume, volume.size, None, content=raw)

    async def _create(
        self, volume: Volume, size: int, parent: Path | None, *, content: Path | None = None
    ) -> Path:
        target = self.path(volume)
        if await asyncio.to_thread(self.layers.already, volume, size):
            return target
        temporary = temporary_beside(target)
        try:
            await in_thread(lambda _: self.layers.prepare(temporary, parent, size))
            if volume.format is VolumeFormat.QCOW2:
                await qemu_img.create(temporary, size, parent=parent)
            if content is not None:
                await qemu_img.fill(temporary, content)
            await in_thread(lambda _: self.layers.finish(volume, temporary, size))
        finally:
            temporary.unlink(missing_ok=True)
        return target

    async def import_file(
        self,
        volume: Volume,
        source: Path | int,
        way: Way = Way.COPY,
        *,
        digest: str = "",
        progress: Progress | None = None,
    ) -> str:
        """Bring a finished layer into the pool. Its format is `volume.format`, never probed.

        :param source: a path that this program made, or a descriptor that a client passed.
        :param digest: SHA-256 that the content must have; empty to take what comes.
        :return: `present`, `moved`, `linked`, `reflinked` or `copied`.
        :raise InvalidInput: the content is not `digest`, or a link was asked for a layer that will
            be written. :raise EngineError: the header is not sound. :raise NoSpace:
        """
        if way is Way.LINK and not volume.immutable:
            raise InvalidInput("Only an immutable layer may share its file with others.")
        if way is Way.MOVE and isinstance(source, int):
            raise InvalidInput("A descriptor cannot be moved; copy it.")
        tell = on_loop(progress)
        return await in_thread(
            lambda stop: Incoming(self.layers, volume, digest, tell, stop).take(source, way)
        )

    async def grow(self, volume: Volume, new_size: int) -> None:
        """Make the disk larger while no guest has it open; the same size is fine.

        :raise InvalidInput: smaller than it is, or the layer is immutable. :raise InUse: a guest
            has it open. :raise NoSpace:
        """
        if volume.immutable:
            raise InvalidInput(f"Disk {volume.id} is immutable and keeps its size.")
        present = await asyncio.to_thread(self.layers.virtual_size, volume)
        if new_size < present:
            raise InvalidInput(
                f"The disk has {format_size(present)} and cannot shrink to "
                f"{format_size(new_size)}: what lies at its end would be lost.",
                hint="Make a new, smaller disk and copy the files over.",
                field="size",
            )
        if new_size > present:
            path = self.path(volume)
            await asyncio.to_thread(require_space, path.parent, NEW_LAYER, "grow the disk")
            await qemu_img.resize(path, volume.format, new_size)
            await asyncio.to_thread(fsync_file, path)

    async def freeze(self, volume: Volume) -> None:
        """Take the right to write from the file, because the layer has become immutable."""
        await asyncio.to_thread(self.layers.freeze, volume)

    def open_file(self, volume: Volume) -> int:
        """A new descriptor: read-only for an immutable layer, else read-write. Blocks.

        :raise NotFound: the file is missing.
        """
        return self.layers.open(volume)

    async def check(self, volume: Volume) -> CheckReport:
        """Look for damage. :raise NotFound: :raise InUse: a guest has it open."""
        path = await asyncio.to_thread(self.layers.existing, volume)
        return await qemu_img.check(path, volume.format)

    async def info(self, volume: Volume) -> ImageInfo:
        """What qemu-img says of it, also while a guest runs. :raise NotFound:"""
        path = await asyncio.to_thread(self.layers.existing, volume)
        return await qemu_img.info(path, volume.format, in_use=True)

    async def delete(self, volume_id: str) -> int:
        """Delete a layer that no document refers to (the caller knows). Answers the bytes freed.

        A layer that is not there is fine; one whose file the image cache shares frees nothing.
        """
        return await asyncio.to_thread(self.layers.delete, volume_id)

    async def usage(self, volume: Volume) -> int:
        """Bytes that the layer takes on disk. A file linked from the image cache counts fully."""
        path = await asyncio.to_thread(self.layers.existing, volume)
        return path.stat().st_blocks * 512

    async def space(self) -> Space:
        """Total and free bytes of the pool's file system."""
        return await asyncio.to_thread(space_of, self.root)

    async def free_space(self) -> int:
        return (await self.space()).free

    async def write_copy(self, kind: str, doc: Document) -> None:
        """Keep a copy of `doc` beside the layers. :param kind: one of `copies.KINDS`."""
        await self.copies.write(kind, doc)

    async def remove_copy(self, kind: str, doc_id: str) -> None:
        """Remove a copy, after the document and before the file of its layer: what has neither
        document nor copy is garbage."""
        await self.copies.remove(kind, doc_id)
