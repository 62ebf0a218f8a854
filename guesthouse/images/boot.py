"""Boot files of images: `<folder>/<image id>/kernel` and `initrd`, frozen. Blocking."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

from guesthouse.errors import InvalidInput, NotFound
from guesthouse.images.spec import BuiltImage
from guesthouse.model.image import BootFiles, Image
from guesthouse.storage.durable import (
    FROZEN_FILE,
    filling,
    fsync_folder,
    make_folder,
    publish,
    require_space,
    temporary_beside,
)
from guesthouse.storage.transfer import bring, sha256_of


class BootFolder:
    """:ivar folder: of the whole catalogue; each image has a folder of its own in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        image_id: str,
        built: BuiltImage,
        digests: Mapping[str, str],
        stop: threading.Event,
    ) -> BootFiles | None:
        """Copy the boot files of `built`; what an earlier attempt copied stays.

        Never by hard link: they are small, and this way nothing outside can touch them.

        :param digests: SHA-256 that `kernel` and `initrd` must have.
        :raise InvalidInput: they have others. :raise NoSpace:
        """
        if built.kernel is None or built.initrd is None:
            return None
        target = self.folder / image_id
        make_folder(target)
        for part, source in (("kernel", built.kernel), ("initrd", built.initrd)):
            self._add(source, target / part, digests[part], stop)
        return BootFiles(
            kernel="kernel",
            initrd="initrd",
            kernel_digest=digests["kernel"],
            initrd_digest=digests["initrd"],
            cmdline=built.cmdline,
        )

    def _add(self, source: Path, target: Path, digest: str, stop: threading.Event) -> None:
        if target.is_file() and sha256_of(target, progress=_quiet, stop=stop) == digest:
            return
        needed = source.stat().st_size
        require_space(target.parent, needed, "keep an image's boot files")
        temporary = temporary_beside(target)
        with filling(target.parent, needed, "keep an image's boot files"):
            try:
                bring(source, temporary, share=False, progress=_quiet, stop=stop)
                if sha256_of(temporary, progress=_quiet, stop=stop) != digest:
                    raise InvalidInput(
                        f"The {target.name} is not the one that was built.",
                        hint="It was damaged on its way; build the image again.",
                    )
                publish(temporary, target, FROZEN_FILE)
            finally:
                temporary.unlink(missing_ok=True)

    def located(self, image: Image) -> BootFiles | None:
        """The boot files with absolute paths. :raise NotFound: one is missing."""
        files = image.boot_files
        if files is None:
            return None
        kernel, initrd = (self.folder / image.id / name for name in (files.kernel, files.initrd))
        for path in (kernel, initrd):
            if not path.is_file():
                raise NotFound(
                    f"A boot file of image {image.name} is missing: {path}.",
                    hint=f"Build it again: guest image build --rebuild {image.name}",
                    path=str(path),
                )
        return BootFiles(
            kernel=str(kernel),
            initrd=str(initrd),
            kernel_digest=files.kernel_digest,
            initrd_digest=files.initrd_digest,
            cmdline=files.cmdline,
        )

    def remove(self, image_id: str) -> None:
        """Remove what is there of an image; nothing is fine."""
        if (self.folder / image_id).is_dir():
            shutil.rmtree(self.folder / image_id)
            fsync_folder(self.folder)


def _quiet(fraction: float) -> None:
    pass
