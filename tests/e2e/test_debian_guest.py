"""Real Debian: built from the distribution's packages, launched, used, rebooted, upgraded."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import GUEST, House, until

pytestmark = [pytest.mark.qemu, pytest.mark.debian, pytest.mark.rootless, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def debian(house: House) -> Iterator[str]:
    house.run("launch", "debian/12", "d1", timeout=1200)
    yield "d1"


def boots(house: House, name: str, incarnation: int) -> bool:
    info = house.json("info", name)
    return bool(
        info["launch"]["incarnation"] >= incarnation and info["status"]["ready"][-1:] == ["ssh"]
    )


def test_it_runs_and_is_whole(house: House, debian: str) -> None:
    assert "Linux d1" in house.out("exec", debian, "--", "uname", "-a")
    state = house.out("exec", debian, "--", "systemctl", "is-system-running", "--wait", ok=False)
    assert state.strip() == "running"
    assert house.json("info", debian)["launch"]["boot"] == "kernel"
    assert "12" in house.out("exec", debian, "--", "cat", "/etc/debian_version")


def test_identity_is_its_own(house: House, debian: str) -> None:
    machine = house.out("exec", debian, "--", "cat", "/etc/machine-id").strip()
    assert re.fullmatch("[0-9a-f]{32}", machine)
    assert house.out("exec", debian, "--", "hostname").strip() == "d1"
    assert house.out("exec", "--user", "guest", debian, "--", "id", "-un").strip() == "guest"
    assert house.out("exec", "--user", "guest", debian, "--", "sudo", "id", "-u").strip() == "0"
    keys = house.out("exec", debian, "--", "sh", "-c", "ls /etc/ssh/ssh_host_*_key")
    assert "ed25519" in keys


def test_copy_and_outbound(house: House, debian: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(1 << 20))
    house.run("cp", str(tmp_path / "file"), f"{debian}:/root/file")
    house.run("cp", f"{debian}:/root/file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()
    route = house.out("exec", debian, "--", "ip", "route")
    assert route.startswith("default")


def test_a_shared_folder_outlives_its_server(house: House, debian: str, tmp_path: Path) -> None:
    """systemd has it in a unit of its own; udev finds the port."""
    (tmp_path / "page").write_text("from the host\n")
    house.run("share", "add", debian, f"{tmp_path}:/srv/site")
    script = "cat /srv/site/page; echo from the guest >/srv/site/reply; stat -c %U /srv/site/page"
    assert house.out("exec", debian, "--", "sh", "-c", script) == "from the host\nguest\n"
    made = (tmp_path / "reply").stat()
    assert (made.st_uid, made.st_gid) == (os.getuid(), os.getgid())
    [record] = house.folder.glob("run/*/guests/*/share-site.json")
    os.kill(json.loads(record.read_bytes())["pid"], signal.SIGKILL)
    read = ("exec", debian, "--", "cat", "/srv/site/page")
    until(lambda: house.run(*read, ok=False).returncode != 0, say="the guest has lost it")
    until(
        lambda: house.run(*read, ok=False).stdout == b"from the host\n",
        seconds=240,
        say="it is there again",
    )
    holder = house.popen("exec", debian, "--", "sh", "-c", "cd /srv/site; exec sleep 1000")
    used = ("exec", debian, "--", "sh", "-c", "readlink /proc/[0-9]*/cwd | grep -q /srv/site")
    until(lambda: house.run(*used, ok=False).returncode == 0, say="it is used")
    busy = house.run("share", "rm", debian, "/srv/site", ok=False)
    assert busy.returncode == 5 and b"in use in the guest by sleep (process" in busy.stderr
    house.run("exec", debian, "--", "pkill", "sleep")
    holder.wait()
    house.run("share", "rm", debian, "/srv/site")


def test_reboot_goes_by_its_own_boot_loader(house: House, debian: str) -> None:
    before = house.json("info", debian)["launch"]["incarnation"]
    house.run("exec", "--timeout", "60", debian, "--", "systemctl", "reboot", ok=False)
    until(lambda: boots(house, debian, before + 1), seconds=600, say="it is up again")
    info = house.json("info", debian)
    assert info["launch"]["boot"] == "disk"
    assert "BOOT_IMAGE" in house.out("exec", debian, "--", "cat", "/proc/cmdline")


def test_disk_grows_with_its_file_system(house: House, debian: str) -> None:
    house.run("stop", debian)
    assert house.status(debian)["reason"] == "guest-shutdown"
    house.run("set", debian, "disk=6G")
    house.run("start", debian, "--wait")
    size = house.out("exec", debian, "--", "df", "--output=size", "-BM", "/").split()[-1]
    assert int(size.rstrip("M")) > 5400


def test_a_guest_without_a_network_can_be_entered(house: House, debian: str) -> None:
    """exec goes by the virtio-serial port, so a guest whose network is gone is still reached."""
    done = house.out(
        "exec",
        debian,
        "--",
        "sh",
        "-c",
        "ip link set ens22 down 2>/dev/null; "
        "for i in /sys/class/net/e*; do ip link set ${i##*/} down; done; sleep 1; echo still here",
    )
    assert done.strip() == "still here"


def test_two_launches_at_once_share_one_build(house: House) -> None:
    both = [house.popen("launch", "debian/12", name, "--no-wait") for name in ("a", "b")]
    for process in both:
        assert process.wait(timeout=1200) == 0, process.stdout and process.stdout.read()
    builds = [job for job in house.json("job", "ls") if job["kind"] == "image.build"]
    assert len([job for job in builds if job["target_name"] == "debian/12"]) <= 1
    for name in ("a", "b"):
        house.run("rm", "--yes", "--force", name)


@pytest.mark.full
def test_kernel_upgraded_inside_is_the_one_that_boots(house: House, tmp_path: Path) -> None:
    """The plain kernel instead of the image's cloud kernel, installed inside by apt."""
    house.run("launch", "debian/12", "up", "--disk", "6G", timeout=1200)
    until(lambda: boots(house, "up", 1), seconds=600, say="ready")
    house.run("exec", "up", "--", "apt-get", "-qq", "update", timeout=600)
    old = house.out("exec", "up", "--", "uname", "-r").strip()
    house.run(
        "exec",
        "up",
        "--",
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "-qq",
        "-y",
        "install",
        "linux-image-amd64",
        timeout=1500,
    )
    # The image's own kernel has the same version and sorts last, so it has to go; its package
    # refuses to be purged while it runs.
    away = f"rm /boot/*-{old} && update-grub"
    house.run("exec", "up", "--", "sh", "-c", away, timeout=600)
    house.run("exec", "--timeout", "60", "up", "--", "systemctl", "reboot", ok=False)
    until(lambda: boots(house, "up", 2), seconds=900, say="up again")
    new = house.out("exec", "up", "--", "uname", "-r").strip()
    assert new != old
    assert "cloud" not in new
    house.run("rm", "--yes", "--force", "up")


@pytest.mark.full
def test_uefi(house: House) -> None:
    house.run("launch", "debian/12", "efi", "--firmware", "uefi", timeout=1200)
    assert house.out("exec", "efi", "--", "sh", "-c", "ls -d /sys/firmware/efi").strip()
    house.run("rm", "--yes", "--force", "efi")


@pytest.mark.full
def test_one_gibibyte_through_exec_with_flat_memory(house: House, debian: str) -> None:
    daemon = house.daemon_pid
    before = _peak(daemon)
    line = (
        f"head -c {1 << 30} /dev/zero | {sys.executable} -c "
        "'import sys, shutil; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)' | "
        f"{GUEST} exec {debian} -- sh -c 'wc -c'"
    )
    done = subprocess.run(
        ["bash", "-c", line], env=house.env, capture_output=True, check=True, timeout=1400
    )
    assert done.stdout.split() == [str(1 << 30).encode()]
    assert _peak(daemon) - before < 64 << 10


def _peak(pid: int) -> int:
    """Peak resident memory in KiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0])
