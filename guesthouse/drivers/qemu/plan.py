"""From what is wanted and what is there to what is started. Pure: nothing here touches the host.

`make_plan` decides; argv.py writes the plan down for QEMU and opening.py opens what it names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from guesthouse.drivers.base import NVRAM, DiskSource, Resources
from guesthouse.errors import HostLacks, InvalidInput, NoMemory
from guesthouse.guestos.seed import smbios_value
from guesthouse.host.firmware import Ovmf
from guesthouse.host.probe_qemu import KVM_DEVICE_FD, USER_NETWORK, require_qemu
from guesthouse.model.device import MAX_CARDS, DiskDevice
from guesthouse.model.document import Noun
from guesthouse.model.guest import BootPath, Firmware, Guest, GuestSpec, OnPanic
from guesthouse.model.host import HostFacts, QemuBinary
from guesthouse.model.units import format_size
from guesthouse.network.base import Attachment

TCG_CPU = "qemu64"
"""Boots Debian faster than `max`, for whose extensions the kernel loads emulated crypto modules.

Debian's userland asks for no more than x86-64-v1. A guest that needs more names its model.
"""
KVM_CPU = "host"

MAX_DISKS = 14
MAX_DISCS = 4
"""CD-ROM drives; the chipset's SATA controller has six ports."""

_CPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=,-]*")


class Layer(Noun, kw_only=True, frozen=True):
    """One file of a chain. :ivar format: `qcow2` or `raw`."""

    path: str
    format: str
    writable: bool


class PlannedDisk(Noun, kw_only=True, frozen=True):
    """:ivar layers: top first."""

    layers: tuple[Layer, ...]
    read_only: bool = False
    serial: str = ""
    device: DiskDevice = DiskDevice.DISK


class PlannedNic(Noun, kw_only=True, frozen=True):
    """:ivar netdev: as in `Attachment`, with `{fd}` if `tap`. The others are as in `Nic`."""

    index: int
    plug: int | None = None
    mac: str
    netdev: str
    tap: bool = False


class PlannedKernel(Noun, kw_only=True, frozen=True):
    kernel: str
    initrd: str
    append: str


class PlannedUefi(Noun, kw_only=True, frozen=True):
    code: Layer
    nvram: PlannedDisk


class Plan(Noun, kw_only=True, frozen=True):
    """Everything about one start.

    :ivar memory: bytes. :ivar kvm_device: KVM's device is passed as a descriptor.
    :ivar reboot_ends: a reboot inside ends this process, for the next start takes another way.
    :ivar seed: value of an SMBIOS OEM string, or empty.
    """

    name: str
    uuid: str
    qemu: str
    machine: str
    accelerator: str
    accelerator_reason: str
    kvm_device: bool
    cpu: str
    cpus: int
    memory: int
    disks: tuple[PlannedDisk, ...]
    nics: tuple[PlannedNic, ...]
    kernel: PlannedKernel | None
    uefi: PlannedUefi | None
    boot: BootPath
    reboot_ends: bool
    on_panic: OnPanic
    display: bool
    seed: str


def make_plan(
    guest: Guest,
    resources: Resources,
    facts: HostFacts,
    nics: Sequence[Attachment],
    ovmf: Ovmf | None,
) -> Plan:
    """:param nics: one for each card of the guest.

    :raise QemuMissing: :raise QemuTooOld: :raise HostLacks: accelerator, machine type or firmware.
    :raise NoMemory: more than the host has. :raise InvalidInput: names the field.
    """
    spec = guest.spec
    qemu = require_qemu(facts)
    _check(spec, facts)
    _check_nics(nics, qemu)
    accelerator, reason = _accelerator(spec, facts)
    kernel = _kernel(resources, accelerator)
    disks = tuple(_disk(source) for source in resources.disks if source.name != NVRAM)
    return Plan(
        name=guest.name,
        uuid=guest.uuid,
        qemu=qemu.path,
        machine=_machine(spec, qemu),
        accelerator=accelerator,
        accelerator_reason=reason,
        kvm_device=accelerator == "kvm" and KVM_DEVICE_FD in qemu.features,
        cpu=_cpu(spec, accelerator),
        cpus=spec.cpus,
        memory=spec.memory,
        disks=disks,
        nics=tuple(
            PlannedNic(
                index=nic.index,
                plug=nic.plug,
                mac=nic.mac,
                netdev=found.netdev,
                tap=found.fd is not None,
            )
            for nic, found in zip(spec.nics, nics, strict=True)
        ),
        kernel=kernel,
        uefi=_uefi(spec, resources, ovmf),
        boot=resources.boot,
        # Only where the image has a disk of its own to boot from next time.
        reboot_ends=kernel is not None and spec.boot is BootPath.FIRST_KERNEL,
        on_panic=spec.on_panic,
        display=spec.display,
        seed=smbios_value(resources.seed) if resources.seed else "",
    )


