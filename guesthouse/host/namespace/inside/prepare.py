"""What is made ready in the house's namespaces. All of it may be done again at any time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from guesthouse.host.namespace.inside import kernel

_SETTINGS = "/proc/sys/net"
_BRIDGE_CALLS = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables")


class Failed(Exception):
    """A step could not be done. `said`: what a program said about it, if one was run."""

    def __init__(self, step: str, number: int, said: str = "") -> None:
        super().__init__(f"{step}: {said or os.strerror(number)}")
        self.step, self.number, self.said = step, number, said


@contextmanager
def step(name: str) -> Iterator[None]:
    """Name the step in which an OSError happened."""
    try:
        yield
    except OSError as error:
        raise Failed(name, error.errno or 0) from error


def mounts() -> list[str]:
    """In a mount namespace just made: a /run of its own, and a /sys that shows its own network.

    What the host mounts and unmounts later is followed. Returns what this host refused and can be
    done without: `sysfs`. :raise Failed:
    """
    with step("mounts"):
        kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_SLAVE)
    with step("run"):
        flags = kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("tmpfs", "/run", "tmpfs", flags, "mode=0755,size=64m")
    try:
        _own_sysfs()
    except OSError:
        # A container that masks parts of /sys does not let a whole one be mounted (EPERM).
        return ["sysfs"]
    return []


def _own_sysfs() -> None:
    """A new sysfs hides what is mounted below the old one: the control groups are kept."""
    new = "/run/.sys"
    os.mkdir(new, 0o700)  # noqa: PTH102
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("sysfs", new, "sysfs", flags)
    groups = "/fs/cgroup"
    with suppress(OSError):
        kernel.mount("/sys" + groups, new + groups, "", kernel.MS_BIND | kernel.MS_REC)
    kernel.mount(new, "/sys", "", kernel.MS_MOVE)
    os.rmdir(new)  # noqa: PTH106


def network(*, new: bool) -> list[str]:
    """Loopback up, forwarding on, bridged packets seen by the bridge's own rules alone.

    :param new: nobody has loaded rules yet, which may want bridged packets after all.
    Returns what this kernel has not: `ipv6`. :raise Failed:
    """
    with step("loopback"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as via:
        kernel.link_up("lo", via.fileno())
    with step("forwarding"):
        setting("ipv4/ip_forward", "1")
    lacks = []
    if os.path.isdir(_SETTINGS + "/ipv6"):  # noqa: PTH112
        with step("forwarding"):
            setting("ipv6/conf/all/forwarding", "1")
            setting("ipv6/conf/default/forwarding", "1")
    else:
        lacks.append("ipv6")
    # 1 in every new network namespace. Not there while the module br_netfilter is not loaded,
    # which may happen at any time: whoever loads rules says what they need.
    for name in _BRIDGE_CALLS if new else ():
        with step("bridge-nf-call"), suppress(FileNotFoundError):
            setting("bridge/" + name, "0")
    return lacks


def setting(name: str, value: str) -> None:
    """Write a value below /proc/sys/net of our network namespace, unless it is there already.

    :raise OSError:
    """
    path = f"{_SETTINGS}/{name}"
    with open(path, encoding="ascii") as file:
        if file.read().split() == value.split():
            return
    with open(path, "w", encoding="ascii") as file:
        file.write(value)
