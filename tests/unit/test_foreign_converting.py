"""Strangers' files through a confined qemu-img: whole, or refused."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guesthouse.errors import InvalidInput, NoSpace
from guesthouse.images.foreign import converting
from guesthouse.images.foreign.converting import confined, convert
from guesthouse.images.foreign.looking import look
from guesthouse.images.foreign.window import Foreign
from guesthouse.model.image import SourceFormat as F
from guesthouse.storage import qcow2 as headers
from tests.e2e.conftest import gone, until
from tests.foreign_files import CLUSTER, MIB, fixed_vhd, patched, qcow2, vdi, vhd, vmdk, write

TIB = 1 << 40


def looked(path: Path) -> Foreign:
    fd = os.open(path, os.O_RDONLY)
    try:
        return look(fd, None, TIB)
    finally:
        os.close(fd)


async def converted(path: Path, **options: int) -> Path:
    target = path.with_suffix(".converted")
    seen: list[float] = []
    size = await convert(path, looked(path), target, progress=seen.append, **options)
    assert headers.assert_sound_header(target).size == size
    assert seen
    assert seen[-1] == 1.0
    return target


def content(path: Path, fmt: str = "qcow2") -> bytes:
    raw = path.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-f", fmt, "-O", "raw", path, raw], check=True)
    return raw.read_bytes()


def made_by_qemu_img(raw: Path, kind: str, target: Path) -> None:
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk" if kind == "stream" else kind]
    argv += ["-o", "subformat=streamOptimized"] if kind == "stream" else []
    subprocess.run([*argv, raw, target], check=True)


CRAFTED = {
    "qcow2": (qcow2(data=b"hello from qcow2"), b"hello from qcow2"),
    "vmdk": (vmdk(), b"\0"),
    "vdi": (vdi(data=b"hello from vdi"), b"hello from vdi"),
    "vhd": (vhd(), b"\0"),
    "vhd-fixed": (fixed_vhd(content=b"hello from vhd"), b"hello from vhd"),
    "raw": (
        patched(b"hello from raw".ljust(4 * MIB, b"\0"), (510, b"\x55\xaa")),
        b"hello from raw",
    ),
}


@pytest.mark.parametrize("name", CRAFTED)
async def test_crafted_files_arrive_whole(name: str, tmp_path: Path) -> None:
    data, begins = CRAFTED[name]
    target = await converted(write(tmp_path / "image", data))
    assert target.stat().st_uid == os.geteuid()
    assert target.stat().st_mode & 0o777 == 0o600
    found = content(target)
    assert found.startswith(begins)
    assert len(found) >= 4 * MIB
    assert not found[510 + 2 :].strip(b"\0")


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vdi", "vhdx", "vpc", "stream"])
async def test_what_other_programs_write_arrives_whole(kind: str, tmp_path: Path) -> None:
    data = os.urandom(3 * MIB).ljust(8 * MIB, b"\0")
    raw = write(tmp_path / "raw", data)
    made_by_qemu_img(raw, kind, tmp_path / "image")
    found = content(await converted(tmp_path / "image"))
    assert found[: len(data)] == data
    assert not found[len(data) :].strip(b"\0")


async def test_a_backing_file_is_cut_off_even_if_nobody_noticed(tmp_path: Path) -> None:
    """The second wall: what `look` refuses would not be opened by qemu-img either."""
    secret = write(tmp_path / "secret", b"the secret".ljust(4 * MIB, b"\0"))
    secret.chmod(0o644)
    overlay = write(tmp_path / "image", qcow2(backing=str(secret).encode()))
    seen = content(overlay)
    assert seen.startswith(b"the secret")
    target = tmp_path / "target"
    await convert(overlay, Foreign(F.QCOW2, 4 * MIB), target, progress=lambda _: None)
    assert not content(target).strip(b"\0")


async def test_tables_that_contradict_each_other(tmp_path: Path) -> None:
    """Two of the guest's clusters are the same one of the file, which says that it has one user."""
    path = write(tmp_path / "image", qcow2(data=b"x", clusters=2))
    with pytest.raises(InvalidInput, match="contradict") as caught:
        await converted(path)
    assert caught.value.detail["reason"] == "damaged"


