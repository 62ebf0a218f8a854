"""/dev/kvm: may guests' processes open it, and as members of which group?"""

from __future__ import annotations

import grp
import os
import stat
from pathlib import Path
from typing import NamedTuple

KVM = Path("/dev/kvm")


class KvmDevice(NamedTuple):
    """:ivar present: there is such a device. :ivar opens: we may open it.
    :ivar guests_open: a guest's own process may open it by path.
    :ivar group: the group it needs for that, None where it needs none.
    :ivar reason: one sentence. :ivar cure: what would help where something is missing.
    """

    present: bool
    opens: bool
    guests_open: bool
    group: int | None
    reason: str
    cure: str = ""


def examine(*, am_root: bool, path: Path = KVM) -> KvmDevice:
    """Look at the device as this process, and as a guest's process with a uid of its own would.

    Only root's guests count as such: where an ordinary user's could not open it, they stay the
    user (drivers/qemu/identity.py).
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        return KvmDevice(True, False, False, None, *_forbidden(path))
    except OSError:
        return KvmDevice(
            False,
            False,
            False,
            None,
            f"This host has no {path}: its processor or firmware offers no virtualisation, or "
            "the kernel module is not loaded.",
            "sudo modprobe kvm_intel || sudo modprobe kvm_amd; if neither helps, enable VT-x or "
            "AMD-V in the firmware",
        )
    with os.fdopen(fd):
        found = os.fstat(fd)
    fine = f"{path} can be opened."
    if not am_root or found.st_mode & 0o006 == 0o006:
        return KvmDevice(True, True, True, None, fine)
    # Root's own group is not one that a guest's process should keep.
    if found.st_mode & 0o060 == 0o060 and found.st_gid != 0:
        return KvmDevice(True, True, True, found.st_gid, fine)
    return KvmDevice(
        True,
        True,
        False,
        None,
        f"{path} is open to root only (mode {stat.S_IMODE(found.st_mode):04o}), and guests do not "
        "run as root.",
        f"chgrp kvm {path} && chmod 0660 {path}",
    )


def _forbidden(path: Path) -> tuple[str, str]:
    found = path.stat()
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    reason = f"{path} belongs to group {group} and you are not in it."
    if found.st_mode & 0o060 != 0o060 or found.st_gid == 0:
        reason = f"{path} is open to root only (mode {stat.S_IMODE(found.st_mode):04o})."
        return (
            reason,
            f"sudo chgrp kvm {path} && sudo chmod 0660 {path}; sudo usermod -aG kvm $USER",
        )
    return reason, f"sudo usermod -aG {group} $USER, then log in again"
