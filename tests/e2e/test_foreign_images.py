"""Images from outside in real QEMU: discs, disks of other programs, and a cloud's Debian."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import zlib
from pathlib import Path

import pycdlib
import pytest

from .conftest import House, until

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]

BAR = re.compile(rb"([\x90-\xff])\1{1500}")
"""One bright grey over 500 pixels of a line: the menu's bar."""
GRUB = Path("/usr/lib/grub-rescue/grub-rescue-cdrom.iso")


def speaker(words: str) -> bytes:
    """Code for a boot sector at 0x7c00: write `words` to the first serial port, and stand still."""
    text_at = 0x7C00 + 32
    code = bytes.fromhex(
        "31c08ed8"  # xor ax, ax; mov ds, ax
        f"be{text_at.to_bytes(2, 'little').hex()}"  # mov si, text
        "ac"  # next: lodsb
        "84c0740c"  # test al, al; jz done
        "50"  # push ax
        "bafd03"  # wait: mov dx, 0x3fd
        "ec"  # in al, dx
        "a82074f8"  # test al, 0x20; jz wait
        "58"  # pop ax
        "b2f8ee"  # mov dl, 0xf8; out dx, al
    )
    jump = -(len(code) + 2 - 7)  # back to `next`
    code += bytes([0xEB, jump & 0xFF])
    done = len(code)
    code += bytes.fromhex("fbf4ebfd")  # done: sti; hlt; jmp to the hlt
    at = code.index(bytes.fromhex("84c0740c")) + 3
    code = code[:at] + bytes([done - (at + 1)]) + code[at + 1 :]
    assert len(code) <= 32
    return code.ljust(32, b"\0") + words.encode() + b"\r\n\0"


def disk(words: str) -> bytes:
    """Four mebibytes that boot, and say so."""
    return speaker(words).ljust(510, b"\0") + b"\x55\xaa" + bytes((4 << 20) - 512)


def disc(words: str) -> bytes:
    made = pycdlib.PyCdlib()
    made.new()
    code = speaker(words).ljust(2048, b"\0")
    made.add_fp(io.BytesIO(code), len(code), "/BOOT.;1")
    made.add_eltorito("/BOOT.;1", bootcatfile="/BOOT.CAT;1", boot_load_size=4)
    out = io.BytesIO()
    made.write_fp(out)
    made.close()
    return out.getvalue()


def says(house: House, name: str, words: str) -> None:
    until(lambda: words in house.out("logs", name), seconds=120, say=f"{name} says {words!r}")


def test_a_disc_boots_and_its_guest_has_an_empty_disk(house: House, tmp_path: Path) -> None:
    path = tmp_path / "Talking.iso"
    path.write_bytes(disc("hello from the disc"))
    assert "talking is imported (disc" in house.out("image", "import", str(path))
    launched = house.run("launch", "talking", "box", "--memory", "128M", "--disk", "1G")
    assert "guest console box" in launched.stderr.decode()
    says(house, "box", "hello from the disc")
    info = house.json("info", "box")
    assert info["status"]["ready"] == ["process"]
    assert info["readiness"]["waiting"] is None
    assert [disk["name"] for disk in info["spec"]["disks"]] == ["root", "cdrom"]
    entered = house.run("exec", "box", "--", "true", ok=False)
    assert entered.returncode == 255
    assert "guest console box" in entered.stderr.decode()
    # The drive can be shared, and the image is kept for both.
    house.run("launch", "talking", "box2", "--memory", "128M")
    says(house, "box2", "hello from the disc")
    assert house.run("image", "rm", "--yes", "talking", ok=False).returncode == 5
    for name in ("box", "box2"):
        house.run("rm", "--yes", "--force", "--now", name)
    house.run("image", "rm", "--yes", "talking")


def test_what_a_disc_has_installed_boots(house: House, tmp_path: Path) -> None:
    (tmp_path / "installer.iso").write_bytes(disc("hello from the installer"))
    (tmp_path / "mbr").write_bytes(disk("hello from the disk")[:512])
    house.out("image", "import", str(tmp_path / "installer.iso"))
    house.run("launch", "installer", "box", "--memory", "128M", "--disk", "1G")
    says(house, "box", "hello from the installer")
    house.run("stop", "--force", "box")
    volume = house.json("info", "box")["spec"]["disks"][0]["volume"]
    (layer,) = (house.state / "pools").rglob(f"{volume}.qcow2")
    write = f"write -q -s {tmp_path / 'mbr'} 0 512"
    subprocess.run(["qemu-io", "-c", write, layer], check=True)
    house.run("start", "box")
    says(house, "box", "hello from the disk")
    house.run("rm", "--yes", "--force", "--now", "box")
    house.run("image", "rm", "--yes", "installer")


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vdi", "vhdx", "vpc", "raw"])
def test_disks_of_other_programs_boot(house: House, tmp_path: Path, kind: str) -> None:
    raw, path = tmp_path / "raw", tmp_path / f"disk.{kind}"
    raw.write_bytes(disk(f"hello from {kind}"))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", kind, raw, path], check=True)
    house.run("image", "import", str(path), f"other/{kind}", "--seed", "none")
    house.run("launch", f"other/{kind}", kind, "--memory", "128M")
    says(house, kind, f"hello from {kind}")
    assert [one["name"] for one in house.json("info", kind)["spec"]["disks"]] == ["root"]
    house.run("rm", "--yes", "--force", "--now", kind)


