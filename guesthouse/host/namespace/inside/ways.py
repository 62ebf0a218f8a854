"""The way back into namespaces whose holder died: through the processes that still live in them.

A process's descriptors can be looked at only by whoever may trace it. A guest's process has a uid
of its own, so that right is only found inside of the house's user namespace; a service started
from outside (the uplink) is out of reach from in there. So it is looked from both.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

from guesthouse.host.keeper.procfs import runs
from guesthouse.host.namespace.inside import kernel
from guesthouse.host.namespace.inside.prepare import Failed, step
from guesthouse.host.namespace.inside.record import Record

Members = Sequence[Sequence[int]]
NO_WAY = "way"


def go_back(known: Record, members: Members, net: int | None, mount: int | None) -> bool:
    """Enter the namespaces of `known`; answers whether its mount namespace was still there.

    :param members: (pid, start ticks) of processes of this house. A way is one in the network
        namespace, or one that has a tap of it open: that is how guests are connected, whose own
        network namespace is empty. :param net: a descriptor that somebody kept. :param mount: too.
    :raise Failed: step NO_WAY: none of them leads there, or another: it could not be entered.
    """
    net = net if _is(net, known.net) else _network(known, members)
    user = _user(known, members, net)
    with step("enter"):
        if user is not None:
            kernel.setns(user, kernel.NEWUSER)
            kernel.become_root()
        net = _network(known, members) if net is None else net
        if net is None:
            raise Failed(NO_WAY, errno.ESRCH)
        kernel.setns(net, kernel.NEWNET)
        mount = mount if _is(mount, known.mount) else _first(members, "mnt", known.mount)
        if mount is not None:
            kernel.setns(mount, kernel.NEWNS)
    return mount is not None


def _user(known: Record, members: Members, net: int | None) -> int | None:
    """The user namespace to enter; None where it is the host's, or nobody leads there."""
    if known.user is None:
        return None
    if net is not None:
        with suppress(OSError):
            return kernel.owner_of(net)
    return _first(members, "user", known.user)


def _network(known: Record, members: Members) -> int | None:
    net = _first(members, "net", known.net)
    if net is not None:
        return net
    for pid in _living(members):
        with suppress(OSError):
            net = _through_taps(pid, known.net)
            if net is not None:
                return net
    return None


def _first(members: Members, kind: str, wanted: int) -> int | None:
    """The namespace with that inode number, from the first member that is in it."""
    for pid in _living(members):
        with suppress(OSError):
            fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
            if _is(fd, wanted):
                return fd
            os.close(fd)
    return None


def _living(members: Members) -> Iterable[int]:
    """A pid may change hands at any time; that is why only inode numbers count in the end."""
    return (pid for pid, ticks in members if runs(pid, ticks))


def _through_taps(pid: int, wanted: int) -> int | None:
    """The network namespace `wanted`, if the process has a tap in it open. :raise OSError:"""
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
            with suppress(OSError):
                facts = os.stat(f"/proc/{pid}/fd/{name}")  # noqa: PTH116
                if (os.major(facts.st_rdev), os.minor(facts.st_rdev)) != kernel.TUN_NUMBERS:
                    continue
                tap = kernel.take_fd(pidfd, int(name))
                try:
                    net = kernel.network_of_tap(tap)
                finally:
                    os.close(tap)
                if _is(net, wanted):
                    return net
                os.close(net)
    finally:
        os.close(pidfd)
    return None


def _is(fd: int | None, inode: int) -> bool:
    return fd is not None and os.fstat(fd).st_ino == inode
