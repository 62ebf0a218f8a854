"""A plan as QEMU's command line. Pure; `fd` gives the number of each open thing (see opened.py).

Facts: qemu-options.hx and the properties of `-device NAME,help` of QEMU 7.2 and 10.0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from guesthouse.drivers.qemu import places
from guesthouse.drivers.qemu.opened import File, files, layer_name
from guesthouse.drivers.qemu.plan import Plan, PlannedDisk
from guesthouse.model.device import DiskDevice
from guesthouse.model.guest import OnPanic
from guesthouse.network.builtin import escape, netdev_id

Fd = Callable[[str], str]
"""Name of an open thing -> its number in QEMU's process."""

_KEPT_OUT_OF_SETS = frozenset({"kernel", "initrd"})
"""QEMU reads these by plain paths only, so they are named through /proc/self/fd."""


def build_argv(plan: Plan, fd: Fd) -> list[str]:
    """The whole command. QEMU starts paused (`-S`), whatever the guest is to do afterwards."""
    sets = fd_sets(plan)
    return [
        plan.qemu,
        *_process(plan),
        *_machine(plan, fd, sets),
        *_descriptors(plan, fd, sets),
        *_firmware(plan, sets),
        *_boot(plan, fd),
        *_monitors(fd),
        *_bridges(),
        *_display(plan),
        *_channels(fd),
        *_small_devices(plan),
        *_disks(plan, sets),
        *_nics(plan, fd),
    ]


def fd_sets(plan: Plan) -> dict[str, int]:
    """Number of the set (`/dev/fdset/N`) of each file; a file's two descriptors share one."""
    sets: dict[str, int] = {}
    for file in files(plan):
        if file.name not in _KEPT_OUT_OF_SETS and _set_name(file) not in sets:
            sets[_set_name(file)] = len(sets) + 1
    return sets


def _set_name(file: File) -> str:
    return file.name.removesuffix("w")


def _process(plan: Plan) -> Iterator[str]:
    yield from ("-name", f"guest={escape(plan.name)},debug-threads=on", "-uuid", plan.uuid)
    yield from ("-S", "-nodefaults", "-no-user-config")
    # The second wall behind the dropped privileges (docs/design/isolation.md).
    sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    yield from ("-sandbox", sandbox)
    panic = "shutdown" if plan.on_panic is OnPanic.STOP else "pause"
    reboot = ",reboot=shutdown" if plan.reboot_ends else ""
    yield from ("-action", f"panic={panic}{reboot}")


def _machine(plan: Plan, fd: Fd, sets: dict[str, int]) -> Iterator[str]:
    parts = [plan.machine, "memory-backend=ram", "dump-guest-core=off"]
    # What no guest of ours needs and every guest's kernel would spend time on.
    sata = any(_is_disc(disk) for disk in plan.disks)
    parts += ["vmport=off", "smm=off", *([] if sata else ["sata=off"]), "smbus=off"]
    if plan.uefi is not None:
        parts += ["pflash0=code", f"pflash1={_node('nvram', 0)}"]
    yield from ("-machine", ",".join(parts))
    if plan.accelerator == "kvm":
        device = f",device={_set_path(sets['kvm'])}" if plan.kvm_device else ""
        yield from ("-accel", f"kvm{device}")
    else:
        yield from ("-accel", "tcg,thread=multi")
    yield from ("-cpu", plan.cpu)
    yield from ("-smp", f"cpus={plan.cpus},sockets=1,cores={plan.cpus},threads=1")
    yield from ("-m", f"size={plan.memory >> 20}M")
    # Shared and by descriptor: what forks and shared folders build on.
    path = f"/proc/self/fd/{fd('ram')}"
    yield from (
        "-object",
        f"memory-backend-file,id=ram,size={plan.memory},mem-path={path},share=on",
    )


def _descriptors(plan: Plan, fd: Fd, sets: dict[str, int]) -> Iterator[str]:
    for file in files(plan):
        number = sets.get(_set_name(file))
        if number is not None:
            yield from ("-add-fd", f"fd={fd(file.name)},set={number},opaque={file.name}")


def _firmware(plan: Plan, sets: dict[str, int]) -> Iterator[str]:
    if plan.uefi is None:
        return
    code = {"driver": "file", "node-name": "code-file", "filename": _set_path(sets["code"])}
    yield from ("-blockdev", _json({**code, "read-only": True}))
    yield from (
        "-blockdev",
        _json({"driver": "raw", "node-name": "code", "file": "code-file", "read-only": True}),
    )
    yield from _chain("nvram", plan.uefi.nvram, sets)


def _boot(plan: Plan, fd: Fd) -> Iterator[str]:
    yield from ("-boot", "strict=on")
    yield from ("-rtc", "base=utc")
    if plan.kernel is not None:
        yield from ("-kernel", f"/proc/self/fd/{fd('kernel')}")
        yield from ("-initrd", f"/proc/self/fd/{fd('initrd')}")
        yield from ("-append", plan.kernel.append)
    yield from ("-smbios", f"type=1,manufacturer=Guesthouse,product=Guesthouse,uuid={plan.uuid}")
    if plan.seed:
        yield from ("-smbios", f"type=11,value={escape(plan.seed)}")


def _monitors(fd: Fd) -> Iterator[str]:
    """One for the daemon, which comes and goes, and one for the keeper, which only listens."""
    for name in ("qmp", "keeper"):
        yield from ("-chardev", _listening(name, fd))
        yield from ("-mon", f"chardev={name},mode=control")


def _listening(name: str, fd: Fd) -> str:
    return f"socket,id={name},fd={fd(name)},server=on,wait=off"


