"""Debian on a disk of its own: bootstrapped, tuned for a virtual machine, ready for the seed.

Everything that needs root runs in namespaces of its own (`host.userns`), so the same steps serve
root and ordinary users. `files/debian/tree` is laid over the new system, `files/debian/customize`
switches its services and makes GRUB's images.
"""

from __future__ import annotations

import asyncio
import io
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from guesthouse.host import userns
from guesthouse.images import disk, sources
from guesthouse.images.cpio import Archive
from guesthouse.images.kernel import Modules, newest_kernel
from guesthouse.images.recipes import FILES, DebianRecipe
from guesthouse.images.spec import Progress, Workplace, part
from guesthouse.images.toolrun import ToolRunner, require
from guesthouse.model.image import Seed

_FILES = FILES / "debian"
_SECRET_MODES = {"etc/sudoers.d/guesthouse": 0o440}

# What reads our seed or serves the house: not in an image that cloud-init sets up.
_SEEDED = re.compile(
    r"usr/lib/guesthouse/|etc/systemd/system/guesthouse-|etc/systemd/network/|etc/ssh/"
)

# What a direct start needs before it can see its disk.
_INITRD_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "virtio_rng")

# When apt does not say how many packages come, count on this many.
_EXPECTED_PACKAGES = 170


async def build(
    recipe: DebianRecipe, place: Workplace, run: ToolRunner, progress: Progress
) -> dict[str, str]:
    """Writes `disk.qcow2`, `kernel` and `initrd`; returns the facts.

    Raises HostLacks when a tool, the archive's keys or user namespaces are missing, and what
    ToolRunner raises.
    """
    require("mmdebstrap", "apt-get", "mke2fs", "qemu-img", "mformat", "mmd", "mcopy", "unshare")
    sources.require_keyring()
    as_root = await userns.enter()
    tree, boot, raw = place.work / "tree", place.work / "boot", place.work / "disk.raw"
    boot.mkdir()
    await _bootstrap(recipe, place, run, as_root, part(progress, 0.0, 0.85))
    progress(0.85, "writing the small initrd")
    facts = await asyncio.to_thread(_take_boot_files, boot, place.into)
    progress(0.87, "writing the root file system")
    loader = disk.Loader(boot / "boot.img", boot / "core.img", boot / "bootx64.efi")
    await disk.write(raw, recipe.size, tree, loader, run, as_root=as_root)
    await disk.compress(raw, place.into / "disk.qcow2", run, part(progress, 0.93, 1.0))
    progress(1.0, "the image is ready")
    return facts


async def _bootstrap(
    recipe: DebianRecipe, place: Workplace, run: ToolRunner, as_root: Sequence[str],
    progress: Progress,
) -> None:  # fmt: skip
    """Unpacks and configures the packages below `work/tree` and leaves boot files in `work/boot`.

    mmdebstrap takes hooks as shell text: the paths go by the environment, whatever is in them. The
    files are laid over before the packages are configured, so that the initrd is made once and
    in its final form.
    """
    overlay, before, after = await asyncio.to_thread(_write_hooks, place.work, recipe.seed)
    progress(0.0, "preparing")
    await run.run(
        [
            *as_root,
            *("env", f"OVERLAY={overlay}", f"BOOT={place.work / 'boot'}"),
            *(f"LAY_OVER={before}", f"CUSTOMIZE={after}", f"SEED={recipe.seed.value}"),
            *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--verbose"),
            f"--architectures={recipe.architecture}",
            f"--include={','.join(recipe.packages)}",
            '--essential-hook="$LAY_OVER" "$1"',
            '--customize-hook="$CUSTOMIZE" "$1"',
            *(recipe.suite, str(place.work / "tree")),
            *sources.lines_for(recipe.suite, place.mirrors),
        ],
        doing="installing the packages",
        on_line=_follow_apt(progress),
    )
    # Empty, the file is filled at the first start and kept; other contents make that start slow.
    machine_id = place.work / "tree" / "etc" / "machine-id"
    await run.run([*as_root, "truncate", "-s", "0", str(machine_id)], doing="clearing identities")


def _write_hooks(work: Path, seed: Seed) -> tuple[Path, Path, Path]:
    """The overlay as a tar, and the two programs that mmdebstrap calls with the tree's path."""
    ours = seed is Seed.HOUSE
    overlay = work / "overlay.tar"
    with tarfile.open(overlay, "w") as tar:
        for tree in (_FILES / "tree", *(() if ours else (FILES / "cloud",))):
            for path in sorted(tree.rglob("*")):
                name = str(path.relative_to(tree))
                if path.is_file() and (ours or not _SEEDED.match(name)):
                    _add(tar, name, path.read_bytes())
        if ours:
            carrier = FILES / "common" / "guesthouse-ssh"
            _add(tar, "usr/lib/guesthouse/ssh-port", carrier.read_bytes())
    hooks = []
    for name in ("lay-over", "customize"):
        hook = work / name
        shutil.copyfile(_FILES / name, hook)
        hook.chmod(0o755)
        hooks.append(hook)
    return overlay, hooks[0], hooks[1]


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file of root's; what begins with "#!" may be run."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = _SECRET_MODES.get(name, 0o755 if content.startswith(b"#!") else 0o644)
    info.uname = info.gname = "root"
    info.mtime = int(time.time())
    tar.addfile(info, io.BytesIO(content))


def _follow_apt(progress: Progress) -> Callable[[str], None]:
    """Turns apt's and dpkg's lines into a fraction: three lines a package, in three stages."""
    expected = _EXPECTED_PACKAGES
    counts = {"Get:": 0, "Unpacking ": 0, "Setting up ": 0}
    stages = {
        "Get:": (0.3, "downloading packages"),
        "Unpacking ": (0.3, "unpacking packages"),
        "Setting up ": (0.4, "configuring packages"),
    }
    announced = re.compile(r"(\d+) newly installed")

    def on_line(line: str) -> None:
        nonlocal expected
        if match := announced.search(line):
            expected = max(expected, int(match.group(1)))
        for mark, (_, doing) in stages.items():
            if line.startswith(mark):
                counts[mark] += 1
                done = sum(
                    share * min(counts[stage] / expected, 1.0)
                    for stage, (share, _) in stages.items()
                )
                progress(done, doing)

    return on_line


def _take_boot_files(boot: Path, into: Path) -> dict[str, str]:
    """The kernel and a small initrd beside the disk, for starting without a boot loader.

    `boot` holds what the customize hook copied out: boot/vmlinuz-*, lib/modules, busybox, packages.
    """
    version, kernel = newest_kernel(boot)
    shutil.copyfile(kernel, into / "kernel")
    modules = Modules(boot, version)
    archive = Archive()
    for folder in ("dev", "proc", "sys", "root"):
        archive.folder(folder)
    archive.character_device("dev/console", 5, 1, 0o600)
    archive.file("bin/busybox", (boot / "busybox").read_bytes(), 0o755)
    archive.file("init", (FILES / "direct" / "init").read_bytes(), 0o755)
    for place, name in enumerate(modules.closure(_INITRD_MODULES)):
        archive.file(f"modules/{place:02}-{name}.ko", modules.content(name))
    archive.write(into / "initrd")
    for name in ("kernel", "initrd"):
        (into / name).chmod(0o444)
    packages = (boot / "packages").read_text(encoding="utf-8").splitlines()
    shutil.copyfile(boot / "packages", into / "packages")
    return {"kernel": version, "packages": str(len(packages))}
