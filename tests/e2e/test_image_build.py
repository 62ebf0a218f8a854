"""Images as they are built and started: agent, ssh over its port, growth, both firmwares, power.

Debian is built here, anew; started from a small initrd, by GRUB under BIOS, and by GRUB under UEFI.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from guesthouse.errors import Cancelled
from guesthouse.images.build import BuildRequest, BuiltImage, build, build_key

from .imagevm import ImageVm, running, seed
from .micro_image import micro as micro_image

pytestmark = [pytest.mark.qemu, pytest.mark.rootless, pytest.mark.timeout(1800)]

KEY = asyncssh.generate_private_key("ssh-ed25519")
OVMF = Path("/usr/share/OVMF")


def output_of(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def drop(vm: ImageVm, said: bytes) -> None:
    """Somebody connects to the ssh port, says something or nothing, and is gone."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(vm.folder / "ssh"))
        sock.sendall(said)


async def many_connections(vm: ImageVm, count: int) -> None:
    """Each ssh connection works, whatever an earlier one left half done."""
    leftovers = (b"", b"S", b"SSH-2.0-gone\r\n", b"SSH-2.0-gone\r\n" + os.urandom(700))
    for number in range(count):
        async with vm.ssh() as connection:
            done = await connection.run(f"echo {number}; exit {number % 5}")
        assert (done.stdout, done.exit_status) == (f"{number}\n", number % 5)
        drop(vm, leftovers[number % len(leftovers)])
        await asyncio.sleep(0.04 * (number % 3))


class TestMicro:
    @staticmethod
    def boot(image: BuiltImage, *more: str) -> list[str]:
        assert image.disk is None
        return [
            *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
            *("-append", image.cmdline, *more),
        ]

    async def test_agent_ssh_and_power_button(self, tmp_path: Path) -> None:
        image = await micro_image()
        text = seed("tiny", KEY, "user ann", "unknown directive")
        async with running(tmp_path, KEY, *self.boot(image), text=text, memory=256) as vm:
            assert (await vm.agent("guest-get-host-name"))["host-name"] == "tiny"
            assert (await vm.agent("guest-get-osinfo"))["id"] == image.os["id"]
            async with vm.ssh() as connection:
                done = await connection.run("cat; echo err >&2; exit 9", input="in\n")
                assert (done.stdout, done.stderr, done.exit_status) == ("in\n", "err\n", 9)
                tty = await connection.run("tty; stty size", term_type="xterm", term_size=(93, 31))
                assert tty.stdout.split() == ["/dev/pts/0", "31", "93"]
                modes = await connection.run("stat -c %a /root /root/.ssh /root/.ssh/*")
                assert modes.stdout.split() == ["700", "700", "600"]
            async with vm.ssh("ann") as connection:
                assert (await connection.run("id -un; pwd")).stdout == "ann\n/home/ann\n"
            await vm.qmp("system_powerdown")
            assert await vm.ended() == 0

    async def test_hundred_connections_with_leftovers(self, tmp_path: Path) -> None:
        image = await micro_image()
        async with running(tmp_path, KEY, *self.boot(image), text=seed("tiny", KEY)) as vm:
            await many_connections(vm, 100)
            async with vm.ssh() as one:  # a connection that dies in the middle of much output
                await one.create_process("cat /dev/zero", encoding=None)
                await asyncio.sleep(1)
                one.abort()
            await asyncio.sleep(1)
            async with vm.ssh() as connection:
                count = await connection.run("ps | grep -c '[d]ropbear -i'")
                # this connection's server, and the carrier whose arguments name it
                assert int(count.stdout) <= 2

    async def test_big_streams_arrive_whole(self, tmp_path: Path) -> None:
        image = await micro_image()
        data = os.urandom(3 << 20)
        async with running(tmp_path, KEY, *self.boot(image), text=seed("tiny", KEY)) as vm:
            async with vm.ssh() as connection:
                back = await connection.run("cat", input=data, encoding=None)
        assert back.stdout == data

    async def test_the_agent_shuts_it_down(self, tmp_path: Path) -> None:
        image = await micro_image()
        async with running(tmp_path, KEY, *self.boot(image), text=None, memory=256) as vm:
            await vm.agent("guest-ping")
            assert (await vm.agent("guest-get-host-name"))["host-name"] in ("micro", "(none)")
            with pytest.raises(AssertionError):  # success is not answered: the guest is gone
                await vm.agent("guest-shutdown", deadline=0.0)
            assert await vm.ended() == 0

    async def test_little_memory_is_enough(self, tmp_path: Path) -> None:
        image = await micro_image()
        async with running(tmp_path, KEY, *self.boot(image), text=seed("t", KEY), memory=112) as vm:
            async with vm.ssh() as connection:
                assert (await connection.run("echo ok")).stdout == "ok\n"

    async def test_devices_that_come_later(self, tmp_path: Path) -> None:
        image = await micro_image()
        port = ["-device", "pcie-root-port,id=slot1,chassis=1,slot=1"]
        async with running(tmp_path, KEY, *self.boot(image, *port), text=seed("t", KEY)) as vm:
            await vm.agent("guest-ping")
            await vm.qmp("netdev_add", type="user", id="later")
            await vm.qmp("device_add", driver="virtio-net-pci", netdev="later", bus="slot1")
            async with vm.ssh() as connection:
                has_address = "ip -4 addr show eth1 | grep -q inet"
                script = f"for i in $(seq 60); do {has_address} && exit; sleep 1; done; exit 1"
                assert (await connection.run(script)).exit_status == 0


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, BuiltImage]]:
    """Images built so far in this run, by name."""
    built: dict[str, BuiltImage] = {}
    yield built
    for image in built.values():
        if image.disk is not None:
            shutil.rmtree(image.disk.parent)


