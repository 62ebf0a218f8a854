"""The QEMU driver with real guests: the micro image, a disk that fills up, KVM where it opens."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from guesthouse.drivers.base import (
    ENGINE_LOG,
    SERIAL_LOG,
    VNC_SOCKET,
    DiskSource,
    DriverEvent,
    Exit,
    Running,
)
from guesthouse.drivers.qemu.driver import QemuDriver
from guesthouse.drivers.qemu.identity import confinement
from guesthouse.drivers.qemu.opening import QMP_SOCKET
from guesthouse.errors import HostLacks, LaunchFailed, QmpFailed
from guesthouse.guestos.agent import Agent
from guesthouse.host.keeper_client import KeeperClient
from guesthouse.host.kvm_device import examine
from guesthouse.host.launcher import Confinement
from guesthouse.host.process import is_alive
from guesthouse.model.guest import BootPath, Firmware, Guest, OnPanic
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

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]
SECONDS = 120.0
GRUB_RESCUE = Path("/usr/lib/grub-rescue/grub-rescue-cdrom.iso")


@pytest.fixture
async def house() -> AsyncIterator[DriverHouse]:
    async with driver_house("qemu", Path(tempfile.mkdtemp(prefix="gq-"))) as made:
        yield made


def micro_guest(**spec: Any) -> Guest:
    return make_guest(boot=BootPath.KERNEL, **{"memory": 128 * MEBIBYTE, **spec})


async def launch(
    house: DriverHouse, guest: Guest, *, incarnation: int = 1, paused: bool = False
) -> Running:
    files = await micro_boot_files()
    resources = house.resources(guest, boot=BootPath.KERNEL, boot_files=files)
    return await house.driver.launch(guest, resources, incarnation=incarnation, paused=paused)


async def until(events: AsyncIterator[DriverEvent], kind: str) -> DriverEvent:
    seen: list[str] = []
    async with asyncio.timeout(SECONDS):
        async for event in events:
            seen.append(event.kind)
            if event.kind == kind:
                return event
    raise AssertionError(f"the events ended before {kind!r}: {seen}")


async def up(house: DriverHouse, guest: Guest, **named: Any) -> Running:
    """A micro guest whose agent has opened its port."""
    running = await launch(house, guest, paused=True, **named)
    events = running.events()
    await running.resume()
    await until(events, "ssh-open")
    return running


async def ended(running: Running) -> Exit:
    return await asyncio.wait_for(running.wait_exit(), SECONDS)


async def within(condition: Callable[[], object]) -> None:
    """Wait for something that nothing tells of."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def type_in(house: DriverHouse, running: Running, line: str) -> None:
    """Type a line at the guest's serial console, where a root shell waits."""
    assert house.keeper is not None
    client = await house.keeper.client()
    key = next(p.key for p in await client.processes() if p.pid == running.record.pid)
    console = await client.console(key, replay=0)
    with console:
        await asyncio.get_running_loop().sock_sendall(console, line.encode() + b"\n")
        await asyncio.sleep(0.5)


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def test_boot_pause_and_power_button(house: DriverHouse) -> None:
    guest = micro_guest(nics=(nic(),))
    running = await up(house, guest)
    resources = house.resources(guest)
    agent = Agent(resources.runtime / "agent.sock")
    await agent.ping(timeout=SECONDS)
    await running.pause()
    assert await running.state() == ("paused", "user")
    await running.resume()
    await agent.ping(timeout=SECONDS)
    await agent.close()
    events = running.events()
    await running.power_button()
    await until(events, "shutdown")
    assert (await ended(running)).reason == "guest-shutdown"
    assert "Power down" in (resources.state / SERIAL_LOG).read_text(errors="replace")


async def test_reset_boots_again_in_the_same_process(house: DriverHouse) -> None:
    running = await up(house, micro_guest())
    events = running.events()
    await running.reset()
    await until(events, "reset")
    await until(events, "agent-open")
    assert is_alive(running.record.pid, running.record.pid_start)


async def test_reboot_in_a_first_boot_by_kernel_ends_the_process(house: DriverHouse) -> None:
    guest = make_guest(boot=BootPath.FIRST_KERNEL, memory=128 * MEBIBYTE)
    running = await up(house, guest)
    await type_in(house, running, "reboot -f")
    assert (await ended(running)).reason == "guest-reset"

    running = await up(house, launched(guest, running.record), incarnation=2)
    await running.reset()
    assert (await ended(running)).reason == "guest-reset"


