"""A Debian tree made into a disk that starts under BIOS and UEFI, without mounts or loop devices.

Partitions, in the order they lie: 14 GRUB's core for BIOS, 15 the EFI system partition, 1 the root
file system, last so that it can grow. Under BIOS GRUB's core knows its own disk; under UEFI the
loader's grub.cfg on the ESP looks at the disk it came from. Both go on to /boot/grub/grub.cfg,
which Debian's update-grub writes anew at every change of the kernel.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guesthouse.errors import BuildFailed
from guesthouse.images import gpt
from guesthouse.images.gpt import MIB, Partition
from guesthouse.images.recipes import FILES
from guesthouse.images.spec import Progress
from guesthouse.images.toolrun import ToolRunner

ROOT_LABEL = "root"
_ESP_LABEL = "ESP"
_ESP_BYTES = 64 * MIB
_COPY_BYTES = MIB

# The boot code that mformat leaves in the first sector (and its copy in the seventh) looks like a
# partition table to grub-probe, which then complains at each update-grub.
_FAT_BOOT_SECTORS = (0, 6)
_MBR_TABLE, _MBR_TABLE_BYTES = 446, 64

# Named one by one: the defaults of newer mke2fs include what GRUB of Debian 12 cannot read.
_EXT4 = (
    "none", "has_journal", "ext_attr", "resize_inode", "dir_index", "filetype", "extent", "64bit",
    "flex_bg", "sparse_super", "large_file", "huge_file", "dir_nlink", "extra_isize",
    "metadata_csum",
)  # fmt: skip


@dataclass(frozen=True)
class Loader:
    """GRUB's images: boot sector and core for BIOS, and the EFI program."""

    boot: Path
    core: Path
    efi: Path


def layout(size: int) -> tuple[Partition, Partition, Partition]:
    """BIOS boot, ESP and root partition of a disk of `size` bytes."""
    bios = Partition(14, gpt.BIOS_BOOT, "bios", MIB, MIB)
    esp = Partition(15, gpt.EFI_SYSTEM, "esp", 2 * MIB, _ESP_BYTES)
    start = esp.start + esp.size
    root = Partition(1, gpt.LINUX_ROOT_X86_64, "root", start, size - start - MIB)
    return bios, esp, root


async def write(
    raw: Path,
    size: int,
    tree: Path,
    loader: Loader,
    run: ToolRunner,
    *,
    as_root: Sequence[str],
) -> None:
    """Writes the whole disk into `raw`, a sparse file of `size` bytes.

    `as_root` begins the commands that must read the tree as its root. Raises BuildFailed.
    """
    bios, esp, root = layout(size)
    esp_image = raw.with_suffix(".esp")
    with raw.open("wb") as file:
        file.truncate(size)
    await run.run(
        [
            *as_root,
            *("mke2fs", "-q", "-F", "-t", "ext4", "-L", ROOT_LABEL, "-U", str(uuid.uuid4())),
            *("-m", "1", "-O", ",".join(_EXT4)),
            *("-E", f"lazy_itable_init=1,lazy_journal_init=1,offset={root.start}"),
            *("-d", str(tree), str(raw), f"{root.size // 1024}k"),
        ],
        doing="writing the root file system",
    )
    await _make_esp(esp_image, loader, run)
    await asyncio.to_thread(_place_boot, raw, size, loader, esp_image, (bios, esp, root))


async def compress(raw: Path, out: Path, run: ToolRunner, progress: Progress) -> None:
    """Converts the raw disk to a read-only qcow2, compressed by zstd."""

    def on_line(line: str) -> None:
        number = line.strip().strip("()").partition("/")[0]  # "    (42.01/100%)"
        if number.replace(".", "", 1).isdigit():
            progress(float(number) / 100, "compressing the disk")

    progress(0.0, "compressing the disk")
    await run.run(
        [
            *("qemu-img", "convert", "-p", "-c", "-W", "-f", "raw", "-O", "qcow2"),
            *("-o", "compression_type=zstd,lazy_refcounts=off", str(raw), str(out)),
        ],
        doing="compressing the disk",
        on_line=on_line,
    )
    out.chmod(0o444)


async def _make_esp(image: Path, loader: Loader, run: ToolRunner) -> None:
    with image.open("wb") as file:
        file.truncate(_ESP_BYTES)
    folder = "::/EFI/BOOT"
    config = FILES / "debian" / "esp-grub.cfg"
    for argv in (
        ["mformat", "-i", str(image), "-F", "-v", _ESP_LABEL, "::"],
        ["mmd", "-i", str(image), "::/EFI", folder],
        ["mcopy", "-i", str(image), str(loader.efi), f"{folder}/BOOTX64.EFI"],
        ["mcopy", "-i", str(image), str(config), f"{folder}/grub.cfg"],
    ):
        await run.run(argv, doing="writing the EFI system partition")
    with image.open("r+b") as file:
        for sector in _FAT_BOOT_SECTORS:
            file.seek(sector * gpt.SECTOR + _MBR_TABLE)
            file.write(bytes(_MBR_TABLE_BYTES))


def _place_boot(
    raw: Path, size: int, loader: Loader, esp_image: Path, partitions: Sequence[Partition]
) -> None:
    bios, esp, _ = partitions
    core = gpt.embedded_core(loader.core.read_bytes(), bios.start)
    if len(core) > bios.size:
        raise BuildFailed(f"GRUB's core of {len(core)} bytes does not fit into its partition.")
    with raw.open("r+b") as disk:
        mbr = gpt.boot_sector(loader.boot.read_bytes(), bios.start)
        gpt.write_table(disk, size, partitions, mbr)
        disk.seek(bios.start)
        disk.write(core)
        with esp_image.open("rb") as source:
            place = esp.start
            while block := source.read(_COPY_BYTES):
                if block.count(0) != len(block):  # keeps the file sparse
                    disk.seek(place)
                    disk.write(block)
                place += len(block)
