"""What QEMU is given and what it is not: screen, disks, firmware, accelerator, privileges."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from guesthouse.drivers.base import (
    ENGINE_LOG,
    SERIAL_LOG,
    VNC_SOCKET,
    DiskSource,
    Exit,
)
from guesthouse.drivers.qemu.driver import QemuDriver
from guesthouse.drivers.qemu.identity import Needs
from guesthouse.errors import HostLacks, LaunchFailed
from guesthouse.host.firmware import find_ovmf
from guesthouse.host.kvm_device import examine
from guesthouse.host.launcher import Confinement
from guesthouse.host.namespace.idplan import FIRST_VM
from guesthouse.host.namespace.probing import wanted_plan
from guesthouse.host.spawn import run
from guesthouse.model.guest import BootPath, Firmware
from guesthouse.network.builtin import Builtin
from tests.contract.driver_house import (
    MEBIBYTE,
    DriverHouse,
    driver_house,
    launched,
    make_guest,
    nic,
    this_host,
)

from .micro_image import micro_boot_files
from .qemu_guests import (
    SECONDS,
    ended,
    launch,
    lit,
    micro_guest,
    status,
    type_in,
    until,
    within,
)

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]
GRUB_RESCUE = Path("/usr/lib/grub-rescue/grub-rescue-cdrom.iso")


@pytest.fixture
async def house() -> AsyncIterator[DriverHouse]:
    async with driver_house("qemu", Path(tempfile.mkdtemp(prefix="gq-"))) as made:
        yield made


async def test_screenshot_shows_the_screen(house: DriverHouse) -> None:
    guest = make_guest()
    running = await house.driver.launch(guest, house.resources(guest), incarnation=1)
    for _ in range(100):
        picture = await running.screenshot()
        width, height = struct.unpack(">II", picture[16:24])
        if (width, height) == (720, 400) and lit(picture):  # the firmware's text
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"nothing was seen on the screen of {width} by {height}")


async def test_vnc_speaks_through_the_house_s_socket(house: DriverHouse) -> None:
    guest = make_guest()
    resources = house.resources(guest)
    running = await house.driver.launch(guest, resources, incarnation=1)
    for _ in range(2):
        width, height, name = await rfb_handshake(resources.runtime / VNC_SOCKET)
        assert width > 0
        assert height > 0
        assert guest.name in name
    await running.detach()
    assert not (resources.runtime / VNC_SOCKET).exists()
    await house.again()
    found = await house.driver.attach(launched(guest, running.record), resources)
    assert not isinstance(found, Exit)
    await rfb_handshake(resources.runtime / VNC_SOCKET)


async def rfb_handshake(path: Path) -> tuple[int, int, str]:
    """RFC 6143, 7.1 to 7.3, and one update of the screen."""
    async with asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_unix_connection(path)
        assert await reader.readexactly(12) == b"RFB 003.008\n"
        writer.write(b"RFB 003.008\n")
        offered = await reader.readexactly((await reader.readexactly(1))[0])
        assert 1 in offered  # none: whoever reaches the socket may look
        writer.write(b"\x01")
        assert await reader.readexactly(4) == bytes(4)
        writer.write(b"\x01")
        width, height, _pixel, length = struct.unpack(">HH16sI", await reader.readexactly(24))
        name = (await reader.readexactly(length)).decode()
        writer.write(struct.pack(">BBHHHH", 3, 0, 0, 0, width, height))
        assert (await reader.readexactly(1)) == b"\x00"
        writer.close()
    return width, height, name


async def test_screen_of_a_guest_without_display_is_nowhere(house: DriverHouse) -> None:
    guest = make_guest(display=False)
    resources = house.resources(guest)
    await house.driver.launch(guest, resources, incarnation=1)
    assert not (resources.runtime / VNC_SOCKET).exists()


async def links_of(house: DriverHouse, pid: int) -> list[str]:
    """What a process has open. That of a sub-uid is seen by its house's root alone."""
    argv = ["find", f"/proc/{pid}/fd", "-type", "l", "-printf", r"%l\n"]
    apart = os.geteuid() != 0 and house.identities.lacks is None
    done = await (house.namespace.run(argv) if apart else run(argv))
    return done.text.splitlines()


