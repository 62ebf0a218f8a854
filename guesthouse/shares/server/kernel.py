"""System calls that Python has no functions for.

Their numbers are the same on every architecture from 424 on (asm-generic/unistd.h); pivot_root's
is not.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RENAME_NOREPLACE = 1

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWNET = 0x4000_0000

MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4

_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_EMPTY_PATH = 0x04

_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 24, 38
_CAPABILITY_VERSION_3 = 0x2008_0522
_MAX_CAPABILITIES = 64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _call(number: int, *arguments: int | bytes | None) -> int:
    wide = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *wide))


def openat2(root: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return _call(_OPENAT2, root, path, how, len(how))


def rename_noreplace(source: int, old: bytes, target: int, new: bytes) -> None:
    """renameat2(2) that never replaces; glibc has it since 2.28."""
    _check(_libc.renameat2(source, old, target, new, RENAME_NOREPLACE))


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags))


def make_private() -> None:
    """No mount of ours shows up outside, and none of theirs here."""
    _check(_libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None))


def clone_tree() -> int:
    """A detached copy of what is mounted at and below the working folder."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    return _call(_OPEN_TREE, _AT_FDCWD, b".", flags)


def set_attributes(tree: int, attributes: int) -> None:
    """MOUNT_ATTR_* on a tree and everything mounted below."""
    changed = struct.pack("QQQQ", attributes, 0, 0, 0)
    _call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, changed, len(changed))


def attach_tree(tree: int) -> None:
    """Mount it over the working folder."""
    _call(_MOVE_MOUNT, tree, b"", _AT_FDCWD, b".", _MOVE_EMPTY_PATH)


def enter_alone(tree: int) -> None:
    """Make a mounted tree the root and let all else go (pivot_root(2), "pivot_root(".", ".")")."""
    os.fchdir(tree)
    number = _PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise OSError(0, f"pivot_root's number is not known for {platform.machine()}")
    _call(number, b".", b".")
    _check(_libc.umount2(b".", MNT_DETACH))
    os.chdir("/")


def landlock_version() -> int:
    """Of the kernel's interface; 0 where there is none."""
    try:
        return _call(_LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        return 0


def landlock(rights: int, folder: int, allowed: int) -> None:
    """From now on: of `rights` nothing but `allowed` at and below `folder`. Needs no_new_privs."""
    handled = struct.pack("Q", rights)
    ruleset = _call(_LANDLOCK_CREATE, handled, len(handled), 0)
    try:
        beneath = struct.pack("=Qi", allowed, folder)
        _call(_LANDLOCK_ADD, ruleset, 1, beneath, 0)
        _call(_LANDLOCK_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def no_new_privileges() -> None:
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def set_dumpable(value: bool) -> None:
    """Off: not even the same user's other processes read this one's memory or descriptors. A
    change of user switches it off, and then /proc/self is root's."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, int(value), 0, 0, 0))


def keep_capabilities(numbers: frozenset[int]) -> None:
    """Give up all capabilities but these, for good."""
    for number in range(_MAX_CAPABILITIES):
        if number not in numbers:
            # EINVAL: the kernel knows no such one; EPERM: there is nothing to give up.
            _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    mask = sum(1 << number for number in numbers)
    low, high = mask & 0xFFFF_FFFF, mask >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)))
