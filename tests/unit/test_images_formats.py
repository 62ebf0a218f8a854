"""The binary formats that the builders write or read: cpio, GPT, ELF, kernel modules."""

from __future__ import annotations

import io
import itertools
import lzma
import shutil
import struct
import sys
import zlib
from pathlib import Path

import pytest

from guesthouse.errors import BuildFailed
from guesthouse.images import gpt
from guesthouse.images.cpio import Archive
from guesthouse.images.disk import layout
from guesthouse.images.elf import library_closure, needed
from guesthouse.images.kernel import Modules, newest_kernel


def read_newc(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """An own reader: name to (mode, content, device numbers), in the archive's order."""
    found = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        at += (110 + fields[11] + 3) & ~3
        content = data[at : at + fields[6]]
        at += (fields[6] + 3) & ~3
        assert (fields[2], fields[3]) == (0, 0), "all belongs to root"
        if name == "TRAILER!!!":
            assert at == len(data)
            return found
        found[name] = (fields[1], content, (fields[9], fields[10]))


def test_cpio_reads_back(tmp_path: Path) -> None:
    archive = Archive()
    archive.file("usr/lib/deep/file", b"12345", 0o640)
    archive.link("bin", "usr/bin")
    archive.folder("tmp", 0o1777)
    archive.character_device("dev/console", 5, 1, 0o600)
    size = archive.write(tmp_path / "out")
    data = (tmp_path / "out").read_bytes()
    assert size == len(data)
    entries = read_newc(data)
    assert entries["usr/lib/deep/file"] == (0o100640, b"12345", (0, 0))
    assert entries["bin"] == (0o120777, b"usr/bin", (0, 0))
    assert entries["tmp"][0] == 0o041777
    assert entries["dev/console"] == (0o020600, b"", (5, 1))
    names = list(entries)
    for parent in ("usr", "usr/lib", "usr/lib/deep", "dev"):
        child = next(name for name in names if name.startswith(parent + "/"))
        assert names.index(parent) < names.index(child)
        assert entries[parent][0] == 0o040755
    assert "usr/lib" in archive
    assert "usr/none" not in archive


def header(disk: bytes, sector: int) -> tuple[bytes, tuple[int, ...]]:
    raw = disk[sector * 512 : sector * 512 + 92]
    fields = struct.unpack("<8sIIIIQQQQ16sQIII", raw)
    assert fields[0] == b"EFI PART"
    assert fields[3] == zlib.crc32(raw[:16] + bytes(4) + raw[20:])
    return raw, fields


def test_gpt_is_whole_on_both_ends() -> None:
    size = 256 * gpt.MIB
    file = io.BytesIO(bytes(size))
    parts = layout(size)
    gpt.write_table(file, size, parts, b"\xaa" * 440)
    disk = file.getvalue()
    assert len(disk) == size
    total = size // 512
    for here, other in ((1, total - 1), (total - 1, 1)):
        _, fields = header(disk, here)
        assert (fields[5], fields[6]) == (here, other)
        table = disk[fields[10] * 512 : fields[10] * 512 + 128 * 128]
        assert fields[13] == zlib.crc32(table)
        assert fields[7] == 34
        assert fields[8] == total - 34
        first, last = struct.unpack_from("<QQ", table, 32)  # partition 1 is the root
        assert (first, last + 1) == (parts[2].start // 512, (parts[2].start + parts[2].size) // 512)
        assert table[14 * 128 : 14 * 128 + 16] == gpt.EFI_SYSTEM.bytes_le
    assert disk[:440] == b"\xaa" * 440
    assert disk[450] == 0xEE
    assert disk[510:512] == b"\x55\xaa"


def test_partitions_do_not_overlap_and_the_root_is_last() -> None:
    parts = layout(4 << 30)
    for before, after in itertools.pairwise(parts):
        assert before.start + before.size <= after.start
    assert parts[-1].label == "root"
    assert parts[-1].start + parts[-1].size <= (4 << 30) - 33 * 512
    assert all(part.start % gpt.MIB == 0 for part in parts)


def test_grub_images_are_told_where_they_lie() -> None:
    code = gpt.boot_sector(bytes(512), gpt.MIB)
    assert struct.unpack_from("<Q", code, 0x5C) == (2048,)
    assert code[0x66:0x68] == b"\x90\x90"
    assert len(code) == 440
    core = gpt.embedded_core(b"x" * 1300, gpt.MIB)
    assert len(core) == 3 * 512
    assert struct.unpack_from("<QHH", core, 500) == (2049, 2, 0x820)


def test_elf_needs_of_a_real_program() -> None:
    program = Path(shutil.which("cat") or "/bin/cat")
    names = needed(program)
    assert any(name.startswith("libc.so") for name in names)
    assert "ld-linux" in names[0]


def test_elf_closure_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="is missing"):
        library_closure([Path(shutil.which("cat") or "/bin/cat")], [tmp_path])


def test_elf_refuses_scripts(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n")
    with pytest.raises(BuildFailed, match="ELF"):
        needed(tmp_path / "script")


def module(*depends: str, alias: str = "") -> bytes:
    text = f"\0license=GPL\0alias={alias}\0depends={','.join(depends)}\0name=x\0"
    return b"\x7fELF" + text.encode()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    kernel = tmp_path / "usr/lib/modules/6.1.0/kernel"
    (kernel / "drivers").mkdir(parents=True)
    (kernel / "drivers/virtio-net.ko").write_bytes(module("net_failover", alias="virtio:d1*"))
    (kernel / "net_failover.ko.xz").write_bytes(lzma.compress(module("failover")))
    (kernel / "failover.ko").write_bytes(module())
    return tmp_path


def test_modules_come_after_their_needs(tree: Path) -> None:
    modules = Modules(tree, "6.1.0")
    order = ["failover", "net_failover", "virtio_net"]
    assert modules.closure(["virtio_net", "built_in"]) == order
    assert modules.closure(["failover", "virtio-net", "virtio_net"]) == order
    assert modules.path("net_failover") == "kernel/net_failover.ko"
    assert modules.content("net_failover") == module("failover")
    assert modules.aliases("virtio_net") == ["virtio:d1*"]


def test_the_newest_kernel_is_newest_by_number(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    for version in ("6.1.0-9-cloud-amd64", "6.1.0-44-cloud-amd64", "6.1.0-10-cloud-amd64"):
        (tmp_path / "boot" / f"vmlinuz-{version}").touch()
    assert newest_kernel(tmp_path)[0] == "6.1.0-44-cloud-amd64"


def test_a_tree_without_kernel_is_told(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="no kernel"):
        newest_kernel(tmp_path)


def test_this_python_runs_from_elf() -> None:
    assert needed(Path(sys.executable).resolve())