async def test_a_cluster_beyond_the_end(tmp_path: Path) -> None:
    good = qcow2(data=b"x")
    entry = (1 << 63 | 1 << 40).to_bytes(8, "big")
    path = write(tmp_path / "image", patched(good, (4 * CLUSTER, entry)))
    with pytest.raises(InvalidInput, match="contradict"):
        await converted(path)


async def test_a_bomb(tmp_path: Path) -> None:
    """Its tables are in order, and lead 60000 times to one cluster of noise: 3.7 GiB of it."""
    noise, count = os.urandom(CLUSTER), 60_000
    data = qcow2(count * CLUSTER, data=noise, clusters=count, refcount=count)
    assert len(data) < 2 * MIB
    path = write(tmp_path / "image", data)
    with pytest.raises(InvalidInput, match="many times its own size") as caught:
        await converted(path)
    assert caught.value.detail["reason"] == "bomb"
    assert not path.with_suffix(".converted").exists()


@pytest.mark.parametrize("seconds", [0, 1], ids=["check", "convert"])
async def test_what_takes_more_time_than_any_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """As the bomb, but of what packs well: it never grows beyond its bound."""
    monkeypatch.setattr(converting, "_CPU_SECONDS", seconds)
    data, count = os.urandom(64) * (CLUSTER // 64), 60_000
    path = write(
        tmp_path / "image", qcow2(count * CLUSTER, data=data, clusters=count, refcount=count)
    )
    with pytest.raises(InvalidInput, match="more time than any image") as caught:
        await convert(path, looked(path), tmp_path / "target", progress=lambda _: None)
    assert caught.value.detail["reason"] == "bomb"
    assert not (tmp_path / "target").exists()


async def test_more_than_there_is_room_for(tmp_path: Path) -> None:
    data = patched(os.urandom(4 * MIB), (510, b"\x55\xaa"))
    with pytest.raises(NoSpace, match="convert the image"):
        await converted(write(tmp_path / "image", data), room=2 * MIB)


async def test_a_cancelled_conversion_ends_its_process(tmp_path: Path) -> None:
    data = patched(os.urandom(64 * MIB), (510, b"\x55\xaa"))
    path = write(tmp_path / "image", data)
    started = asyncio.Event()
    target = tmp_path / "target"
    running = asyncio.create_task(
        convert(path, looked(path), target, progress=lambda _: started.set())
    )
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not [line for line in _command_lines() if b"qemu-img" in line and b"raw" in line]


def _command_lines() -> list[bytes]:
    """Of our children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children]


def test_what_the_tool_may_do() -> None:
    """Asked of the kernel, in the place of qemu-img."""
    script = (
        "id -u; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status; ulimit -v; ls /proc/net"
    )
    argv = confined(["sh", "-c", f"{script}; wc -l < /proc/net/dev"], 0, 4096)
    out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    assert out[out.index("NoNewPrivs:") + 1] == "1"
    assert int(out[out.index("CapEff:") + 1], 16) == 0
    assert out[out.index("NoNewPrivs:") + 2] == str((2 << 30) // 1024)
    if os.geteuid() == 0:
        assert int(out[0]) >= 65536
        assert int(out[out.index("CapBnd:") + 1], 16) == 0
        assert out[-1] == "3"  # two lines of head, and a loopback


def test_the_tool_ends_with_its_parent(tmp_path: Path) -> None:
    """A daemon that is killed leaves nobody who goes on writing."""
    argv = confined(["sh", "-c", "echo $$; exec sleep 600"], 0, 4096)
    code = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, *argv], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        tool = int(parent.stdout.readline())
        parent.kill()
    until(lambda: gone(tool), say="the tool is gone")


def test_what_the_tool_may_write(tmp_path: Path) -> None:
    argv = confined(["sh", "-c", "head -c 10000 /dev/zero >&1"], 0, 4096)
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(argv, stdout=out, stderr=subprocess.PIPE, check=False)
    assert done.returncode != 0
    assert (tmp_path / "out").stat().st_size <= 4096
