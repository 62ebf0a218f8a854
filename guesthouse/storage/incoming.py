"""Bringing a finished layer into a pool's folder. Blocking."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from guesthouse.errors import InvalidInput
from guesthouse.model.volume import Volume
from guesthouse.storage.durable import (
    filling,
    fsync_folder,
    publish,
    require_space,
    temporary_beside,
)
from guesthouse.storage.layers import LayerFolder, mode_of
from guesthouse.storage.transfer import Progress, Way, bring, can_link, sha256_of


class Incoming:
    """One file on its way in. :ivar digest: SHA-256 that it must have, or empty."""

    def __init__(
        self,
        layers: LayerFolder,
        volume: Volume,
        digest: str,
        progress: Progress,
        stop: threading.Event,
    ) -> None:
        self.layers = layers
        self.volume = volume
        self.digest = digest
        self.progress = progress
        self.stop = stop

    def take(self, source: Path | int, way: Way) -> str:
        """See `DirectoryPool.import_file`."""
        if self.layers.already(self.volume, self.volume.size):
            if way is Way.MOVE and isinstance(source, Path):
                source.unlink(missing_ok=True)  # an earlier attempt died after copying
            return "present"
        if way is Way.MOVE and isinstance(source, Path):
            if source.stat().st_dev == self.layers.folder.stat().st_dev:
                return self._rename(source)
            how = self._bring(source, share=False)
            source.unlink(missing_ok=True)
            return how
        return self._bring(source, share=way is Way.LINK)

    def _rename(self, source: Path) -> str:
        self._verify(source, self.progress)
        publish(source, self.layers.path(self.volume), mode_of(self.volume))
        fsync_folder(source.parent)
        return "moved"

    def _bring(self, source: Path | int, *, share: bool) -> str:
        folder, purpose = self.layers.folder, f"bring in disk {self.volume.id}"
        facts = source.stat() if isinstance(source, Path) else os.fstat(source)
        free = share and isinstance(source, Path) and can_link(source, folder)
        needed = 0 if free else facts.st_blocks * 512
        require_space(folder, needed, purpose)
        target = self.layers.path(self.volume)
        temporary = temporary_beside(target)
        with filling(folder, needed, purpose):
            try:
                how = bring(
                    source,
                    temporary,
                    share=share,
                    progress=lambda done: self.progress(done / 2),
                    stop=self.stop,
                )
                self._verify(temporary, lambda done: self.progress(0.5 + done / 2))
                publish(temporary, target, mode_of(self.volume))
            finally:
                temporary.unlink(missing_ok=True)
        return how

    def _verify(self, file: Path, progress: Progress) -> None:
        self.layers.assert_sound(self.volume, file, size=self.volume.size)
        if not self.digest:
            return
        found = sha256_of(file, progress=progress, stop=self.stop)
        if found != self.digest:
            raise InvalidInput(
                f"The content of disk {self.volume.id} is not what was promised: "
                f"SHA-256 {found[:12]}… instead of {self.digest[:12]}….",
                hint="The file was damaged or changed on its way; get it again.",
                found=found,
                wanted=self.digest,
            )