async def test_privileges_are_gone(house: DriverHouse) -> None:
    guest = micro_guest(nics=(nic(),))
    running = await launch(house, guest)
    pid = running.record.pid
    found = status(pid)
    assert found["CapEff"] == "0" * 16
    assert found["CapPrm"] == "0" * 16
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"
    if house.identities.lacks is None:
        uid, gid = wanted_plan().outside(FIRST_VM)
        assert found["CapBnd"] == "0" * 16
        assert set(found["Uid"].split()) == {str(uid)}
        assert set(found["Gid"].split()) == {str(gid)}
        assert uid >= 65536
        assert found["Groups"] == ""
    # It was given what it needs, and holds no path of the house open for writing but its own.
    links = await links_of(house, pid)
    opened = [link for link in links if link.startswith("/") and not link.startswith("/dev")]
    # Memory without a name in any folder is no path: the guest's, and from QEMU 10.0 its screen's.
    assert [link for link in opened if not link.startswith("/memfd:")] == [
        link for link in opened if link.endswith((ENGINE_LOG, "kernel", "initrd"))
    ]


def make_overlay(folder: Path, size: str = "64M") -> tuple[Path, Path]:
    base, top = folder / "base.qcow2", folder / "top.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2"]
    subprocess.run([*create, str(base), size], check=True)
    subprocess.run([*create, "-F", "qcow2", "-b", "base.qcow2", str(top)], check=True, cwd=folder)
    for path in (base, top):
        path.chmod(0o600)
    return top, base


async def test_disks_by_descriptor_with_locks_that_mean_what_they_say(house: DriverHouse) -> None:
    chain = await asyncio.to_thread(make_overlay, house.folder)
    disk = DiskSource("root", chain, 64 * MEBIBYTE, False, "root-1")
    files = await micro_boot_files()
    guest = micro_guest()
    resources = house.resources(guest, boot=BootPath.KERNEL, boot_files=files, disks=(disk,))
    running = await house.driver.launch(guest, resources, incarnation=1)
    other = micro_guest(name="other", number=8)
    with pytest.raises(LaunchFailed, match="lock"):
        await house.driver.launch(
            other,
            house.resources(other, boot=BootPath.KERNEL, boot_files=files, disks=(disk,)),
            incarnation=1,
        )
    await running.kill()
    await ended(running)
    assert b"fdset" not in await asyncio.to_thread(chain[0].read_bytes)
    # Nobody holds the locks once it is gone.
    await house.driver.launch(launched(guest, running.record), resources, incarnation=2)


async def test_guest_writes_its_disk_and_only_the_top_layer(house: DriverHouse) -> None:
    chain = await asyncio.to_thread(make_overlay, house.folder)
    base_before = await asyncio.to_thread(chain[1].read_bytes)
    disk = DiskSource("root", chain, 64 * MEBIBYTE, False, "root-1")
    guest = micro_guest()
    files = await micro_boot_files()
    resources = house.resources(guest, boot=BootPath.KERNEL, boot_files=files, disks=(disk,))
    running = await house.driver.launch(guest, resources, incarnation=1, paused=True)
    events = running.events()
    await running.resume()
    await until(events, "ssh-open")
    await type_in(
        house,
        running,
        "yes guesthouse | head -c 2097152 >/dev/vda; cat /sys/block/vda/serial; sync; poweroff -f",
    )
    assert (await ended(running)).reason == "guest-shutdown"
    text = (resources.state / SERIAL_LOG).read_text(errors="replace")
    assert "root-1" in text
    assert await asyncio.to_thread(chain[1].read_bytes) == base_before
    raw = house.folder / "raw"
    convert = ["qemu-img", "convert", "-O", "raw", str(chain[0]), str(raw)]
    await asyncio.to_thread(subprocess.run, convert, check=True)
    assert (await asyncio.to_thread(raw.read_bytes)).startswith(b"guesthouse\nguesthouse\n")


