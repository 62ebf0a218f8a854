"""Disk images of every format, written byte by byte: good ones, and what an attacker would send."""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

MIB = 1 << 20
SECTOR = 512
CLUSTER = 1 << 16


def patched(data: bytes, *changes: tuple[int, bytes]) -> bytes:
    """`data` with other bytes at some places."""
    out = bytearray(data)
    for at, new in changes:
        out[at : at + len(new)] = new
    return bytes(out)


def write(path: Path, data: bytes, size: int | None = None) -> Path:
    """:param size: of the file, the rest being a hole."""
    with path.open("wb") as file:
        file.write(data)
        if size is not None:
            file.truncate(size)
    return path


# --- qcow2 ----------------------------------------------------------------------------------------


def qcow2(
    size: int = 4 * MIB,
    *,
    version: int = 3,
    backing: bytes = b"",
    crypt: int = 0,
    l1: int | None = None,
    snapshots: int = 0,
    incompatible: int = 0,
    autoclear: int = 0,
    extensions: bytes = b"",
    data: bytes = b"",
    clusters: int = 1,
    refcount: int = 1,
) -> bytes:
    """An image whose first clusters hold `data`, one cluster long, all of them the same one.

    :param clusters: how many of the guest's clusters lead to it. :param refcount: what the file
        says how many do.
    """
    entries = size // CLUSTER
    tables = -(-entries // (CLUSTER // 8))
    l1_count = tables if l1 is None else l1
    # Clusters of the file: header, table and block of reference counts, L1, L2 tables, data.
    l1_at, l2_at = 3 * CLUSTER, 4 * CLUSTER
    data_at = l2_at + tables * CLUSTER
    name_at = 104 + len(extensions) + 8 if backing else 0
    header = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb",
        version,
        name_at,
        len(backing),
        16,
        size,
        crypt,
        l1_count,
        l1_at,
        CLUSTER,
        1,
        snapshots,
        data_at if snapshots else 0,
    )
    if version == 3:
        header += struct.pack(">QQQII", incompatible, 0, autoclear, 4, 104)
    header += extensions + bytes(8) + backing
    out = bytearray(data_at + CLUSTER)
    out[: len(header)] = header
    struct.pack_into(">Q", out, CLUSTER, 2 * CLUSTER)
    used = 4 + tables + (1 if data else 0)
    for index in range(used):
        struct.pack_into(">H", out, 2 * CLUSTER + 2 * index, 1)
    copied = 1 << 63
    for table in range(min(tables, l1_count)):
        struct.pack_into(">Q", out, l1_at + 8 * table, (l2_at + table * CLUSTER) | copied)
    if data:
        struct.pack_into(">H", out, 2 * CLUSTER + 2 * (data_at // CLUSTER), refcount)
        flag = copied if refcount == 1 else 0
        for index in range(clusters):
            struct.pack_into(">Q", out, l2_at + 8 * index, data_at | flag)
        out[data_at : data_at + CLUSTER] = data.ljust(CLUSTER, b"\0")[:CLUSTER]
    return bytes(out)


def extension(kind: int, data: bytes) -> bytes:
    """A header extension of qcow2."""
    return struct.pack(">II", kind, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\0")


# --- VMDK -----------------------------------------------------------------------------------------

DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=12345678
parentCID={parent_cid}
createType="{kind}"
{hint}
# Extent description
{extents}
# The Disk Data Base
ddb.adapterType = "ide"
"""


def descriptor(
    kind: str = "monolithicSparse",
    *,
    parent_cid: str = "ffffffff",
    hint: str = "",
    extents: str = 'RW 8192 SPARSE "disk.vmdk"',
) -> bytes:
    text = DESCRIPTOR.format(kind=kind, parent_cid=parent_cid, hint=hint, extents=extents)
    return text.encode()


def vmdk(
    text: bytes | None = None,
    *,
    capacity: int = 8192,
    version: int = 1,
    grain: int = 128,
    text_at: int = 1,
    gd_at: int = 21,
    eol: bytes = b"\n \r\n",
    footer: bytes = b"",
) -> bytes:
    """A sparse extent of `capacity` sectors with nothing in it."""
    text = descriptor() if text is None else text
    header = struct.pack(
        "<4sIIQQQQIQQQB4sH",
        b"KDMV",
        version,
        3,
        capacity,
        grain,
        text_at,
        20,
        512,
        22,
        gd_at,
        128,
        0,
        eol,
        0,
    )
    out = bytearray(128 * SECTOR)
    out[: len(header)] = header
    out[SECTOR : SECTOR + len(text)] = text
    struct.pack_into("<I", out, 21 * SECTOR, 23)  # the grain directory: one table, all zeroes
    return bytes(out) + footer


# --- VDI ------------------------------------------------------------------------------------------


def vdi(
    *,
    kind: int = 1,
    version: int = 0x00010001,
    size: int = 4 * MIB,
    block: int = MIB,
    blocks: int = 4,
    allocated: int = 1,
    map_at: int = 512,
    link: bytes = bytes(16),
    parent: bytes = bytes(16),
    data: bytes = b"vdi content",
) -> bytes:
    """One block is there; the map says that it is the first."""
    out = bytearray(2 * MIB)
    out[:39] = b"<<< Oracle VM VirtualBox Disk Image >>>"
    struct.pack_into("<IIIII", out, 0x40, 0xBEDA107F, version, 0x180, kind, 0)
    struct.pack_into("<II", out, 0x154, map_at, MIB)
    struct.pack_into("<IIIII", out, 0x15C, 0, 0, 0, SECTOR, 0)
    struct.pack_into("<QIIII", out, 0x170, size, block, 0, blocks, allocated)
    out[0x188:0x198] = uuid.UUID(int=1).bytes
    out[0x1A8:0x1B8] = link
    out[0x1B8:0x1C8] = parent
    struct.pack_into("<IIII", out, 512, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    out[MIB : MIB + len(data)] = data
    return bytes(out)


# --- VHD ------------------------------------------------------------------------------------------


def _summed(data: bytearray, at: int) -> bytes:
    data[at : at + 4] = bytes(4)
    struct.pack_into(">I", data, at, ~sum(data) & 0xFFFFFFFF)
    return bytes(data)


def vhd_footer(
    kind: int, size: int, *, at: int = SECTOR, sound: bool = True, geometry: int | None = None
) -> bytes:
    """:param geometry: bytes that the disk has by its cylinders, as an old program counts."""
    creator, cylinders = (b"qem2", size) if geometry is None else (b"vpc ", geometry)
    out = bytearray(SECTOR)
    struct.pack_into(">8sIIQ", out, 0, b"conectix", 2, 0x10000, at)
    struct.pack_into(">I4s", out, 24, 0, creator)
    struct.pack_into(">QQ", out, 40, size, size)
    struct.pack_into(">HBBI", out, 56, min(cylinders // (SECTOR * 16 * 63), 65535), 16, 63, kind)
    _summed(out, 64)
    return bytes(out) if sound else patched(bytes(out), (64, b"\0\0\0\0"))


def vhd(
    *,
    kind: int = 3,
    size: int = 4 * MIB,
    parent: bytes = bytes(16),
    block: int = 2 * MIB,
    entries: int = 2,
    table_at: int = 1536,
    magic: bytes = b"cxsparse",
    sound: bool = True,
    geometry: int | None = None,
) -> bytes:
    """A dynamic disk with nothing in it: footer, header, table, footer."""
    header = bytearray(1024)
    struct.pack_into(">8sQQIII", header, 0, magic, (1 << 64) - 1, table_at, 0x10000, entries, block)
    header[40:56] = parent
    _summed(header, 36)
    footer = vhd_footer(kind, size, geometry=geometry)
    table = b"\xff" * SECTOR
    whole = bytes(header) if sound else patched(bytes(header), (36, b"\0\0\0\0"))
    return footer + whole + table + footer


def fixed_vhd(
    size: int = 4 * MIB, *, content: bytes = b"fixed", claims: int | None = None
) -> bytes:
    return content.ljust(size, b"\0") + vhd_footer(2, size if claims is None else claims)


# --- ISO 9660 -------------------------------------------------------------------------------------


def iso(*, bootable: bool = True, blocks: int = 32, claims: int | None = None) -> bytes:
    out = bytearray(blocks * 2048)
    primary = bytearray(2048)
    primary[:7] = b"\x01CD001\x01"
    struct.pack_into("<I", primary, 80, blocks if claims is None else claims)
    out[16 * 2048 : 17 * 2048] = primary
    at = 17
    if bootable:
        record = b"\x00CD001\x01" + b"EL TORITO SPECIFICATION"
        out[at * 2048 : at * 2048 + len(record)] = record
        at += 1
    out[at * 2048 : at * 2048 + 7] = b"\xffCD001\x01"
    return bytes(out)
