"""Writes cpio archives in the "newc" format, which the kernel unpacks as its first file system.

All entries belong to root whoever writes them, so no privilege is needed. Format: cpio(5) and the
kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath


class Archive:
    """A tree in memory, written out in the order of its paths with all parents first."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def folder(self, path: str, mode: int = 0o755) -> None:
        self._add(path, stat.S_IFDIR | mode, b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._add(path, stat.S_IFREG | mode, content)

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int, mode: int) -> None:
        self._add(path, stat.S_IFCHR | mode, b"", (major, minor))

    def __contains__(self, path: str) -> bool:
        return path.strip("/") in self._entries

    def write(self, out: Path) -> int:
        """Writes the archive; returns its size in bytes."""
        ordered = sorted(self._entries.items(), key=lambda item: PurePosixPath(item[0]).parts)
        with out.open("wb") as file:
            for number, (path, entry) in enumerate(ordered, start=1):
                file.write(_record(number, path, entry))
            file.write(_record(0, "TRAILER!!!", _Entry(0, b"", (0, 0))))
            return file.tell()

    def _add(self, path: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        name = path.strip("/")
        for parent in PurePosixPath(name).parents:
            if parent.name and str(parent) not in self._entries:
                self._entries[str(parent)] = _Entry(stat.S_IFDIR | 0o755, b"", (0, 0))
        self._entries[name] = _Entry(mode, data, device)


class _Entry:
    __slots__ = ("data", "device", "mode")

    def __init__(self, mode: int, data: bytes, device: tuple[int, int]) -> None:
        self.mode, self.data, self.device = mode, data, device


def _record(number: int, path: str, entry: _Entry) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # inode, mode, uid, gid, links, mtime, size, device of the file (2), device node (2), name, sum
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device)
    head = b"070701" + b"".join(b"%08X" % field for field in (*fields, len(name), 0)) + name
    return _padded(head) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