async def debian(name: str, images: dict[str, BuiltImage], tmp_path: Path) -> BuiltImage:
    if name not in images:
        into = tmp_path.parent / f"image-{name.replace('/', '-')}"
        into.mkdir(mode=0o700)
        reached: list[float] = []
        images[name] = await build(
            BuildRequest(name=name),
            into,
            progress=lambda fraction, _doing: reached.append(fraction),
        )
        assert reached == sorted(reached)
        assert reached[-1] == 1.0
        assert len({round(fraction, 1) for fraction in reached}) >= 9, "the progress is smooth"
    return images[name]


def boot_debian(image: BuiltImage, folder: Path, way: str) -> list[str]:
    """Arguments that start a fresh overlay of 6 GiB on the image, or the one that is there."""
    assert image.disk is not None
    disk = folder / "disk.qcow2"
    if not disk.exists():
        subprocess.run(
            [
                "qemu-img",
                "create",
                "-q",
                "-f",
                "qcow2",
                "-F",
                "qcow2",
                "-b",
                image.disk,
                disk,
                "6G",
            ],
            check=True,
        )
    argv = [
        *("-drive", f"if=none,id=root,format=qcow2,discard=unmap,file={disk}"),
        *("-device", "virtio-blk-pci,drive=root"),
    ]
    if way == "direct":
        argv += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
        argv += ["-append", image.cmdline]
    if way == "uefi":
        code, variables = OVMF / "OVMF_CODE_4M.fd", folder / "vars.fd"
        shutil.copyfile(OVMF / "OVMF_VARS_4M.fd", variables)
        for options in (f"readonly=on,file={code}", f"file={variables}"):
            argv += ["-drive", f"if=pflash,format=raw,{options}"]
    return argv


async def run_all(vm: ImageVm, *commands: str, user: str = "root") -> list[str]:
    """The output of each command; all must succeed."""
    said = []
    async with vm.ssh(user) as connection:
        for command in commands:
            done = await connection.run(command)
            assert done.exit_status == 0, f"{command}: {done.stdout}{done.stderr}"
            said.append(done.stdout.strip())
    return said


