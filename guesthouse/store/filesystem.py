"""What the store asks of the file system below its database."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from guesthouse.errors import HostLacks

# f_type values from statfs(2) and linux/magic.h: file systems on which SQLite's locks or its shared
# memory file do not work, see https://www.sqlite.org/wal.html ("WAL does not work over a network").
_REMOTE = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x5346414F: "AFS",
    0x73757245: "Coda",
    0x01021997: "9P",
}


def file_system_type(folder: Path) -> int:
    """The magic number (f_type) of the file system that holds `folder`.

    :raise OSError: the folder cannot be asked.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # struct statfs begins with f_type, one C long on every 64-bit Linux; 256 bytes hold all of it.
    buffer = (ctypes.c_long * 32)()
    if libc.statfs(os.fsencode(folder), ctypes.byref(buffer)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(folder))
    return int(buffer[0]) & 0xFFFFFFFF


def refuse_remote(folder: Path) -> None:
    """:raise HostLacks: `folder` lies on a network file system."""
    name = _REMOTE.get(file_system_type(folder))
    if name:
        raise HostLacks(
            f"The state folder {folder} is on {name}, where a database can be damaged: "
            "its locks do not hold.",
            hint="Put the state on a local disk: set GUESTHOUSE_STATE to a local folder.",
            capability="local-state",
            filesystem=name,
        )


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (fsync of the directory)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    """Bytes that an ordinary user may still write on the file system of `folder`."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
