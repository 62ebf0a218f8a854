"""What a stranger's file is, and which are refused: each with a file written for it."""

from __future__ import annotations

import io
import os
import struct
import subprocess
from pathlib import Path

import pycdlib
import pytest

from guesthouse.errors import InvalidInput
from guesthouse.images.foreign.looking import look
from guesthouse.images.foreign.window import Foreign
from guesthouse.model.image import SourceFormat as F
from tests.foreign_files import (
    CLUSTER,
    MIB,
    SECTOR,
    descriptor,
    extension,
    fixed_vhd,
    iso,
    patched,
    qcow2,
    vdi,
    vhd,
    vhd_footer,
    vmdk,
    write,
)

TIB = 1 << 40
MOST = 2 * TIB
PARENT = bytes(range(1, 17))


def looked(path: Path, wanted: F | None = None, most: int = MOST) -> Foreign:
    fd = os.open(path, os.O_RDONLY)
    try:
        return look(fd, wanted, most)
    finally:
        os.close(fd)


def mbr(size: int = MIB) -> bytes:
    return patched(bytes(size), (510, b"\x55\xaa"))


GOOD = {
    "qcow2": (qcow2(), F.QCOW2, 4 * MIB),
    "qcow2-v2": (qcow2(version=2), F.QCOW2, 4 * MIB),
    "qcow2-zstd": (qcow2(incompatible=1 << 3), F.QCOW2, 4 * MIB),
    "qcow2-bitmap-extension": (
        qcow2(extensions=extension(0x23852875, bytes(24))),
        F.QCOW2,
        4 * MIB,
    ),
    "vmdk": (vmdk(), F.VMDK, 4 * MIB),
    "vmdk-stream": (vmdk(descriptor("streamOptimized"), version=3), F.VMDK, 4 * MIB),
    "vdi": (vdi(), F.VDI, 4 * MIB),
    "vhd-dynamic": (vhd(), F.VPC, 4 * MIB),
    "vhd-fixed": (fixed_vhd(), F.VPC, 4 * MIB),
    "iso": (iso(), F.ISO, 32 * 2048),
    "iso-with-mbr": (patched(iso(), (510, b"\x55\xaa")), F.ISO, 32 * 2048),
    "iso-odd-end": (iso() + b"x" * 100, F.ISO, 33 * 2048),
    "mbr": (mbr(), F.RAW, MIB),
    "gpt": (patched(bytes(MIB), (512, b"EFI PART")), F.RAW, MIB),
    "raw-odd-end": (mbr() + b"x", F.RAW, MIB + SECTOR),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_ones_are_recognised_by_themselves(name: str, tmp_path: Path) -> None:
    data, kind, size = GOOD[name]
    found = looked(write(tmp_path / "image", data))
    assert (found.format, found.size) == (kind, size)
    assert looked(tmp_path / "image", kind).format is kind


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vdi", "vhdx", "vpc"])
def test_what_qemu_img_writes_is_taken(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, "64M"], check=True)
    found = looked(path)
    assert found.format.value == kind
    assert 64 * MIB <= found.size < 65 * MIB  # a VHD is rounded up to whole cylinders