def _check(spec: GuestSpec, facts: HostFacts) -> None:
    if len(spec.disks) > MAX_DISKS:
        raise InvalidInput(f"A guest has at most {MAX_DISKS} disks.", field="disks")
    if sum(disk.device is DiskDevice.CDROM for disk in spec.disks) > MAX_DISCS:
        raise InvalidInput(f"A guest has at most {MAX_DISCS} CD-ROM drives.", field="disks")
    if len(spec.nics) > MAX_CARDS:
        raise InvalidInput(f"A guest has at most {MAX_CARDS} network cards.", field="nics")
    if spec.memory > facts.memory:
        raise NoMemory(
            f"The guest wants {format_size(spec.memory)} of memory; this host has "
            f"{format_size(facts.memory)} in all.",
            hint="Give it less memory.",
            wanted=spec.memory,
            total=facts.memory,
        )


def _check_nics(nics: Sequence[Attachment], qemu: QemuBinary) -> None:
    if USER_NETWORK not in qemu.features and any(n.netdev.startswith("user,") for n in nics):
        raise HostLacks(
            f"{qemu.path} was built without user networking (libslirp).",
            hint="Use a QEMU that has it, or a guest without network cards.",
            capability="user-network",
        )


def _accelerator(spec: GuestSpec, facts: HostFacts) -> tuple[str, str]:
    if spec.accelerator == "tcg":
        return "tcg", "Asked for."
    if spec.accelerator == "auto":
        return facts.accelerator, facts.accelerator_reason
    kvm = facts.capability("kvm")
    if facts.accelerator != "kvm" and (kvm is None or not kvm.available):
        raise HostLacks(
            f"This host cannot run guests by KVM. {kvm.reason if kvm else ''}".strip(),
            hint=(kvm.cure if kvm else "") or "Set the accelerator to auto or tcg.",
            capability="kvm",
        )
    return "kvm", "Asked for."


def _machine(spec: GuestSpec, qemu: QemuBinary) -> str:
    if spec.machine and spec.machine not in qemu.machines:
        raise HostLacks(
            f"QEMU {qemu.version_text} does not offer the machine type {spec.machine!r}.",
            hint=f"Its newest is {qemu.machine}; a guest of a newer QEMU needs that QEMU.",
            capability="qemu",
            machine=spec.machine,
        )
    return spec.machine or qemu.machine


def _cpu(spec: GuestSpec, accelerator: str) -> str:
    if spec.cpu and not _CPU.fullmatch(spec.cpu):
        raise InvalidInput(f"{spec.cpu!r} is no CPU model.", field="cpu")
    if spec.cpu == KVM_CPU and accelerator != "kvm":
        raise InvalidInput(
            "The CPU model 'host' exists under KVM only, and this guest is emulated.",
            hint="Leave the model empty, or name one.",
            field="cpu",
        )
    return spec.cpu or (KVM_CPU if accelerator == "kvm" else TCG_CPU)


def _kernel(resources: Resources, accelerator: str) -> PlannedKernel | None:
    files = resources.boot_files
    if resources.boot is not BootPath.KERNEL:
        return None
    if files is None:
        raise InvalidInput(
            "The image has no kernel to boot directly.",
            hint="Set the boot path to disk.",
            field="boot",
        )
    append = files.cmdline.split()
    # An emulated guest on a busy host can panic while it checks its timers against each other.
    if accelerator == "tcg" and "no_timer_check" not in append:
        append.append("no_timer_check")
    return PlannedKernel(kernel=files.kernel, initrd=files.initrd, append=" ".join(append))


def _uefi(spec: GuestSpec, resources: Resources, ovmf: Ovmf | None) -> PlannedUefi | None:
    if spec.firmware is not Firmware.UEFI:
        return None
    if ovmf is None:
        raise HostLacks(
            "This host has no UEFI firmware.", hint="apt install ovmf", capability="ovmf"
        )
    nvram = next((source for source in resources.disks if source.name == NVRAM), None)
    if nvram is None:
        raise InvalidInput(
            "A UEFI guest needs a volume for the firmware's variables, and this one has none.",
            hint="Make the guest anew, or set firmware=bios.",
            field="firmware",
        )
    code = Layer(path=str(ovmf.code), format="raw", writable=False)
    return PlannedUefi(code=code, nvram=_disk(nvram))


def _disk(source: DiskSource) -> PlannedDisk:
    return PlannedDisk(
        layers=tuple(
            Layer(
                path=str(path),
                format=format_of(path),
                writable=index == 0 and not source.read_only,
            )
            for index, path in enumerate(source.chain)
        ),
        read_only=source.read_only,
        serial=source.serial,
        device=source.device,
    )


def format_of(path: Path) -> str:
    """By the name that the house gave the file; contents are the guest's and are not asked."""
    return "qcow2" if path.suffix == ".qcow2" else "raw"
