"""Named descriptors that outlive the daemon: sealed RAM, saved states, taps, listening sockets."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .wire import Body, Refused


class FdStore:
    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def put(self, name: str, fd: int) -> None:
        """Keep `fd` under `name`, in place of what had the name before."""
        previous = self._fds.get(name)
        self._fds[name] = fd
        if previous is not None:
            os.close(previous)

    def copy(self, name: str) -> int:
        """A duplicate, to be given away."""
        return os.dup(self._get(name))

    def drop(self, name: str) -> None:
        os.close(self._get(name))
        del self._fds[name]

    def describe(self) -> list[Body]:
        """Sorted by name: what each one is, and how many bytes a memfd holds (else null)."""
        return [
            {"key": name, "kind": kind, "size": size}
            for name, (kind, size) in ((name, _kind(self._fds[name])) for name in sorted(self._fds))
        ]

    def _get(self, name: str) -> int:
        try:
            return self._fds[name]
        except KeyError:
            raise Refused("unknown-key", f"no descriptor is called {name!r}") from None


def _kind(fd: int) -> tuple[str, int | None]:
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return "socket", None
    if stat.S_ISCHR(mode):
        return "device", None
    if stat.S_ISFIFO(mode):
        return "pipe", None
    if str(Path(f"/proc/self/fd/{fd}").readlink()).startswith("/memfd:"):
        return "memfd", os.fstat(fd).st_size
    return "file", None
