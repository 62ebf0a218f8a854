"""Kernels and their modules inside an unpacked tree."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from pathlib import Path

import zstandard

from guesthouse.errors import BuildFailed

_VERSION_PART = re.compile(r"\d+|\D+")


class Modules:
    """The modules of one kernel below `tree`, found by name ('-' and '_' are the same letter)."""

    def __init__(self, tree: Path, version: str) -> None:
        self.version = version
        folders = [tree / prefix / "modules" / version for prefix in ("usr/lib", "lib")]
        self._root = next((folder for folder in folders if folder.is_dir()), folders[0])
        self._files = {
            _canonical(path.name.split(".ko", 1)[0]): path
            for path in sorted((self._root / "kernel").rglob("*.ko*"))
        }

    def closure(self, names: Iterable[str]) -> list[str]:
        """The named modules that exist and all they need, each after what it depends on.

        A name that does not exist is built into the kernel or absent from it: it is left out.
        """
        ordered: list[str] = []

        def visit(name: str) -> None:
            if name in ordered or name not in self._files:
                return
            for needed in self.depends(name):
                visit(needed)
            ordered.append(name)

        for name in names:
            visit(_canonical(name))
        return ordered

    def content(self, name: str) -> bytes:
        """The module as an ELF file, uncompressed."""
        path = self._files[_canonical(name)]
        data = path.read_bytes()
        if path.suffix == ".xz":
            return lzma.decompress(data)
        if path.suffix == ".zst":
            return zstandard.ZstdDecompressor().decompressobj().decompress(data)
        return data

    def path(self, name: str) -> str:
        """Where it lies below /lib/modules/VERSION, as an uncompressed file."""
        path = self._files[_canonical(name)].relative_to(self._root)
        return str(path).split(".ko", 1)[0] + ".ko"

    def depends(self, name: str) -> list[str]:
        """The modules it needs, from the depends= line of its .modinfo section."""
        found = re.search(rb"\0depends=([^\0]*)\0", self.content(name))
        listed = found.group(1).decode().split(",") if found else []
        return [_canonical(needed) for needed in listed if needed]

    def aliases(self, name: str) -> list[str]:
        """The device patterns and other names it answers to."""
        return [
            match.decode() for match in re.findall(rb"\0alias=([^\0]+)(?=\0)", self.content(name))
        ]


def newest_kernel(tree: Path) -> tuple[str, Path]:
    """Version and file of the newest kernel in the tree's /boot. Raises BuildFailed without one."""
    kernels = sorted((tree / "boot").glob("vmlinuz-*"), key=lambda path: _sort_key(path.name))
    if not kernels:
        raise BuildFailed("The unpacked packages contain no kernel.", hint="Try another mirror.")
    return kernels[-1].name.removeprefix("vmlinuz-"), kernels[-1]


def _canonical(name: str) -> str:
    return name.replace("-", "_")


def _sort_key(name: str) -> list[tuple[int, str]]:
    return [
        (int(piece), "") if piece.isdigit() else (-1, piece)
        for piece in _VERSION_PART.findall(name)
    ]
