"""Images: what guests are made from."""

from __future__ import annotations

from guesthouse.model.document import Document, Noun


class BootFiles(Noun, kw_only=True, frozen=True):
    """Files for a direct kernel boot, kept in the catalogue's folder of this image.

    :ivar kernel_digest: SHA-256, as is `initrd_digest`.
    """

    kernel: str
    initrd: str
    kernel_digest: str
    initrd_digest: str
    cmdline: str


class Image(Document, kw_only=True, frozen=True):
    """An image in this house's catalogue. Immutable; a newer build is another image.

    :ivar name: `debian/12`; the newest image of a name is the one that launches use.
    :ivar digest: SHA-256 over the contents (disk and boot files), its content address.
    :ivar build_key: hash of everything that built it; equal keys are the same recipe.
    :ivar volume: id of its immutable layer; empty for an image without a disk.
    :ivar size: bytes on disk. :ivar virtual_size: bytes the guest sees.
    """

    name: str
    digest: str
    build_key: str = ""
    volume: str = ""
    size: int
    virtual_size: int = 0
    boot_files: BootFiles | None = None
    os: dict[str, str] = {}
    facts: dict[str, str] = {}
    architecture: str = "amd64"
    created_at: float
    source: str = "built"
