"""The walls around the file server, put up by the process itself before it hears a word.

In their order of strength: a mount namespace whose root is the share (and a network namespace with
nothing in it), Landlock, no capabilities, no new privileges. Whatever of the first two the kernel
refuses, the other one stands; paths are resolved beneath the share (beneath.py) in any case.
"""

from __future__ import annotations

import os
import resource
from typing import NamedTuple

from . import kernel

# What root keeps to act as root within a folder: CHOWN, DAC_OVERRIDE, FOWNER, FSETID.
_ROOTS_OWN = frozenset({0, 1, 3, 4})

# linux/landlock.h: by version of the interface, which rights on files it knows.
_LANDLOCK_RIGHTS = {2: 1 << 14, 3: 1 << 15, 5: 1 << 16}
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_EXECUTE, _MAKE_CHAR, _MAKE_BLOCK, _IOCTL = 1 << 0, 1 << 6, 1 << 11, 1 << 15
_NEVER = _EXECUTE | _MAKE_CHAR | _MAKE_BLOCK | _IOCTL
_REFER_VERSION = 2
"""An older one forbids every rename between folders."""

_MOST_FILES = 65536


class Walls(NamedTuple):
    """What stands. :ivar names: `namespace`, `landlock`. :ivar missing: why one does not."""

    names: tuple[str, ...]
    missing: tuple[str, ...]


def become(uid: int, gid: int, groups: list[int]) -> None:
    """Be that user for good; only root may name another than itself."""
    if os.geteuid() == 0 and (uid, gid) != (0, 0):
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    if (os.geteuid(), os.getegid()) != (uid, gid):
        raise PermissionError(f"this process cannot become user {uid}")


def raise_walls(share: int, *, read_only: bool) -> tuple[int, Walls]:
    """Put up all that the kernel lets us.

    :param share: descriptor of the folder.
    :return: a descriptor of the same folder from within the walls, and what stands.
    """
    names, missing = [], []
    kernel.no_new_privileges()
    try:
        share = _namespace(share, read_only)
        names.append("namespace")
    except OSError as error:
        missing.append(f"namespace: {error.strerror}")
    try:
        _landlock(share, read_only)
        names.append("landlock")
    except OSError as error:
        missing.append(f"landlock: {error.strerror}")
    kernel.keep_capabilities(_ROOTS_OWN if os.getuid() == 0 and _is_real_root() else frozenset())
    kernel.set_dumpable(False)
    _limits()
    return share, Walls(tuple(names), tuple(missing))


def _namespace(share: int, read_only: bool) -> int:
    uid, gid = os.getuid(), os.getgid()
    # The working folder goes along into a new mount namespace; an open descriptor does not.
    os.fchdir(share)
    kernel.set_dumpable(True)
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    if uid == 0:
        kernel.unshare(flags)
    else:
        kernel.unshare(kernel.CLONE_NEWUSER | flags)
        # Ourselves alone; whoever else owns a file in the share is 65534 here.
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    kernel.make_private()
    tree = kernel.clone_tree()
    attributes = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
    kernel.set_attributes(tree, attributes | (kernel.MOUNT_ATTR_RDONLY if read_only else 0))
    kernel.attach_tree(tree)
    kernel.enter_alone(tree)
    # The folder that was opened outside: with it, a way out would be left open.
    os.close(share)
    return tree


def _landlock(share: int, read_only: bool) -> None:
    version = kernel.landlock_version()
    if version < _REFER_VERSION:
        raise OSError(0, "this kernel has none that lets files move between folders")
    rights = (1 << 13) - 1
    for since, limit in _LANDLOCK_RIGHTS.items():
        if version >= since:
            rights = limit - 1
    kernel.landlock(rights, share, (_READ_FILE | _READ_DIR) if read_only else rights & ~_NEVER)


def _is_real_root() -> bool:
    """Root of the machine, not of some user namespace that we made."""
    return os.geteuid() == 0


def _limits() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
