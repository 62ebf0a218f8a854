"""The folder of a pool's layers: where files are and whether they are what documents say. Blocking.

Layers are `<volume id>.<format>`, 0600, or 0444 once nobody may write them any more.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from guesthouse.errors import Conflict, EngineError, Internal, InvalidInput, NotFound
from guesthouse.model.ids import created_at, is_id
from guesthouse.model.units import format_size
from guesthouse.model.volume import Volume, VolumeFormat
from guesthouse.storage import qcow2
from guesthouse.storage.durable import (
    FROZEN_FILE,
    PRIVATE_FILE,
    filling,
    fsync_file,
    publish,
    remove_file,
    require_space,
)

NEW_LAYER = 1 << 20
"""Bytes that an empty layer takes at most: header, tables and the start of its map."""


class LayerFolder:
    """:ivar pool: name of the pool that it belongs to."""

    def __init__(self, folder: Path, pool: str) -> None:
        self.folder = folder
        self.pool = pool

    def path(self, volume: Volume) -> Path:
        """Where the file of `volume` is, or will be."""
        if volume.pool != self.pool or not is_id(volume.id):
            raise Internal(f"Volume {volume.id} does not belong to pool {self.pool}.")
        return self.folder / volume.filename

    def existing(self, volume: Volume) -> Path:
        """:raise NotFound: the file is missing."""
        path = self.path(volume)
        if not path.is_file():
            raise _missing(volume, path)
        return path

    def already(self, volume: Volume, size: int) -> bool:
        """Whether an earlier attempt has finished this file.

        :raise Conflict: a file is there which is not what is to be made; it is left alone.
        """
        path = self.path(volume)
        if not path.exists():
            return False
        try:
            self.assert_sound(volume, path, size=size)
        except EngineError as error:
            raise Conflict(
                f"{path.name} exists already and is another disk: {error.message}",
                hint="It is left untouched; see `guest doctor`.",
            ) from error
        return True

    def volume_of(self, volume_id: str) -> Volume | None:
        """The volume that a layer's file must be, told from the file alone; None when there is
        none. Who may write it, its size and what it lies on are all in the file.

        :raise EngineError: the file is damaged, or lies on something that no layer may lie on.
        """
        paths = (self.folder / f"{volume_id}.{kind.value}" for kind in VolumeFormat)
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            return None
        facts, kind = path.stat(), VolumeFormat(path.suffix.removeprefix("."))
        parent, size = "", facts.st_size
        if kind is VolumeFormat.QCOW2:
            header = qcow2.read_header(path)
            parent, size = Path(header.backing).stem, header.size
            qcow2.assert_sound_header(path, parent=header.backing if is_id(parent) else "")
        return Volume(
            id=volume_id,
            pool=self.pool,
            format=kind,
            parent=parent,
            immutable=stat.S_IMODE(facts.st_mode) == FROZEN_FILE,
            size=size,
            created_at=created_at(volume_id),
            note="told from its file",
        )

    def ids(self) -> list[str]:
        """Ids of all layers whose files are here."""
        suffixes = {f".{kind.value}" for kind in VolumeFormat}
        found = (path for path in self.folder.iterdir() if path.suffix in suffixes)
        return sorted(path.stem for path in found if is_id(path.stem))

    def prepare(self, temporary: Path, parent: Path | None, size: int) -> None:
        """Make the new file ourselves, so that its mode is right; a raw layer needs no more.

        :raise InvalidInput: smaller than its parent. :raise NoSpace:
        """
        purpose = "create the disk"
        require_space(self.folder, NEW_LAYER, purpose)
        if parent is not None:
            below = _virtual_size(parent)
            if size < below:
                raise InvalidInput(
                    f"A disk of {format_size(size)} is smaller than what it is made from.",
                    hint=f"Ask for at least {format_size(below)}.",
                    field="size",
                )
        with filling(self.folder, NEW_LAYER, purpose):
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(fd, size)
            finally:
                os.close(fd)

    def finish(self, volume: Volume, temporary: Path, size: int) -> None:
        """Check a finished file and give it its name."""
        with filling(self.folder, NEW_LAYER, "create the disk"):
            self.assert_sound(volume, temporary, size=size)
            publish(temporary, self.path(volume), mode_of(volume))

    def freeze(self, volume: Volume) -> None:
        """Take the right to write from the file, because the layer has become immutable."""
        path = self.existing(volume)
        path.chmod(FROZEN_FILE)
        fsync_file(path)

    def open(self, volume: Volume) -> int:
        """A new descriptor: read-only for an immutable layer, else read-write.

        :raise NotFound: the file is missing.
        """
        writing = os.O_RDONLY if volume.immutable else os.O_RDWR
        return os.open(self.existing(volume), writing | os.O_NOFOLLOW | os.O_CLOEXEC)

    def delete(self, volume_id: str) -> int:
        """Answers the bytes freed."""
        if not is_id(volume_id):
            raise Internal(f"{volume_id!r} is not the id of a volume.")
        return sum(remove_file(self.folder / f"{volume_id}.{kind.value}") for kind in VolumeFormat)

    def virtual_size(self, volume: Volume) -> int:
        """Bytes that a guest sees, as the file says."""
        return _virtual_size(self.existing(volume))

    def assert_sound(
        self, volume: Volume, file: Path, *, parent: str | None = None, size: int | None = None
    ) -> None:
        """Check that `file` can be the layer `volume`.

        :param parent: file name of the layer below; None to derive it from `volume`.
        :param size: the virtual size that it must have; None to take what is there.
        :raise EngineError: it is something else. :raise NotFound: it is missing.
        """
        below = self._parent_name(volume) if parent is None else parent
        try:
            if volume.format is VolumeFormat.QCOW2:
                found = qcow2.assert_sound_header(
                    file, parent=below, parent_format=Path(below).suffix.removeprefix(".")
                ).size
            else:
                found = file.stat().st_size
        except FileNotFoundError:
            raise _missing(volume, file) from None
        if size is not None and found != size:
            raise EngineError(
                f"{file.name} has a virtual size of {format_size(found)}, not {format_size(size)}.",
                found=found,
                wanted=size,
            )

    def _parent_name(self, volume: Volume) -> str:
        """The parent's file name; its format is told by the file that is there."""
        if not volume.parent:
            return ""
        raw = f"{volume.parent}.{VolumeFormat.RAW.value}"
        if (self.folder / raw).exists():
            return raw
        return f"{volume.parent}.{VolumeFormat.QCOW2.value}"


def mode_of(volume: Volume) -> int:
    return FROZEN_FILE if volume.immutable else PRIVATE_FILE


def _virtual_size(path: Path) -> int:
    if path.suffix == f".{VolumeFormat.QCOW2.value}":
        return qcow2.read_header(path).size
    return path.stat().st_size


def _missing(volume: Volume, path: Path) -> NotFound:
    return NotFound(
        f"The file of disk {volume.id} is missing: {path}.",
        hint="Bring the file back from a backup, or remove the guest that needs it.",
        path=str(path),
    )