@pytest.mark.parametrize("how", [OnPanic.STOP, OnPanic.PAUSE])
async def test_panic(house: DriverHouse, how: OnPanic) -> None:
    guest = micro_guest(on_panic=how)
    running = await up(house, guest)
    events = running.events()
    await type_in(house, running, "echo c >/proc/sysrq-trigger")
    await until(events, "panic")
    if how is OnPanic.STOP:
        assert (await ended(running)).reason == "guest-panic"
        return
    await until(events, "paused")
    assert await running.state() == ("paused", "panic")
    with pytest.raises(QmpFailed, match="Reset it"):
        await running.resume()
    await running.reset()
    await until(events, "agent-open")
    assert await running.state() == ("running", "")


async def test_crash_of_the_engine_is_told_from_a_kill(house: DriverHouse) -> None:
    running = await launch(house, micro_guest())
    os.kill(running.record.pid, signal.SIGSEGV)
    end = await ended(running)
    assert end.reason == "crash"
    assert "SIGSEGV" in end.message


async def test_signal_from_outside_is_told(house: DriverHouse) -> None:
    running = await launch(house, micro_guest())
    os.kill(running.record.pid, signal.SIGTERM)
    end = await ended(running)
    assert end.reason == "quit"
    assert "signal" in end.message


async def test_screenshot_shows_the_screen(house: DriverHouse) -> None:
    guest = make_guest()
    running = await house.driver.launch(guest, house.resources(guest), incarnation=1)
    for _ in range(100):
        picture = await running.screenshot()
        width, height = struct.unpack(">II", picture[16:24])
        if (width, height) == (720, 400) and _lit(picture):  # the firmware's text
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"nothing was seen on the screen of {width} by {height}")


def _lit(png: bytes) -> bool:
    """Some pixel is not black."""
    data, at = b"", 8
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    return any(byte > 4 for byte in zlib.decompress(data))


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


async def test_privileges_are_gone(house: DriverHouse) -> None:
    guest = micro_guest(nics=(nic(),))
    running = await launch(house, guest)
    pid = running.record.pid
    found = status(pid)
    assert found["CapEff"] == "0" * 16
    assert found["CapPrm"] == "0" * 16
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"
    if os.geteuid() == 0:
        wanted = confinement(guest.number, am_root=True, kvm_group=None)
        assert found["CapBnd"] == "0" * 16
        assert set(found["Uid"].split()) == {str(wanted.uid)}
        assert set(found["Gid"].split()) == {str(wanted.gid)}
        assert int(found["Uid"].split()[0]) >= 65536
        assert found["Groups"] == ""
    # It was given what it needs, and holds no path of the house open for writing but its own.
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    opened = [link for link in links if link.startswith("/") and not link.startswith("/dev")]
    assert [link for link in opened if "guest-ram" not in link] == [
        link for link in opened if link.endswith((ENGINE_LOG, "kernel", "initrd"))
    ]


async def test_nothing_of_ours_stays_open_here(house: DriverHouse) -> None:
    guest = micro_guest(nics=(nic(),))
    refused = make_guest(cpu="no-such-cpu", number=9)

    async def round_trip(number: int) -> None:
        running = await launch(house, guest, incarnation=number)
        await running.kill()
        await ended(running)
        with pytest.raises(LaunchFailed):
            await house.driver.launch(refused, house.resources(refused), incarnation=number)

    await round_trip(1)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(2, 6):
        await round_trip(number)
    await within(lambda: len(os.listdir("/proc/self/fd")) <= before)


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


async def test_attach_after_the_daemon_ended_and_the_guest_went_on(house: DriverHouse) -> None:
    guest = micro_guest()
    running = await up(house, guest)
    await running.detach()
    await house.again()
    found = await house.driver.attach(launched(guest, running.record), house.resources(guest))
    assert not isinstance(found, Exit)
    assert await found.state() == ("running", "")
    events = found.events()
    await found.power_button()
    await until(events, "exit")
    assert (await found.wait_exit()).reason == "guest-shutdown"


async def test_guest_that_ended_while_no_daemon_was_there(house: DriverHouse) -> None:
    guest = micro_guest()
    running = await up(house, guest)
    await type_in(house, running, "(sleep 2; poweroff -f) &")
    await running.detach()
    assert house.keeper is not None
    await house.keeper.close()
    await within(lambda: not is_alive(running.record.pid, running.record.pid_start))
    await house.open()
    found = await house.driver.attach(launched(guest, running.record), house.resources(guest))
    assert isinstance(found, Exit)
    assert found.reason == "guest-shutdown"


