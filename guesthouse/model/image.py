"""Images: what guests are made from."""

from __future__ import annotations

from enum import StrEnum

from guesthouse.model.document import Document, Noun


class ImageKind(StrEnum):
    """`disk`: guests get a layer over its disk. `kernel`: it lives in its initrd, without a disk.
    `iso`: a disc to boot from; guests get it as a CD-ROM beside an empty disk.
    """

    DISK = "disk"
    KERNEL = "kernel"
    ISO = "iso"


class Seed(StrEnum):
    """How a guest learns who it is. `house`: our own seed, which our images read at every start.
    `nocloud`: cloud-init's NoCloud disc, if the launch asks for one. `none`: nothing would read it.
    """

    HOUSE = "house"
    NOCLOUD = "nocloud"
    NONE = "none"


class SourceFormat(StrEnum):
    """Formats of files that are imported; `vpc` is the older VHD."""

    QCOW2 = "qcow2"
    RAW = "raw"
    VMDK = "vmdk"
    VDI = "vdi"
    VHDX = "vhdx"
    VPC = "vpc"
    ISO = "iso"


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
    :ivar source: `built`, or `imported`.
    :ivar format: of the file that was imported; null for one that was built.
    :ivar agent: it carries QEMU's guest agent. :ivar ssh_port: it carries our ssh port.
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
    kind: ImageKind = ImageKind.DISK
    format: SourceFormat | None = None
    description: str = ""
    seed: Seed = Seed.HOUSE
    agent: bool = True
    ssh_port: bool = True
