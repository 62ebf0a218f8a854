"""Dropping privilege, as data: the prefix of a command, one element a step.

Pure: nothing here touches the host. docs/design/isolation.md has a line for each step, and which
attack it closes. Every tool of the prefix replaces itself by the next one (exec) and none forks,
so the pid that the keeper watches is the program's own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType

import msgspec

from guesthouse.errors import HostLacks, InvalidInput

# Names that prlimit(1) of util-linux knows.
_LIMIT_NAMES = (
    "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime "
    "sigpending stack"
)
_LIMITS = frozenset(_LIMIT_NAMES.split())
# Beyond the ranges that systemd hands to containers (524288 to 1879048191) and to everybody else
# (systemd's UIDS-GIDS.md): taken where /etc/subuid reserves nothing for us.
UNCLAIMED_FIRST = 0x7000_0000
UNCLAIMED_COUNT = 65536
_LOWEST = 65536
_FIRST_TARGET = 3


class Namespaces(msgspec.Struct, frozen=True, kw_only=True):
    """Namespaces to enter or make before the identity changes.

    `holder`: pid of the process that keeps the house's user and mount namespaces, to join them;
    uids are then those inside, and the caller's own must be 0 there (only so it keeps its rights
    through the exec that follows). None where the house has no user namespace of its own.
    `mounts`: join the holder's mount namespace too, not its user namespace alone.
    `empty_network`: a network namespace of its own with nothing in it but a loopback that is down.
    """

    holder: int | None = None
    mounts: bool = True
    empty_network: bool = False


class Confinement(msgspec.Struct, frozen=True, kw_only=True):
    """What a process may be and do. The defaults take away everything that can be taken.

    `uid` and `gid`: None leaves the caller's. `groups`: supplementary groups, replacing all.
    `keep_groups`: leave the caller's instead, where their numbers cannot be said.
    `limits`: soft and hard at once, names as in prlimit(1), in its units.
    `die_with_parent`: killed when the thread that started it ends; for tools, never for guests.
    """

    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    keep_groups: bool = False
    no_new_privs: bool = True
    drop_capabilities: bool = True
    limits: tuple[tuple[str, int], ...] = (("core", 0),)
    namespaces: Namespaces = Namespaces()
    die_with_parent: bool = False


def confine(argv: Sequence[str], c: Confinement, *, am_root: bool) -> list[str]:
    """`argv` behind the prefix that confines it as `c` says.

    Without root, and without a house namespace in which we would be it, what only root may do is
    left out where the result is no weaker (an ordinary user's process has no capabilities).

    :raise InvalidInput: a limit has no such name, or an identity or namespace needs root.
    """
    privileged = am_root or c.namespaces.holder is not None
    if not privileged and (c.uid is not None or c.gid is not None or c.groups):
        raise InvalidInput("Only root can give a process another identity.", field="uid")
    if not privileged and c.namespaces.empty_network:
        raise InvalidInput(
            "Only root can make a network namespace; join a user namespace first.",
            field="namespaces.empty_network",
        )
    return [*_limits(c), *_namespaces(c.namespaces), *_identity(c, privileged), *argv]


def _limits(c: Confinement) -> list[str]:
    """First: lowering limits needs no right, and all that follows is bound by them."""
    for name, value in c.limits:
        if name not in _LIMITS or value < 0:
            raise InvalidInput(f"No such resource limit: {name}={value}.", field="limits")
    options = [f"--{name}={value}:{value}" for name, value in c.limits]
    return ["prlimit", *options, "--"] if options else []


def _namespaces(n: Namespaces) -> list[str]:
    """Second: needs rights that the next step takes away."""
    steps: list[str] = []
    if n.holder is not None:
        kinds = ["--user", *(["--mount"] if n.mounts else [])]
        steps += ["nsenter", "--preserve-credentials", *kinds, f"--target={n.holder}", "--"]
    if n.empty_network:
        steps += ["unshare", "--net", "--"]
    return steps


def _identity(c: Confinement, privileged: bool) -> list[str]:
    """Last: from here on nothing can be regained."""
    steps: list[str] = []
    if c.uid is not None:
        steps.append(f"--reuid={c.uid}")
    if c.gid is not None:
        steps.append(f"--regid={c.gid}")
    if c.keep_groups:
        steps.append("--keep-groups")
    elif c.groups:
        steps.append(f"--groups={','.join(map(str, c.groups))}")
    elif c.uid is not None or c.gid is not None:
        steps.append("--clear-groups")
    if c.drop_capabilities:
        steps += ["--ambient-caps=-all", "--inh-caps=-all"]
        if privileged:
            steps.append("--bounding-set=-all")
    if c.no_new_privs:
        steps.append("--no-new-privs")
    if c.die_with_parent:
        # Here, because the kernel forgets it when the identity changes.
        steps.append("--pdeathsig=KILL")
    return ["setpriv", *steps, "--"] if steps else []


class GuestIdentity(msgspec.Struct, frozen=True):
    """Who a guest's process is. None: it stays who the daemon is (personal mode)."""

    uid: int | None
    gid: int | None
    groups: tuple[int, ...] = ()


def guest_identity(
    *, am_root: bool, index: int, subuid: str = "", subgid: str = "", kvm_gid: int | None = None
) -> GuestIdentity:
    """The identity of the guest with number `index` (0, 1, …; the caller keeps them apart).

    As root a uid and a gid of its own, from the range of `guesthouse`, else of `root`, in
    /etc/subuid and /etc/subgid (`subuid` and `subgid` are the contents of these files), else from
    UNCLAIMED_FIRST on; never below 65536. `kvm_gid`: keep this group where /dev/kvm must be
    opened by path; None where it is passed as a descriptor, or not used.

    :raise HostLacks: the range has fewer than `index` + 1 numbers.
    """
    if not am_root:
        return GuestIdentity(None, None)
    return GuestIdentity(
        _pick(subuid, index, "/etc/subuid"),
        _pick(subgid, index, "/etc/subgid"),
        () if kvm_gid is None else (kvm_gid,),
    )


def tool_identity(*, am_root: bool, subuid: str = "", subgid: str = "") -> GuestIdentity:
    """The identity of a tool that reads what strangers made: the last of the guests' numbers,
    which no guest has before all others are taken. Parameters as `guest_identity`.
    """
    if not am_root:
        return GuestIdentity(None, None)
    last = [sum(ranges[-1]) - 1 for ranges in (reserved_ranges(subuid), reserved_ranges(subgid))]
    return GuestIdentity(last[0], last[1])


def _pick(table: str, index: int, file: str) -> int:
    if index < 0:
        raise InvalidInput("A guest's number is not negative.", field="index")
    ranges = reserved_ranges(table)
    for first, count in ranges:
        if index < count:
            return first + index
        index -= count
    raise HostLacks(
        f"All {sum(count for _first, count in ranges)} ids reserved for guests are in use.",
        hint=f"Give guesthouse a larger range in {file}.",
        capability="guest-ids",
    )


def reserved_ranges(table: str) -> list[tuple[int, int]]:
    """(first, count) of each range of the first owner who has any; the lines of subuid(5)."""
    for owner in ("guesthouse", "root"):
        found: list[tuple[int, int]] = []
        for line in table.splitlines():
            name, _, numbers = line.strip().partition(":")
            first, _, count = numbers.partition(":")
            if name == owner and first.isdecimal() and count.isdecimal():
                # What a careless line puts among real users is cut off, not used.
                cut = max(0, _LOWEST - int(first))
                if int(count) > cut:
                    found.append((int(first) + cut, int(count) - cut))
        if found:
            return found
    return [(UNCLAIMED_FIRST, UNCLAIMED_COUNT)]


class FdTable:
    """Descriptors to hand to a new process, and the numbers they will have there.

    It owns what it is given: leaving the `with` block closes our copies at once, whether the
    process came up or not, so that locks on images and hang-ups of sockets mean what they say.
    """

    def __init__(self) -> None:
        self._fds: list[int] = []

    def add(self, fd: int) -> int:
        """Take `fd` over; returns its number in the new process."""
        self._fds.append(fd)
        return _FIRST_TARGET + len(self._fds) - 1

    @property
    def fds(self) -> tuple[int, ...]:
        return tuple(self._fds)

    @property
    def targets(self) -> tuple[int, ...]:
        return tuple(range(_FIRST_TARGET, _FIRST_TARGET + len(self._fds)))

    def close(self) -> None:
        """Close our copies; numbers already given out stay valid in the process."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def __enter__(self) -> FdTable:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
