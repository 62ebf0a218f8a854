"""Who a guest's process is, and what it is not allowed."""

from __future__ import annotations

from pathlib import Path

import msgspec

from guesthouse.host.launcher import Confinement, Namespaces, guest_identity

_SUBUID = Path("/etc/subuid")
_SUBGID = Path("/etc/subgid")

LIMITS = (("core", 0),)
"""No core dumps: they would hold the guest's memory."""


def confinement(number: int, *, am_root: bool, kvm_group: int | None) -> Confinement:
    """For the guest with that number (`Guest.number`).

    As root it gets a uid and gid of its own; otherwise it stays the user. Blocks shortly.

    :param kvm_group: the group that it must keep to open /dev/kvm by path.
    :raise HostLacks: no ids are left for that number.
    """
    identity = guest_identity(
        am_root=am_root,
        index=number,
        subuid=_read(_SUBUID),
        subgid=_read(_SUBGID),
        kvm_gid=kvm_group,
    )
    return Confinement(uid=identity.uid, gid=identity.gid, groups=identity.groups, limits=LIMITS)


def without_network(confined: Confinement) -> Confinement:
    """For a process that has its cards as descriptors, in root's house: one that its guest took
    over can open no socket to anybody."""
    return msgspec.structs.replace(confined, namespaces=Namespaces(empty_network=True))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
