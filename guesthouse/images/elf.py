"""Which shared libraries a program needs, read from its ELF file (elf(5)); 64-bit little-endian."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from guesthouse.errors import BuildFailed

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB = 1, 5


def needed(program: Path) -> list[str]:
    """Names of the libraries that a program or library asks for, its loader first.

    Empty for static programs; raises BuildFailed for a file that is not ELF.
    """
    data = program.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise BuildFailed(f"{program.name} is not a 64-bit ELF program.")
    offset, size, count = struct.unpack_from("<Q", data, 32) + struct.unpack_from("<HH", data, 54)
    loads: list[tuple[int, int, int]] = []  # address, length, place in the file
    dynamic = b""
    names: list[str] = []
    for index in range(count):
        kind, _, place, address, _, length = struct.unpack_from(
            "<IIQQQQ", data, offset + index * size
        )
        if kind == _PT_LOAD:
            loads.append((address, length, place))
        elif kind == _PT_DYNAMIC:
            dynamic = data[place : place + length]
        elif kind == _PT_INTERP:
            names.append(data[place : place + length].rstrip(b"\0").decode())
    entries = list(struct.iter_unpack("<qQ", dynamic))
    strings = next((value for tag, value in entries if tag == _DT_STRTAB), 0)
    for address, length, place in loads:
        if address <= strings < address + length:
            start = strings - address + place
            for tag, value in entries:
                if tag == _DT_NEEDED:
                    names.append(data[start + value : data.index(b"\0", start + value)].decode())
    return names


def library_closure(programs: Iterable[Path], folders: Sequence[Path]) -> dict[str, Path]:
    """Every library that the programs need, by name. Raises BuildFailed when one is missing."""
    found: dict[str, Path] = {}
    queue = list(programs)
    while queue:
        for wanted in needed(queue.pop()):
            name = Path(wanted).name
            if name in found:
                continue
            places = (folder / name for folder in folders)
            place = next((path for path in places if path.is_file()), None)
            if place is None:
                raise BuildFailed(f"The library {name} is missing from the unpacked packages.")
            found[name] = place
            queue.append(place)
    return found