def test_a_stranger_is_refused(house: House, tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(disk("base"))
    path = tmp_path / "overlay.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", tmp_path / "base", "-F", "raw", path],
        check=True,
    )
    refused = house.run("image", "import", str(path), ok=False)
    assert refused.returncode == 2
    assert "differs from another file" in refused.stderr.decode()
    assert not list((house.state / "uploads").iterdir())


def pixels(png: bytes) -> bytes:
    """The bytes of all lines of a PNG as QEMU writes it: 8 bits, RGB or RGBA, any filter."""
    at, data, width = 8, b"", 0
    while at < len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] == b"IHDR":
            width = int.from_bytes(png[at + 8 : at + 12], "big")
            step = {2: 3, 6: 4}[png[at + 17]]
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + size]
        at += size + 12
    raw, line = zlib.decompress(data), width * step
    out, above = bytearray(), bytes(line)
    for start in range(0, len(raw), line + 1):
        row = bytearray(raw[start + 1 : start + 1 + line])
        for i in range(line):
            left = row[i - step] if i >= step else 0
            corner = above[i - step] if i >= step else 0
            row[i] = (row[i] + _predicted(raw[start], left, above[i], corner)) & 0xFF
        out += row
        above = bytes(row)
    return bytes(out)


def _predicted(kind: int, left: int, up: int, corner: int) -> int:
    if kind == 4:
        guess = left + up - corner
        return min((left, up, corner), key=lambda value: abs(guess - value))
    return (0, left, up, (left + up) // 2)[kind]


@pytest.mark.skipif(not GRUB.is_file(), reason="grub-rescue-pc is not installed")
def test_grubs_rescue_disc_shows_its_menu(house: House, tmp_path: Path) -> None:
    """A bar over the width of the screen: nothing that the firmware writes looks like that."""
    house.run("image", "import", str(GRUB), "grub")
    house.run("launch", "grub", "menu", "--memory", "128M")
    picture = tmp_path / "screen.png"

    def menu() -> bool:
        house.run("screenshot", "menu", "-o", str(picture))
        return BAR.search(pixels(picture.read_bytes())) is not None

    until(menu, seconds=120, say="the menu is on the screen")
    house.run("rm", "--yes", "--force", "--now", "menu")


def test_more_keys_for_our_own_images(house: House, tmp_path: Path) -> None:
    key = new_key(tmp_path)
    house.run("launch", "micro", "keyed", "--memory", "128M", "--ssh-key", f"{key}.pub")
    keys = house.out("exec", "keyed", "--", "cat", "/root/.ssh/authorized_keys").splitlines()
    assert Path(f"{key}.pub").read_text().strip() in keys
    assert len(keys) == 2
    refused = house.run("launch", "micro", "x", "--cloud-init", str(tmp_path / "key.pub"), ok=False)
    assert refused.returncode == 2
    house.run("rm", "--yes", "--force", "--now", "keyed")


def new_key(folder: Path) -> Path:
    path = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


USER_DATA = """#cloud-config
write_files:
  - path: /etc/from-cloud-init
    content: "written by cloud-init\\n"
"""


@pytest.mark.full
@pytest.mark.debian
@pytest.mark.timeout(2400)
def test_a_clouds_debian_is_set_up_by_cloud_init(house: House, tmp_path: Path) -> None:
    key = new_key(tmp_path)
    (tmp_path / "user-data").write_text(USER_DATA)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    house.run(
        "launch", "debian/12-cloud", "cloud", "--cloud-init", str(tmp_path / "user-data"),
        "--ssh-key", f"{key}.pub", "--publish", f"{port}:22", "--disk", "6G",
        "--timeout", "900", timeout=1800,
    )  # fmt: skip
    info = house.json("info", "cloud")
    assert info["status"]["ready"] == ["process", "kernel", "agent", "network"]
    assert [one["name"] for one in info["spec"]["disks"]] == ["root", "seed"]

    def ssh(command: str) -> str:
        done = subprocess.run(
            [
                *("ssh", "-i", str(key), "-p", str(port), "-o", "BatchMode=yes"),
                *("-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={tmp_path}/hosts"),
                *("-o", "ConnectTimeout=20", "debian@127.0.0.1", command),
            ],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        return done.stdout if done.returncode == 0 else ""

    until(lambda: ssh("hostname"), seconds=600, say="the key logs in")
    assert "status: done" in ssh("cloud-init status --wait")
    assert ssh("cat /etc/from-cloud-init") == "written by cloud-init\n"
    assert ssh("hostname").strip() == "cloud"
    assert ssh("sudo cloud-init query instance_id").strip() == info["id"]
    room = ssh("df --output=size -BM / | tail -1")
    assert int(re.findall(r"\d+", room)[0]) > 5400
    # Ours are not there, and nothing of the user data is in what the house writes down.
    assert ssh("ls -d /usr/lib/guesthouse || echo none").strip() == "none"
    argv = ["grep", "-rl", "written by cloud-init", str(house.state)]
    found = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    assert found
    assert all("/layers/" in path for path in found), found
    entered = house.run("exec", "cloud", "--", "true", ok=False)
    assert f"ssh -p {port}" in entered.stderr.decode()
    assert os.path.getsize(tmp_path / "hosts")
    house.run("rm", "--yes", "--force", "--now", "cloud")
