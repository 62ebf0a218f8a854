"""Opens what a plan names. The descriptors go to QEMU and are closed here at once."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from guesthouse.drivers.base import AGENT_SOCKET, SSH_SOCKET, VNC_SOCKET
from guesthouse.drivers.qemu.opened import files
from guesthouse.drivers.qemu.plan import Plan
from guesthouse.errors import LaunchFailed, NoMemory, NotFound
from guesthouse.host.launcher import FdTable

QMP_SOCKET = "qmp.sock"
KEEPER_QMP_SOCKET = "keeper-qmp.sock"
SERIAL_SOCKET = "serial.sock"

_PATHS = {
    "qmp": QMP_SOCKET,
    "keeper": KEEPER_QMP_SOCKET,
    "agent": AGENT_SOCKET,
    "ssh": SSH_SOCKET,
    "serial": SERIAL_SOCKET,
}
_BACKLOG = 8


class Opened:
    """What is open for one start: `table` for the keeper, `number` for the command line."""

    def __init__(self) -> None:
        self.table = FdTable()
        self._numbers: dict[str, int] = {}

    def add(self, name: str, fd: int) -> None:
        self._numbers[name] = self.table.add(fd)

    def number(self, name: str) -> str:
        return str(self._numbers[name])


def open_all(plan: Plan, runtime: Path, taps: Mapping[int, int]) -> Opened:
    """Bind the sockets in `runtime`, make the memory, open the files. Blocks shortly.

    :param taps: by number of the card the descriptor of its tap, which stays the caller's.
    :raise NotFound: a disk or boot file is not there. :raise NoMemory:
    :raise LaunchFailed: one cannot be opened.
    """
    opened = Opened()
    with ExitStack() as on_failure:
        on_failure.callback(opened.table.close)
        for name, path in _PATHS.items():
            opened.add(name, listen(runtime / path).detach())
        opened.add("ram", _memory(plan.memory))
        for file in files(plan):
            opened.add(file.name, _open(file.path, writable=file.writable))
        for index, tap in taps.items():
            opened.add(f"tap{index}", os.dup(tap))
        on_failure.pop_all()
    return opened


def remove_sockets(runtime: Path) -> None:
    """After the end of a process: nobody listens there any more."""
    for path in (*_PATHS.values(), VNC_SOCKET):
        (runtime / path).unlink(missing_ok=True)


def listen(path: Path) -> socket.socket:
    """A listening unix socket at `path`, in place of one that an earlier process left.

    :raise LaunchFailed: it cannot be bound.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise LaunchFailed(f"The socket {path} cannot be made: {error.strerror}.") from error
    return listener


def _memory(size: int) -> int:
    """A shared file of memory that may be sealed later, when a fork freezes it."""
    fd = os.memfd_create("guest-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        os.close(fd)
        raise NoMemory(f"{size >> 20} MiB of memory cannot be had: {error.strerror}.") from error
    return fd


def _open(path: str, *, writable: bool) -> int:
    access = os.O_RDWR if writable else os.O_RDONLY
    try:
        return os.open(path, access | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        raise NotFound(f"{path} is not there.", path=path) from None
    except OSError as error:
        what = "written" if writable else "read"
        hint = "It is on a read-only file system." if error.errno == errno.EROFS else ""
        raise LaunchFailed(
            f"{path} cannot be {what}: {error.strerror}.", hint=hint, path=path
        ) from error
