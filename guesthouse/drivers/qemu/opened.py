"""What a plan needs open, by name, in the order in which numbers are given. Pure.

Names: `qmp`, `keeper`, `agent`, `ssh`, `serial` are listening sockets; `ram` the memory; `kvm`
its device; `kernel` and `initrd`; `code` the firmware; `nvram.0`, `disk0.0` … the layers, `w` added
where a second, writable descriptor of the same file goes beside the read-only one; `tap0` … taps.
"""

from __future__ import annotations

from typing import NamedTuple

from guesthouse.drivers.qemu.plan import Layer, Plan, PlannedDisk

SOCKETS = ("qmp", "keeper", "agent", "ssh", "serial")


class File(NamedTuple):
    name: str
    path: str
    writable: bool


def layer_name(disk: str, depth: int) -> str:
    """Of layer `depth` (0 is the top) of `disk` (`disk0`, `nvram`)."""
    return f"{disk}.{depth}"


def files(plan: Plan) -> list[File]:
    """Every file that QEMU gets as a descriptor."""
    found: list[File] = []
    if plan.kvm_device:
        found.append(File("kvm", "/dev/kvm", True))
    if plan.kernel is not None:
        found.append(File("kernel", plan.kernel.kernel, False))
        found.append(File("initrd", plan.kernel.initrd, False))
    if plan.uefi is not None:
        found.append(File("code", plan.uefi.code.path, False))
        found += _chain("nvram", plan.uefi.nvram)
    for index, disk in enumerate(plan.disks):
        found += _chain(f"disk{index}", disk)
    return found


def _chain(disk: str, planned: PlannedDisk) -> list[File]:
    found: list[File] = []
    for depth, layer in enumerate(planned.layers):
        found += _layer(layer_name(disk, depth), layer)
    return found


def _layer(name: str, layer: Layer) -> list[File]:
    """QEMU picks from the set of a file the descriptor with the access that it wants now."""
    found = [File(name, layer.path, False)]
    if layer.writable:
        found.append(File(f"{name}w", layer.path, True))
    return found