NOTES = {
    "snapshots": (qcow2(snapshots=2, data=b"table"), "2 snapshots inside"),
    "bitmaps": (qcow2(autoclear=1), "bitmaps"),
    "dirty": (qcow2(incompatible=1), "not closed properly"),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_is_left_behind_is_said(name: str, tmp_path: Path) -> None:
    data, said = NOTES[name]
    (note,) = looked(write(tmp_path / "image", data)).notes
    assert said in note


# name: (file, reason, what the message says)
REFUSED: dict[str, tuple[bytes, str, str]] = {
    # Files that would make qemu-img open another one
    "qcow2-backing": (qcow2(backing=b"/etc/shadow"), "backing-file", "'/etc/shadow'"),
    "qcow2-backing-v2": (
        patched(qcow2(version=2), (8, struct.pack(">QI", 80, 11)), (80, b"/etc/shadow")),
        "backing-file",
        "/etc/shadow",
    ),
    "qcow2-backing-json": (qcow2(backing=b'json:{"driver":"nbd"}'), "backing-file", "nbd"),
    "qcow2-data-file": (qcow2(incompatible=1 << 2), "data-file", "another file"),
    "qcow2-data-file-name": (
        qcow2(extensions=extension(0x44415441, b"/etc/shadow")),
        "data-file",
        "another file",
    ),
    "vmdk-text": (descriptor("monolithicFlat", extents='RW 8 FLAT "/etc/shadow" 0'), "other-files",
                  "names the files"),
    "vmdk-esx": (b"COWD".ljust(4096, b"\0"), "other-files", "ESX"),
    "vmdk-flat": (
        vmdk(descriptor("monolithicFlat", extents='RW 8192 FLAT "/etc/shadow" 0')),
        "other-files",
        "monolithicFlat",
    ),
    "vmdk-split": (
        vmdk(descriptor("twoGbMaxExtentSparse", extents='RW 8192 SPARSE "s001.vmdk"')),
        "other-files",
        "twoGbMaxExtentSparse",
    ),
    "vmdk-second-extent": (
        vmdk(descriptor(extents='RW 8192 SPARSE "a"\nRW 8 FLAT "/etc/shadow" 0')),
        "other-files",
        "names other files",
    ),
    "vmdk-flat-extent": (
        vmdk(descriptor(extents='RW 8192 FLAT "/etc/shadow" 0')),
        "other-files",
        "names other files",
    ),
    "vmdk-no-capacity": (vmdk(capacity=0), "other-files", "by itself"),
    "vmdk-no-capacity-in-footer": (
        vmdk(gd_at=(1 << 64) - 1, footer=vmdk(capacity=0)[:SECTOR] + bytes(SECTOR)),
        "other-files",
        "by itself",
    ),
    "vmdk-descriptor-elsewhere": (vmdk(text_at=2), "other-files", "by itself"),
    "vmdk-parent-hint": (
        vmdk(descriptor(hint='parentFileNameHint="/etc/shadow"')),
        "backing-file",
        "differs",
    ),
    "vmdk-parent-hint-behind-the-text": (
        patched(vmdk(), (SECTOR + 5000, b'parentFileNameHint="/etc/shadow"\n')),
        "backing-file",
        "differs",
    ),
    "vmdk-parent-cid": (vmdk(descriptor(parent_cid="1234abcd")), "backing-file", "differs"),
    "vdi-differencing": (vdi(kind=4), "backing-file", "differs"),
    "vdi-undo": (vdi(kind=3), "backing-file", "differs"),
    "vdi-link": (vdi(link=PARENT), "backing-file", "differs"),
    "vdi-parent": (vdi(parent=PARENT), "backing-file", "differs"),
    "vhd-differencing": (vhd(kind=4), "backing-file", "differs"),
    "vhd-parent-id": (vhd(parent=PARENT), "backing-file", "differs"),
    # Encrypted, or of a later program
    "qcow2-aes": (qcow2(crypt=1), "encrypted", "encrypted"),
    "qcow2-luks": (qcow2(crypt=2), "encrypted", "encrypted"),
    "qcow2-unknown-feature": (qcow2(incompatible=1 << 17), "unknown-feature", "0x20000"),
    # Sizes that cannot be
    "qcow2-3T": (qcow2(3 * TIB, l1=6144)[: 64 * CLUSTER], "too-large", "3T"),
    "qcow2-no-size": (patched(qcow2(), (24, bytes(8))), "damaged", "no size"),
    "vmdk-4T": (vmdk(capacity=4 * TIB // SECTOR), "too-large", "4T"),
    "vmdk-huge-in-footer": (
        vmdk(gd_at=(1 << 64) - 1, footer=vmdk(capacity=1 << 40)[:SECTOR] + bytes(SECTOR)),
        "too-large",
        "at most 2T",
    ),
    "vdi-3T": (vdi(size=3 * TIB), "too-large", "3T"),
    "vhd-8E": (vhd(size=1 << 62), "too-large", "at most 2T"),
    # Damaged
    "qcow2-cut": (qcow2()[: CLUSTER // 2], "damaged", "outside the file"),
    "qcow2-short": (b"QFI\xfb" + bytes(20), "damaged", "begin like one"),
    "qcow2-version": (patched(qcow2(), (4, b"\0\0\0\x09")), "damaged", "version"),
    "qcow2-cluster-size": (patched(qcow2(), (20, b"\0\0\0\x1e")), "damaged", "cluster size"),
    "qcow2-corrupt": (qcow2(incompatible=1 << 1), "damaged", "corrupt"),
    "qcow2-l1-outside": (patched(qcow2(), (40, struct.pack(">Q", 1 << 50))), "damaged",
                         "first table"),
    "qcow2-l1-short": (qcow2(TIB, l1=1)[: 64 * CLUSTER], "damaged", "fit its size"),
    "qcow2-l1-huge": (patched(qcow2(), (36, b"\x7f\0\0\0")), "damaged", "fit its size"),
    "qcow2-refcounts-outside": (patched(qcow2(), (48, struct.pack(">Q", 1 << 50))), "damaged",
                                "reference counts"),
    "qcow2-refcounts-huge": (patched(qcow2(), (56, b"\0\x10\0\0")), "damaged", "too large"),
    "qcow2-many-snapshots": (qcow2(snapshots=1 << 20), "damaged", "more snapshots"),
    "qcow2-extension-outside": (qcow2(extensions=struct.pack(">II", 7, 1 << 30)), "damaged",
                                "extension"),
    "vmdk-cut": (vmdk()[:400], "damaged", "grain directory"),
    "vmdk-cut-in-descriptor": (vmdk(gd_at=1)[:3000], "damaged", "descriptor"),
    "vmdk-short": (b"KDMV" + bytes(8), "damaged", "header"),
    "vmdk-version": (vmdk(version=9), "damaged", "version 9"),
    "vmdk-by-ftp": (vmdk(eol=b"\r\n\r\n"), "damaged", "transfer as text"),
    "vmdk-grain": (vmdk(grain=3), "damaged", "grains"),
    "vmdk-tables": (patched(vmdk(), (44, struct.pack("<I", 0))), "damaged", "tables"),
    "vmdk-tables-huge": (patched(vmdk(), (44, b"\xff\xff\xff\xff")), "damaged", "tables"),
    "vmdk-directory-outside": (vmdk(gd_at=1 << 40), "damaged", "grain directory"),
    "vmdk-odd-end": (
        vmdk(gd_at=(1 << 64) - 1, footer=vmdk()[:SECTOR] + bytes(SECTOR)) + b"x",
        "damaged",
        "whole sector",
    ),
    "vmdk-no-footer": (vmdk(gd_at=(1 << 64) - 1), "damaged", "footer"),
    "vmdk-no-kind": (vmdk(descriptor().replace(b"createType", b"created")), "damaged", "kind"),
    "vdi-cut": (vdi()[:300], "damaged", "header"),
    "vdi-no-size": (vdi(size=0), "damaged", "no size"),
    "vdi-version": (vdi(version=0x00020000), "damaged", "2.0"),
    "vdi-block-size": (vdi(block=4096), "damaged", "blocks"),
    "vdi-map-outside": (vdi(map_at=1 << 30), "damaged", "map of blocks"),
    "vdi-blocks-outside": (vdi(allocated=4), "damaged", "last of its blocks"),
    "vdi-too-few-blocks": (vdi(blocks=1), "damaged", "contradicts"),
    "vhd-no-size": (vhd(size=0), "damaged", "no size"),
    "vhd-block-size": (vhd(block=3 * MIB), "damaged", "table"),
    "vhd-block-huge": (vhd(block=1 << 31), "damaged", "table"),
    "vhd-header-outside": (vhd_footer(3, MIB, at=1 << 60) + bytes(2048), "damaged", "outside"),
    "vhd-checksum": (vhd_footer(3, MIB, sound=False) + bytes(2048), "damaged", "checksum"),
    "vhd-header-checksum": (vhd(sound=False), "damaged", "checksum"),
    "vhd-no-header": (vhd(magic=b"something"[:8]), "damaged", "second header"),
    "vhd-kind": (vhd(kind=7), "damaged", "kind"),
    "vhd-table": (vhd(entries=1), "damaged", "table"),
    "vhd-table-outside": (vhd(table_at=1 << 40), "damaged", "outside"),
    "vhd-fixed-cut": (fixed_vhd(claims=8 * MIB), "damaged", "end of its disk"),
    "iso-cut": (iso(claims=1000), "damaged", "end of its volume"),
    "iso-no-end": (
        patched(
            iso(blocks=128),
            *((number * 2048, b"\x02CD001\x01") for number in range(18, 16 + 64)),
        ),
        "damaged",
        "do not end",
    ),
    "iso-cut-in-descriptors": (iso()[: 17 * 2048], "damaged", "volume descriptors"),
    "iso-no-volume": (iso(claims=0), "damaged", "no size"),
    "iso-endless": (patched(iso(), (18 * 2048 + 1, b"XXXXX")), "damaged", "do not end"),
    "iso-data-only": (iso(bootable=False), "not-bootable", "El Torito"),
    # No disk image at all
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "packed", "gzip"),
    "xz": (b"\xfd7zXZ\0" + bytes(100), "packed", "xz"),
    "bzip2": (b"BZh9" + bytes(100), "packed", "bzip2"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(100), "packed", "zstd"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "packed", "7z"),
    "zip": (b"PK\x03\x04" + bytes(100), "packed", "zip"),
    "ova": (patched(bytes(10240), (257, b"ustar")), "packed", "OVA"),
    "text": (b"#!/bin/sh\n" + b"echo hello\n" * 100, "unknown-format", "a text"),
    "zeroes": (bytes(MIB), "unknown-format", "nothing that boots"),
    "empty": (b"", "unknown-format", "empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    data, reason, said = REFUSED[name]
    with pytest.raises(InvalidInput) as caught:
        looked(write(tmp_path / "image", data))
    assert caught.value.detail["reason"] == reason
    assert said in caught.value.message
    assert caught.value.hint or reason == "unknown-format"


def vhdx(path: Path) -> bytes:
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", path, "8M"], check=True)
    return path.read_bytes()


def metadata_of(data: bytes) -> int:
    return data.index(b"metadata")


def test_vhdx_with_a_parent(tmp_path: Path) -> None:
    path = tmp_path / "image"
    data = vhdx(path)
    region = metadata_of(data)
    # The file parameters are the first item; their flags are behind the block's size.
    (at,) = struct.unpack_from("<I", data, region + 32 + 16)
    write(path, patched(data, (region + at + 4, b"\x02\0\0\0")))
    with pytest.raises(InvalidInput, match="differs") as caught:
        looked(path)
    assert caught.value.detail["reason"] == "backing-file"


def test_vhdx_with_a_parent_locator(tmp_path: Path) -> None:
    path = tmp_path / "image"
    data = vhdx(path)
    region = metadata_of(data)
    (count,) = struct.unpack_from("<H", data, region + 10)
    locator = bytes.fromhex("2d5fd3a80bb34d45abf7d3d84834ab0c")
    entry = locator + struct.pack("<IIII", 65536, 40, 4, 0)
    write(
        path,
        patched(
            data,
            (region + 10, struct.pack("<H", count + 1)),
            (region + 32 + 32 * count, entry),
        ),
    )
    with pytest.raises(InvalidInput, match="differs"):
        looked(path)


def _size_at(data: bytes) -> int:
    """Where the size of the disk stands."""
    region = metadata_of(data)
    item = data.index(bytes.fromhex("2442a52f1bcd7648b2115dbed83bf4b8"), region)
    (at,) = struct.unpack_from("<I", data, item + 16)
    return region + at


def _second_metadata(data: bytes) -> tuple[tuple[int, bytes], ...]:
    """Changes after which the second table of regions leads to a disk of another size."""
    region = metadata_of(data)
    item = data.index(bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e"), 256 << 10)
    copy = bytearray(data[region : region + MIB])
    struct.pack_into("<Q", copy, _size_at(data) - region, 16 * MIB)
    return (len(data), bytes(copy)), (item + 16, struct.pack("<Q", len(data)))


def vhdx_changes(data: bytes) -> dict[str, tuple[bytes, str, str]]:
    region = metadata_of(data)
    log = PARENT
    return {
        "log": (patched(data, (65536 + 48, log), (131072 + 48, log)), "unclean", "log"),
        "no-header": (patched(data, (65536, b"xxxx"), (131072, b"xxxx")), "damaged", "no header"),
        "regions": (patched(data, (196608, b"xxxx")), "damaged", "regions"),
        "many-regions": (patched(data, (196616, b"\xff\xff\0\0")), "damaged", "regions"),
        "metadata": (patched(data, (region, b"xxxxxxxx")), "damaged", "metadata"),
        "no-metadata": (
            patched(data, (196608 + 16, PARENT), (196608 + 48, PARENT)),
            "damaged",
            "no metadata",
        ),
        "metadata-outside": (
            patched(data, (region + 32 + 16, b"\xff\xff\xff\x7f")),
            "damaged",
            "lies outside of it",
        ),
        "region-outside": (
            patched(data, (196608 + 16 + 16, struct.pack("<Q", 1 << 60))),
            "damaged",
            "regions",
        ),
        "two-sizes": (
            # The second table leads to other metadata, put behind the end.
            patched(data, *_second_metadata(data)),
            "damaged",
            "contradict each other",
        ),
        "no-size": (patched(data, (_size_at(data), bytes(8))), "damaged", "no size"),
        "cut": (data[:200_000], "damaged", "outside"),
    }


VHDX = [
    *("log", "no-header", "regions", "many-regions", "region-outside", "metadata", "no-metadata"),
    *("metadata-outside", "two-sizes", "no-size", "cut"),
]


@pytest.mark.parametrize("name", VHDX)
def test_vhdx_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    data, reason, said = vhdx_changes(vhdx(path))[name]
    with pytest.raises(InvalidInput) as caught:
        looked(write(path, data))
    assert (caught.value.detail["reason"], said in caught.value.message) == (reason, True)


def test_vhdx_too_large(tmp_path: Path) -> None:
    vhdx(tmp_path / "image")
    with pytest.raises(InvalidInput, match="8M, and this house takes at most 4M"):
        looked(tmp_path / "image", most=4 * MIB)


def test_raw_too_large(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="3T"):
        looked(write(tmp_path / "image", mbr(), 3 * TIB))


def test_raw_without_a_sector(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="smaller than a sector") as caught:
        looked(write(tmp_path / "image", b"x" * 100), F.RAW)
    assert caught.value.detail["reason"] == "damaged"


def test_named_raw_is_raw_whatever_it_says(tmp_path: Path) -> None:
    """The classic attack: a guest writes a qcow2 header over its own raw disk."""
    path = write(tmp_path / "image", qcow2(backing=b"/etc/shadow"))
    assert looked(path, F.RAW) == Foreign(F.RAW, path.stat().st_size)


def test_a_format_that_it_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "image", vdi())
    with pytest.raises(InvalidInput, match="looks like vdi") as caught:
        looked(path, F.QCOW2)
    assert caught.value.detail["field"] == "format"


def test_a_disc_that_another_program_wrote(tmp_path: Path) -> None:
    disc = pycdlib.PyCdlib()
    disc.new()
    disc.add_fp(io.BytesIO(b"boot code".ljust(2048)), 2048, "/BOOT.;1")
    with pytest.raises(InvalidInput, match="El Torito"):
        disc.write(tmp_path / "data.iso")
        looked(tmp_path / "data.iso")
    disc.add_eltorito("/BOOT.;1", bootcatfile="/BOOT.CAT;1")
    disc.write(tmp_path / "boot.iso")
    disc.close()
    size = (tmp_path / "boot.iso").stat().st_size
    assert looked(tmp_path / "boot.iso") == Foreign(F.ISO, size)