@pytest.mark.root
async def test_a_full_host_pauses_the_guest_and_room_lets_it_go_on(house: DriverHouse) -> None:
    small = house.folder / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(small)]
    await asyncio.to_thread(subprocess.run, mount, check=True)
    try:
        chain = await asyncio.to_thread(make_overlay, small)
        disk = DiskSource("root", chain, 64 * MEBIBYTE, False, "root-1")
        guest = micro_guest()
        files = await micro_boot_files()
        resources = house.resources(guest, boot=BootPath.KERNEL, boot_files=files, disks=(disk,))
        running = await house.driver.launch(guest, resources, incarnation=1, paused=True)
        events = running.events()
        await running.resume()
        await until(events, "ssh-open")
        await type_in(
            house,
            running,
            "yes x | head -c 16777216 >/dev/vda && sync && echo ALL-''WRITTEN; poweroff -f",
        )
        await until(events, "io-error")
        await until(events, "paused")
        assert await running.state() == ("paused", "io-error")
        grow = ["mount", "-o", "remount,size=64m", str(small)]
        await asyncio.to_thread(subprocess.run, grow, check=True)
        await running.resume()
        assert (await ended(running)).reason == "guest-shutdown"
        assert "ALL-WRITTEN" in (resources.state / SERIAL_LOG).read_text(errors="replace")
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", "-l", str(small)], check=True)


async def test_uefi_firmware_runs_from_descriptors(house: DriverHouse) -> None:
    ovmf = find_ovmf()
    if ovmf is None:
        pytest.skip("no OVMF here")
    nvram = house.folder / "nvram.qcow2"
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(ovmf.variables), str(nvram)]
    await asyncio.to_thread(subprocess.run, convert, check=True)
    guest = make_guest(firmware=Firmware.UEFI, memory=256 * MEBIBYTE)
    source = DiskSource("nvram", (nvram,), 0, False, "")
    resources = house.resources(guest, disks=(source,))
    before = nvram.read_bytes()
    running = await house.driver.launch(guest, resources, incarnation=1)
    serial = resources.state / SERIAL_LOG
    await within(lambda: serial.exists() and b"UEFI" in serial.read_bytes())
    assert lit(await running.screenshot())
    assert nvram.read_bytes() != before  # its variables
    assert await running.state() == ("running", "")


async def kvm_driver(house: DriverHouse) -> QemuDriver:
    """A driver that uses KVM though the probe says that ordinary guests do not run.

    Where the device is root's alone, root's guests stay root (without capabilities).
    """
    am_root = os.geteuid() == 0
    device = examine(am_root=am_root)
    if not device.opens:
        pytest.skip(f"/dev/kvm cannot be opened: {device.reason}")
    facts = await this_host()
    kvm = msgspec.structs.replace(facts, accelerator="kvm", accelerator_reason="a test")

    async def confined(guest: str, needs: Needs) -> Confinement:
        if device.guests_open:
            return await house.identities.confinement(guest, needs)
        return Confinement()

    return house.qemu({"builtin": Builtin()}, facts=kvm, confined=confined)


@pytest.mark.skipif(not GRUB_RESCUE.exists(), reason="package grub-rescue-pc is not installed")
async def test_grub_runs_under_kvm_with_the_whole_launcher(house: DriverHouse) -> None:
    driver = await kvm_driver(house)
    iso = house.folder / "grub.iso"
    await asyncio.to_thread(shutil.copyfile, GRUB_RESCUE, iso)
    guest = make_guest(accelerator="kvm")
    disk = DiskSource("cd", (iso,), iso.stat().st_size, True, "grub")
    resources = house.resources(guest, disks=(disk,))
    running = await driver.launch(guest, resources, incarnation=1)
    assert running.record.accelerator == "kvm"
    assert "-accel kvm" in " ".join(running.record.argv)
    found = status(running.record.pid)
    assert (found["CapEff"], found["Seccomp"]) == ("0" * 16, "2")
    screens: set[bytes] = set()
    async with asyncio.timeout(SECONDS):
        while len(screens) < 3:  # firmware, boot loader, its prompt: the screen changes
            screens.add(await running.screenshot())
            await asyncio.sleep(0.2)
    await running.pause()
    assert await running.state() == ("paused", "user")
    await running.resume()
    assert await running.state() == ("running", "")
    await running.kill()
    assert (await ended(running)).reason == "killed"


async def test_kvm_asked_for_where_it_does_not_run(house: DriverHouse) -> None:
    facts = await this_host()
    if facts.accelerator == "kvm":
        running = await launch(house, micro_guest(accelerator="kvm"))
        assert running.record.accelerator == "kvm"
        return
    with pytest.raises(HostLacks) as caught:
        await launch(house, micro_guest(accelerator="kvm"))
    assert caught.value.detail["capability"] == "kvm"
    running = await launch(house, micro_guest())
    assert running.record.accelerator == "tcg"
    assert running.record.accelerator_reason.startswith("Emulation, because: ")
