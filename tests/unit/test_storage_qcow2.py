"""Headers of qcow2 files, those that QEMU writes and those that an attacker would."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guesthouse.errors import EngineError
from guesthouse.storage.qcow2 import assert_sound_header, parse_header, plain_name, read_header


def qemu_img(*argv: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, argv)], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.qcow2"
    qemu_img("create", "-f", "qcow2", path, "64M")
    return path


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_what_qemu_writes_is_read(tmp_path: Path, base: Path, compat: str) -> None:
    top = tmp_path / "top.qcow2"
    qemu_img(
        "create", "-f", "qcow2", "-o", f"compat={compat}", "-b", base.name, "-F", "qcow2", top, "1G"
    )
    header = assert_sound_header(top, parent="base.qcow2", parent_format="qcow2")
    assert (header.size, header.cluster_size) == (1 << 30, 1 << 16)
    assert assert_sound_header(base).size == 64 << 20
    with pytest.raises(EngineError, match="takes its parent for qcow2"):
        assert_sound_header(top, parent="base.qcow2", parent_format="raw")


def test_a_compressed_image_is_sound(tmp_path: Path, base: Path) -> None:
    small = tmp_path / "small.qcow2"
    qemu_img("convert", "-c", "-f", "qcow2", "-O", "qcow2", "-o", "compression_type=zstd", base,
             small)  # fmt: skip
    assert assert_sound_header(small).size == 64 << 20


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x.qcow2", "/dev/fdset/1", "nbd://host/x", "json:{}", "sub/x.qcow2"]
)
def test_a_parent_elsewhere_is_refused_even_when_expected(tmp_path: Path, name: str) -> None:
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-u", "-f", "qcow2", "-b", name, "-F", "raw", top, "1G")
    assert read_header(top).backing == name
    with pytest.raises(EngineError, match="names"):
        assert_sound_header(top)
    with pytest.raises(EngineError, match="names"):
        assert_sound_header(top, parent=name)


def test_a_data_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'raw'}", path, "1M")
    with pytest.raises(EngineError, match="another file"):
        assert_sound_header(path)


def test_another_parent_is_refused(tmp_path: Path, base: Path) -> None:
    with pytest.raises(EngineError, match=r"'nothing'.*should be 'other.qcow2'"):
        assert_sound_header(base, parent="other.qcow2")


@pytest.mark.parametrize("data", [b"", b"QFI\xfb", b"x" * 4096, b"QFI\xfb" + b"\xff" * 4096])
def test_rubbish_is_no_header(data: bytes) -> None:
    with pytest.raises(EngineError, match="not a whole qcow2 file"):
        parse_header(data, "it")


@given(st.binary(max_size=300), st.sampled_from([2, 3]))
def test_any_header_is_parsed_or_refused(rest: bytes, version: int) -> None:
    data = b"QFI\xfb" + struct.pack(">I", version) + rest
    try:
        header = parse_header(data, "it")
    except EngineError:
        return
    assert len(header.backing) <= 1023


@pytest.mark.parametrize(
    ("name", "plain"),
    [("", True), ("01J.qcow2", True), ("..", False), ("a/b", False), ("nbd:x", False),
     ("fdset1", False), ("a\0b", False)],
)  # fmt: skip
def test_plain_names(name: str, plain: bool) -> None:
    assert plain_name(name) is plain