def _bridges() -> Iterator[str]:
    """Ports for what is plugged in later; q35's own bus takes nothing once the guest runs."""
    for index in range(places.PLUG_PORTS):
        first = ",multifunction=on" if index == 0 else ""
        yield from (
            "-device",
            f"pcie-root-port,id={places.plug_bus(index)},chassis={index + 1},"
            f"{places.plug(index)}{first}",
        )


def _display(plan: Plan) -> Iterator[str]:
    yield from ("-display", "none", "-vga", "none")
    if plan.display:
        yield from ("-device", f"VGA,id=video,{places.VIDEO}")
        # Without an address: connections come as descriptors, by the monitor.
        yield from ("-vnc", "none")
        # Absolute pointing without a USB controller to poll; PS/2 serves until it has a driver.
        yield from ("-device", f"virtio-tablet-pci,id=tablet,{places.TABLET}")


def _channels(fd: Fd) -> Iterator[str]:
    yield from ("-chardev", _listening("serial", fd))
    yield from ("-device", "isa-serial,id=serial0,chardev=serial")
    yield from ("-device", f"virtio-serial-pci,id=ports,max_ports=16,{places.SERIAL}")
    # VSERPORT_CHANGE is told only of ports that have an id.
    for name, port in (("agent", "org.qemu.guest_agent.0"), ("ssh", "house.guest.ssh.0")):
        yield from ("-chardev", _listening(name, fd))
        yield from ("-device", f"virtserialport,id={name}0,bus=ports.0,chardev={name},name={port}")


def _small_devices(plan: Plan) -> Iterator[str]:
    yield from ("-object", "rng-random,id=random,filename=/dev/urandom")
    yield from ("-device", f"virtio-rng-pci,id=rng,rng=random,{places.RNG}")
    yield from (
        "-device",
        f"virtio-balloon-pci,id=balloon,free-page-reporting=on,{places.BALLOON}",
    )
    yield from ("-device", f"pvpanic-pci,id=panic,{places.PANIC}")
    yield from ("-device", f"vmgenid,id=generation,guid={plan.uuid}")


def _is_disc(disk: PlannedDisk) -> bool:
    return disk.device is DiskDevice.CDROM


def _disks(plan: Plan, sets: dict[str, int]) -> Iterator[str]:
    """Disks boot before discs. An empty disk does not boot, so an installer's disc does, until it
    has written the disk.
    """
    discs = [index for index, disk in enumerate(plan.disks) if _is_disc(disk)]
    disks = [index for index, disk in enumerate(plan.disks) if not _is_disc(disk)]
    order = {index: place for place, index in enumerate([*disks, *discs], start=1)}
    for index, disk in enumerate(plan.disks):
        yield from _chain(f"disk{index}", disk, sets)
        if _is_disc(disk):
            # On the chipset's own controller, which every system's installer knows.
            yield from (
                "-device",
                f"ide-cd,id=disk{index},drive={_node(f'disk{index}', 0)},"
                f"bus=ide.{discs.index(index)},bootindex={order[index]}",
            )
            continue
        options = [
            f"virtio-blk-pci,id=disk{index},drive={_node(f'disk{index}', 0)}",
            places.disk(index),
            f"bootindex={order[index]}",
            # A full host pauses the guest, which goes on when there is room again. A read that
            # fails loses nothing: the guest learns of it.
            "werror=stop,rerror=report",
        ]
        if disk.serial:
            options.append(f"serial={escape(disk.serial)}")
        yield from ("-device", ",".join(options))


def _chain(name: str, disk: PlannedDisk, sets: dict[str, int]) -> Iterator[str]:
    """Two nodes a layer, base first, each with its backing node named.

    So QEMU never opens a path that it reads from a header.
    """
    for depth in reversed(range(len(disk.layers))):
        layer = disk.layers[depth]
        file: dict[str, object] = {
            "driver": "file",
            "node-name": f"{_node(name, depth)}-file",
            "filename": _set_path(sets[layer_name(name, depth)]),
            "auto-read-only": False,
            "read-only": not layer.writable,
        }
        node: dict[str, object] = {
            "driver": layer.format,
            "node-name": _node(name, depth),
            "file": f"{_node(name, depth)}-file",
            "read-only": not layer.writable,
        }
        if layer.writable:
            file["discard"] = "unmap"
            node |= {"discard": "unmap", "detect-zeroes": "unmap"}
        if layer.format == "qcow2":
            base = depth == len(disk.layers) - 1
            node["backing"] = None if base else _node(name, depth + 1)
        yield from ("-blockdev", _json(file), "-blockdev", _json(node))


def _node(disk: str, depth: int) -> str:
    """A node's name; QEMU takes at most 31 characters."""
    return f"{disk}-{depth}"


def _nics(plan: Plan, fd: Fd) -> Iterator[str]:
    for nic in plan.nics:
        number = fd(f"tap{nic.index}") if nic.tap else ""
        yield from ("-netdev", nic.netdev.replace("{fd}", number) if nic.tap else nic.netdev)
        yield from (
            "-device",
            # No option ROM: nothing boots from the network, and it would cost every start.
            f"virtio-net-pci,id={nic_id(nic.index)},netdev={netdev_id(nic.index)},mac={nic.mac},"
            f"romfile=,{places.nic(nic.index, nic.plug)}",
        )


def nic_id(index: int) -> str:
    """Name of the device of card `index`."""
    return f"nic{index}"


def _set_path(number: int) -> str:
    return f"/dev/fdset/{number}"


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
