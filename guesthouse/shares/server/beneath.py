"""Paths beneath the share. Every one is resolved by the kernel in one go (openat2(2)), which
refuses each symbolic link and each step above the share, however the tree changes meanwhile.

The guest's kernel follows links itself, in the guest, so that the server never has to.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from . import kernel

_RESOLVE = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_MAGICLINKS
_FOLLOW = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_MAGICLINKS
_ATTEMPTS = 64
"""EAGAIN: something was renamed while a ".." was resolved, which our paths do not have; but a
kernel may say so of any path."""


def normal(path: bytes) -> bytes:
    """The path from the share's root, without "." and ".."; ".." of the root is the root.

    :raise OSError: there is a NUL in it.
    """
    if b"\0" in path:
        raise OSError(errno.EINVAL, "a path holds a NUL")
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


class Tree:
    """The share. :param root: descriptor of its folder. :param processes: of /proc/self/fd.

    Methods raise OSError. A descriptor that is returned is the caller's to close.
    """

    def __init__(self, root: int, processes: int) -> None:
        self._root = root
        self._processes = processes

    def open(self, path: bytes, flags: int, mode: int = 0) -> int:
        return self._open(path, flags | os.O_NOFOLLOW, mode, _RESOLVE)

    def open_file(self, path: bytes, flags: int, mode: int) -> int:
        """A regular file: a pipe or a device would hold the server up, or worse."""
        fd = self.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, mode)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EACCES, "not a regular file")
        return fd

    @contextmanager
    def at(self, path: bytes, *, follow: bool = False) -> Iterator[int]:
        """What is there, without opening it; a link itself unless `follow`, which follows links
        that stay in the share."""
        fd = self._open(
            path,
            os.O_PATH | (0 if follow else os.O_NOFOLLOW),
            0,
            _FOLLOW if follow else _RESOLVE,
        )
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def parent(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """The folder that holds `path`, and its name in there."""
        folder, _, name = normal(path).rpartition(b"/")
        if not name:
            raise OSError(errno.EBUSY, "the share itself")
        fd = self.open(folder, os.O_PATH | os.O_DIRECTORY)
        try:
            yield fd, name
        finally:
            os.close(fd)

    def chmod(self, fd: int, mode: int) -> None:
        """As fchmod(2), which takes no descriptor that was opened as a mere path."""
        os.chmod(str(fd), mode, dir_fd=self._processes)

    def utime(self, fd: int, times: tuple[int, int]) -> None:
        """As futimes(3), likewise. In whole seconds."""
        os.utime(str(fd), times, dir_fd=self._processes)

    def _open(self, path: bytes, flags: int, mode: int, resolve: int) -> int:
        relative = normal(path) or b"."
        for _ in range(_ATTEMPTS):
            try:
                return kernel.openat2(self._root, relative, flags, mode, resolve)
            except BlockingIOError:
                continue
        raise OSError(errno.EAGAIN, "the tree changes too fast")
