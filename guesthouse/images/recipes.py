"""What there is to build, and of what: one record per image."""

from __future__ import annotations

from pathlib import Path

import msgspec

from guesthouse.model.image import Seed

FILES = Path(__file__).parent / "files"
"""What goes into guests: scripts, units, settings."""

# Software emulation under load lets the kernel's timer check fail and panic. The tests that the
# kernel makes of its own ciphers take 0.3 seconds of a start there.
_QUIET = "console=ttyS0 quiet no_timer_check cryptomgr.notests"


class DebianRecipe(msgspec.Struct, frozen=True, kw_only=True, tag="debian"):
    """A Debian of its own disk. `size` in bytes is that of the disk before a guest enlarges it.

    With the seed `nocloud` nothing of ours is in it that a guest would ask: cloud-init does that.
    """

    name: str
    description: str
    suite: str
    os: dict[str, str]
    packages: tuple[str, ...]
    architecture: str = "amd64"
    size: int = 4 << 30
    cmdline: str = f"root=LABEL=root ro console=tty0 {_QUIET}"
    seed: Seed = Seed.HOUSE


class MicroRecipe(msgspec.Struct, frozen=True, kw_only=True, tag="micro"):
    """A guest that lives in its initrd."""

    name: str
    description: str
    suite: str
    os: dict[str, str]
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    architecture: str = "amd64"
    cmdline: str = f"{_QUIET} rdinit=/init"
    seed: Seed = Seed.HOUSE


Recipe = DebianRecipe | MicroRecipe

_DEBIAN_PACKAGES = (
    "busybox-static",  # for the small initrd of direct starts; update-initramfs takes it too
    "ca-certificates",
    "dbus",
    "fdisk",  # sfdisk grows the root partition
    "grub-efi-amd64-bin",
    "grub-pc-bin",
    "grub2-common",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "kmod",
    "linux-image-cloud-amd64",
    "netbase",
    "openssh-server",
    "qemu-guest-agent",
    "sshfs",  # mounts shared folders over a virtio-serial port
    "sudo",
    "systemd",
    "systemd-resolved",
    "systemd-sysv",
    "systemd-timesyncd",
    "udev",
    "zstd",
)

_CLOUD_PACKAGES = (
    "cloud-guest-utils",  # growpart
    "cloud-init",
)

_MICRO_MODULES = (
    "virtio_pci", "virtio_console", "virtio_rng", "virtio_net", "virtio_blk", "virtio_balloon",
    "virtio_scsi", "sd_mod", "sr_mod", "virtio_mem", "virtio_mmio", "fuse", "virtiofs", "button",
    "evdev", "pvpanic_pci", "pvpanic_mmio", "overlay", "loop", "isofs", "squashfs", "vfat",
    "nls_ascii", "nls_cp437", "vmw_vsock_virtio_transport",
)  # fmt: skip

RECIPES: tuple[Recipe, ...] = (
    DebianRecipe(
        name="debian/12",
        description="Debian 12 (bookworm), small and ready for the house",
        suite="bookworm",
        os={"id": "debian", "version": "12", "pretty": "Debian GNU/Linux 12 (bookworm)"},
        packages=_DEBIAN_PACKAGES,
    ),
    DebianRecipe(
        name="debian/13",
        description="Debian 13 (trixie), small and ready for the house",
        suite="trixie",
        os={"id": "debian", "version": "13", "pretty": "Debian GNU/Linux 13 (trixie)"},
        packages=_DEBIAN_PACKAGES,
    ),
    DebianRecipe(
        name="debian/12-cloud",
        description="Debian 12 as clouds have it: cloud-init sets it up (--cloud-init, --ssh-key)",
        suite="bookworm",
        os={"id": "debian", "version": "12", "pretty": "Debian GNU/Linux 12 (bookworm)"},
        packages=tuple(sorted(_DEBIAN_PACKAGES + _CLOUD_PACKAGES)),
        seed=Seed.NOCLOUD,
    ),
    MicroRecipe(
        name="micro",
        description="A guest of busybox, agent and ssh that starts in two seconds",
        suite="bookworm",
        os={"id": "guesthouse-micro", "version": "1", "pretty": "Guesthouse micro 1"},
        packages=(
            "linux-image-cloud-amd64",
            "busybox-static",
            "qemu-guest-agent",
            "dropbear-bin",
            "perl-base",
            "sshfs",
        ),
        modules=_MICRO_MODULES,
    ),
)
