"""A guest, a host and resources in (argv/CASE.json), QEMU's command line out (argv/CASE.argv).

A case names what differs from BASE. Descriptors appear by name: `<disk0.0>`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from guesthouse.drivers.base import DiskSource, Resources
from guesthouse.drivers.qemu.argv import build_argv
from guesthouse.drivers.qemu.plan import Plan, make_plan
from guesthouse.errors import GuesthouseError
from guesthouse.guestos.seed import seed_text
from guesthouse.host.firmware import Ovmf
from guesthouse.model.device import DiskDevice
from guesthouse.model.document import convert_strict
from guesthouse.model.guest import BootPath, Guest, GuestSpec, GuestStatus
from guesthouse.model.host import Capability, HostFacts, QemuBinary
from guesthouse.model.image import BootFiles
from guesthouse.model.states import GuestState
from guesthouse.network.base import Attachment
from guesthouse.network.builtin import netdev

from .conftest import Golden

CASES = Path(__file__).parent / "argv"
GUEST_ID = "01JD000000000000000000WEB1"
FILES = {
    "kernel": "/images/vmlinuz",
    "initrd": "/images/initrd.img",
    "kernel_digest": "",
    "initrd_digest": "",
    "cmdline": "root=LABEL=root ro console=ttyS0",
}
QEMUS = {
    "7.2": QemuBinary(
        path="/usr/bin/qemu-system-x86_64",
        version=(7, 2, 22),
        machine="pc-q35-7.2",
        machines=("pc-q35-7.2", "pc-q35-7.1"),
        features=frozenset({"user-network"}),
    ),
    "10.0": QemuBinary(
        path="/usr/bin/qemu-system-x86_64",
        version=(10, 0, 2),
        machine="pc-q35-10.0",
        machines=("pc-q35-10.0", "pc-q35-9.2", "pc-q35-7.2"),
        features=frozenset({"user-network", "kvm-device-fd"}),
    ),
}


def host(case: dict[str, Any]) -> HostFacts:
    kvm = case.get("kvm", False)
    reason = "A trial guest ran to its end under KVM." if kvm else "There is no /dev/kvm."
    return HostFacts(
        boot_id="boot",
        kernel="6.1",
        os="Debian",
        cpus=8,
        memory=case.get("host_memory", 64 << 30),
        cgroups="v2",
        root=True,
        accelerator="kvm" if kvm else "tcg",
        accelerator_reason=reason,
        qemu=msgspec.structs.replace(
            QEMUS[case.get("qemu", "7.2")],
            **({"features": frozenset()} if case.get("bare") else {}),
        ),
        capabilities=(Capability(name="kvm", available=kvm, reason=reason, cure="modprobe kvm"),),
        probed_at=0.0,
    )


def guest(case: dict[str, Any]) -> Guest:
    spec = convert_strict(
        {"image": "debian/12", "image_id": "01JD00000000000000000IMAGE", **case.get("spec", {})},
        GuestSpec,
    )
    return Guest(
        id=GUEST_ID,
        name=case.get("name", "web"),
        uuid="11111111-2222-3333-4444-555555555555",
        number=1,
        created_at=0.0,
        spec=spec,
        status=GuestStatus(state=GuestState.STARTING, since=0.0),
    )


def resources(case: dict[str, Any]) -> Resources:
    disks = tuple(
        DiskSource(
            name=disk["name"],
            chain=tuple(Path(path) for path in disk["chain"]),
            size=disk.get("size", 4 << 30),
            read_only=disk.get("read_only", False),
            serial=disk.get("serial", ""),
            device=DiskDevice(disk.get("device", "disk")),
        )
        for disk in case.get("disks", [])
    )
    boot = BootPath(case.get("boot", "disk"))
    seed = seed_text("web", "guest", [], GUEST_ID) if case.get("seed") else ""
    files = convert_strict(FILES, BootFiles) if boot is BootPath.KERNEL else None
    return Resources(
        disks=disks,
        runtime=Path("/run/g"),
        state=Path("/var/g"),
        seed=seed,
        boot=boot,
        boot_files=files,
    )


def plan(case: dict[str, Any]) -> Plan:
    wanted = guest(case)
    nics = [
        Attachment(f"tap,id=n{nic.index},fd={{fd}}", 0)
        if nic.network == "lan"
        else Attachment(netdev(nic, nic.index, hostname=wanted.name))
        for nic in wanted.spec.nics
    ]
    ovmf = Ovmf(Path("/fw/CODE.fd"), Path("/fw/VARS.fd")) if case.get("ovmf", True) else None
    return make_plan(wanted, resources(case), host(case), nics, ovmf)


def written(case: dict[str, Any]) -> str:
    """The command line with one option a line, or the error that refuses it."""
    try:
        argv = build_argv(plan(case), lambda name: f"<{name}>")
    except GuesthouseError as error:
        return f"{type(error).__name__}: {error}\n"
    lines: list[str] = []
    for word in argv:
        if word.startswith("-") or not lines or " " in lines[-1] or lines[-1] == argv[0]:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", sorted(path.stem for path in CASES.glob("*.json")))
def test_argv(name: str, golden: Golden) -> None:
    case = json.loads((CASES / f"{name}.json").read_text())
    golden.check(CASES / f"{name}.argv", written(case))


def test_there_are_enough_cases_and_no_orphans() -> None:
    cases = {path.stem for path in CASES.glob("*.json")}
    assert len(cases) >= 30
    assert {path.stem for path in CASES.glob("*.argv")} == cases