def again(folder: Path) -> None:
    """Before a second start in the same folder: the sockets of the first."""
    for name in ("ga", "ssh", "qmp"):
        (folder / name).unlink(missing_ok=True)


@pytest.mark.debian
class TestDebian:
    async def test_the_files(self, images: dict[str, BuiltImage], tmp_path: Path) -> None:
        image = await debian("debian/12", images, tmp_path)
        assert image.disk is not None
        assert image.build_key == build_key(BuildRequest(name="debian/12"))
        names = sorted(path.name for path in image.disk.parent.iterdir())
        assert names == ["build.log", "disk.qcow2", "initrd", "kernel", "packages"]
        for path in (image.disk, image.kernel, image.initrd):
            assert path is not None
            assert path.stat().st_mode & 0o777 == 0o444
            assert path.stat().st_uid == os.geteuid()
        info = output_of("qemu-img", "info", str(image.disk))
        assert "compression type: zstd" in info
        assert f"({image.virtual_size} bytes)" in info
        packages = (image.disk.parent / "packages").read_text()
        assert int(image.facts["packages"]) == len(packages.splitlines())
        assert "qemu-guest-agent" in packages

    async def test_first_and_second_start(
        self, images: dict[str, BuiltImage], tmp_path: Path
    ) -> None:
        """The small initrd first, GRUB the second time; what the first start made stays."""
        image = await debian("debian/12", images, tmp_path)
        identity = "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub"
        text = seed("web1", KEY, "user ann", "instance 01A")
        direct = boot_debian(image, tmp_path, "direct")
        async with running(tmp_path, KEY, *direct, text=text, memory=768) as vm:
            assert (await vm.agent("guest-get-host-name"))["host-name"] == "web1"
            await self._check_first_start(vm)
            (first,) = await run_all(vm, identity)
            await many_connections(vm, 8)
            await vm.qmp("system_powerdown")
            assert await vm.ended(180) == 0
        again(tmp_path)
        text = seed("web2", asyncssh.generate_private_key("ssh-ed25519"), "instance 01A")
        bios = boot_debian(image, tmp_path, "bios")
        async with running(tmp_path, KEY, *bios, text=text, memory=768) as vm:
            assert (await vm.agent("guest-get-host-name"))["host-name"] == "web2"
            await asyncio.sleep(5)
            with pytest.raises(asyncssh.PermissionDenied):  # the seed's key was replaced
                async with vm.ssh():
                    pass
            code, said = await vm.agent_run("/bin/sh", "-c", identity)
            assert (code, said.strip()) == (0, first)

    @staticmethod
    async def _check_first_start(vm: ImageVm) -> None:
        state, failed, size, hosts, names = await run_all(
            vm,
            "systemctl is-system-running --wait",
            "systemctl --failed --no-legend --plain",
            "df --output=size -BM / | tail -n 1",
            "cat /etc/hosts",
            "ls /etc/ssh | grep -c _key",
        )
        assert (state, failed) == ("running", "")
        assert int(size.rstrip("M")) > 5500, "the root file system fills its disk"
        assert "127.0.1.1\tweb1" in hosts
        assert names == "4", "ed25519 and ecdsa, no RSA"
        kind, table, ping = await run_all(
            vm, "findmnt -no FSTYPE,OPTIONS /", "sfdisk --verify /dev/vda", "getcap /bin/ping"
        )
        assert kind.split()[0] == "ext4"
        assert kind.split()[1].startswith("rw,")
        assert "No errors detected" in table
        assert "cap_net_raw" in ping
        who, root, address = await run_all(
            vm, "id -un", "sudo id -u", "ip -4 -br addr show scope global", user="ann"
        )
        assert (who, root) == ("ann", "0")
        assert "10.0.2.15" in address

    async def test_a_copy_gets_an_identity_of_its_own(
        self, images: dict[str, BuiltImage], tmp_path: Path
    ) -> None:
        image = await debian("debian/12", images, tmp_path)
        identity = "cat /etc/machine-id /etc/ssh/ssh_host_*_key.pub"
        seen = []
        for instance in ("01A", "01B"):
            argv = boot_debian(image, tmp_path, "direct")
            text = seed(f"guest-{instance.lower()}", KEY, f"instance {instance}")
            async with running(tmp_path, KEY, *argv, text=text, memory=768) as vm:
                (said,) = await run_all(vm, identity)
                seen.append(said.split())
                await vm.qmp("system_powerdown")
                assert await vm.ended(180) == 0
            again(tmp_path)
        assert len(seen[0]) == len(seen[1]) == 7
        assert seen[0][0] != seen[1][0]
        assert seen[0][2] != seen[1][2]

    @pytest.mark.parametrize("way", [pytest.param("bios", marks=pytest.mark.full), "uefi"])
    async def test_a_new_kernel_inside_starts(
        self, images: dict[str, BuiltImage], tmp_path: Path, way: str
    ) -> None:
        """What the package of a new kernel does: initrd and update-grub; then it must start."""
        image = await debian("debian/12", images, tmp_path)
        text = seed("grub", KEY)
        argv = boot_debian(image, tmp_path, way)
        async with running(tmp_path, KEY, *argv, text=text, memory=768) as vm:
            before, said = await run_all(
                vm,
                "cat /proc/cmdline",
                "dpkg-reconfigure linux-image-$(uname -r) 2>&1 && cat /boot/grub/grub.cfg",
            )
            assert "root=LABEL=root" in before
            assert "warning" not in said
            assert "DO NOT EDIT THIS FILE" in said
            await vm.qmp("system_powerdown")
            assert await vm.ended(180) == 0
        again(tmp_path)
        argv = boot_debian(image, tmp_path, way)
        async with running(tmp_path, KEY, *argv, text=text, memory=768) as vm:
            after, efi = await run_all(
                vm,
                "cat /proc/cmdline",
                "if [ -d /sys/firmware/efi ]; then echo uefi; else echo bios; fi",
            )
            assert "root=UUID=" in after
            assert "console=ttyS0" in after
            assert efi == way

    async def test_without_a_seed_it_starts_too(
        self, images: dict[str, BuiltImage], tmp_path: Path
    ) -> None:
        image = await debian("debian/12", images, tmp_path)
        argv = boot_debian(image, tmp_path, "direct")
        async with running(tmp_path, KEY, *argv, text=None, memory=768) as vm:
            assert (await vm.agent("guest-get-host-name"))["host-name"] == "debian"
            wait = "systemctl is-system-running --wait"
            assert await vm.agent_run("/bin/sh", "-c", wait) == (0, "running\n")

    async def test_cancelling_leaves_nothing(self, tmp_path: Path) -> None:
        cancelled = asyncio.Event()

        def progress(fraction: float, doing: str) -> None:
            if fraction > 0.3:
                cancelled.set()

        into = tmp_path / "into"
        with pytest.raises(Cancelled):
            await build(
                BuildRequest(name="debian/12"), into, progress=progress, cancelled=cancelled
            )
        assert [path.name for path in into.iterdir()] == ["build.log"]
        assert str(into) not in output_of("ps", "axo", "args")
        assert str(into) not in Path("/proc/self/mounts").read_text()


@pytest.mark.debian
@pytest.mark.full
@pytest.mark.parametrize("way", ["direct", "bios", "uefi"])
async def test_debian_13_starts(images: dict[str, BuiltImage], tmp_path: Path, way: str) -> None:
    image = await debian("debian/13", images, tmp_path)
    argv = boot_debian(image, tmp_path, way)
    async with running(tmp_path, KEY, *argv, text=seed("next", KEY, "user ann"), memory=768) as vm:
        assert (await vm.agent("guest-get-osinfo"))["version-id"] == "13"
        state, root = await run_all(
            vm, "systemctl is-system-running --wait", "sudo id -u", user="ann"
        )
        assert (state, root) == ("running", "0")
