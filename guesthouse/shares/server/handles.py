"""Open files and folders of one session, by the handle that the client holds."""

from __future__ import annotations

import errno
import os
import struct


class Folder:
    """A folder that is being listed, a bounded piece at a time."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._scan = os.scandir(fd)
        self._dots = [b".", b".."]

    def some(self, most: int) -> list[bytes]:
        """At most that many names more; none at the end."""
        names, self._dots = self._dots, []
        for entry in self._scan:
            names.append(os.fsencode(entry.name))
            if len(names) >= most:
                break
        return names

    def close(self) -> None:
        self._scan.close()
        os.close(self.fd)


class File:
    """An open regular file."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        os.close(self.fd)


class Handles:
    """At most `most` at once, so that no client eats the descriptors or the memory."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[bytes, File | Folder] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._open)

    def add(self, thing: File | Folder) -> bytes:
        """:raise OSError: there are too many; `thing` is closed."""
        if len(self._open) >= self._most:
            thing.close()
            raise OSError(errno.EMFILE, "too many open files")
        self._last += 1
        handle = struct.pack(">Q", self._last)
        self._open[handle] = thing
        return handle

    def file(self, handle: bytes) -> File:
        """:raise OSError: no file has it."""
        thing = self._open.get(handle)
        if not isinstance(thing, File):
            raise OSError(errno.EBADF, "no such handle")
        return thing

    def folder(self, handle: bytes) -> Folder:
        """:raise OSError: no folder has it."""
        thing = self._open.get(handle)
        if not isinstance(thing, Folder):
            raise OSError(errno.EBADF, "no such handle")
        return thing

    def fd(self, handle: bytes) -> int:
        """:raise OSError: nothing has it."""
        thing = self._open.get(handle)
        if thing is None:
            raise OSError(errno.EBADF, "no such handle")
        return thing.fd

    def close(self, handle: bytes) -> None:
        """:raise OSError: nothing has it."""
        thing = self._open.pop(handle, None)
        if thing is None:
            raise OSError(errno.EBADF, "no such handle")
        thing.close()

    def close_all(self) -> None:
        while self._open:
            self._open.popitem()[1].close()