async def test_keeper_killed_guest_lives_and_its_end_is_still_told(house: DriverHouse) -> None:
    guest = micro_guest()
    running = await up(house, guest)
    assert house.keeper is not None
    old = await house.keeper.client()
    old_pid = old.pid
    os.kill(old_pid, signal.SIGKILL)
    async with asyncio.timeout(SECONDS):
        while True:
            client = await house.keeper.client()
            if client.pid != old_pid and [p.key for p in await client.processes()]:
                break
            await asyncio.sleep(0.05)
    info = await client.info(f"{guest.id}.1")
    assert not info.child
    assert await running.state() == ("running", "")
    await running.power_button()
    assert (await ended(running)).reason == "guest-shutdown"


async def test_keeper_killed_while_no_daemon_was_there(house: DriverHouse) -> None:
    guest = micro_guest()
    running = await up(house, guest)
    await running.detach()
    assert house.keeper is not None
    pid = (await house.keeper.client()).pid
    await house.keeper.close()
    os.kill(pid, signal.SIGKILL)
    await house.open()
    assert house.keeper is not None
    found = await house.driver.attach(launched(guest, running.record), house.resources(guest))
    assert not isinstance(found, Exit)
    keys = [p.key for p in await (await house.keeper.client()).processes()]
    assert keys == [f"{guest.id}.1"]
    await found.kill()
    assert (await ended(found)).reason in {"killed", "unknown"}


async def test_lost_monitor_is_connected_again(house: DriverHouse) -> None:
    guest = micro_guest()
    running = await launch(house, guest)
    events = running.events()
    session = running._session  # type: ignore[attr-defined]
    transport = session._client._writer.transport
    transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
    await until(events, "lost")
    event = await until(events, "resumed")
    assert event.detail["reconnected"] is True
    assert await running.state() == ("running", "")


async def test_busy_monitor_leaves_the_guest_unobserved_not_dead(
    house: DriverHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program holds the only place at the monitor; later it goes."""
    guest = micro_guest()
    running = await launch(house, guest)
    await running.detach()
    resources = house.resources(guest)
    holder, writer = await asyncio.open_unix_connection(resources.runtime / QMP_SOCKET)
    await holder.readline()
    monkeypatch.setattr("guesthouse.drivers.qemu.driver._ATTACH_SECONDS", 0.5)
    found = await house.driver.attach(launched(guest, running.record), resources)
    assert not isinstance(found, Exit)
    events = found.events()
    writer.close()
    await until(events, "resumed")
    assert await found.state() == ("running", "")


async def test_launch_that_qemu_refuses_quotes_it_and_leaves_nothing(house: DriverHouse) -> None:
    guest = make_guest(cpu="no-such-cpu")
    resources = house.resources(guest)
    with pytest.raises(LaunchFailed, match="no-such-cpu"):
        await house.driver.launch(guest, resources, incarnation=1)
    assert not list(resources.runtime.iterdir())
    assert house.keeper is not None
    client: KeeperClient = await house.keeper.client()
    assert await client.processes() == []
    assert await client.exit_records() == []


async def test_cancelled_launch_leaves_nothing(house: DriverHouse) -> None:
    guest = micro_guest()
    resources = house.resources(guest)
    for delay in (0.005, 0.02, 0.04):
        task = asyncio.create_task(launch(house, guest))
        await asyncio.sleep(delay)
        task.cancel()
        try:
            running = await task
        except asyncio.CancelledError:
            pass
        else:
            await running.kill()
            await ended(running)
            assert house.keeper is not None
            await house.keeper.forget(f"{guest.id}.1")
        assert await house.driver.stray([]) == []
        assert [p.name for p in resources.runtime.iterdir() if p.name == QMP_SOCKET] == []


async def test_uefi_firmware_runs_from_descriptors(house: DriverHouse) -> None:
    from guesthouse.host.firmware import find_ovmf

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
    assert _lit(await running.screenshot())
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
    assert house.keeper is not None

    def confined(guest: Guest, group: int | None) -> Confinement:
        if device.guests_open:
            return confinement(guest.number, am_root=am_root, kvm_group=group)
        return Confinement()

    return QemuDriver(
        lambda: kvm, house.keeper, {"builtin": Builtin()}, am_root=am_root, confined=confined
    )


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
