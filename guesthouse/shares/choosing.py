"""Which way a share takes, and why. Pure: what host and guest can do in, a choice out.

In the order of their speed: virtiofs, sftp, 9p. The first that host and guest both can do, that
enforces read-only on the host's side, and that keeps the owners right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from guesthouse.errors import AgentUnsupported, HostLacks
from guesthouse.model.document import Noun
from guesthouse.model.share import Way

ORDER = (Way.VIRTIOFS, Way.SFTP, Way.NINEP)


class HostAbilities(Noun, kw_only=True, frozen=True):
    """:ivar virtiofsd: path of the Rust virtiofsd; empty where there is none.

    :ivar virtiofsd_maps: it knows `--translate-uid` (1.13). :ivar virtiofsd_read_only: and
        `--readonly`.
    :ivar engine: why the guest's engine takes no device of it; empty: it does.
    :ivar risk: why it is better not given one unless somebody wants it; empty: it may.
    """

    virtiofsd: str = ""
    virtiofsd_maps: bool = False
    virtiofsd_read_only: bool = False
    engine: str = ""
    risk: str = ""


class GuestAbilities(Noun, kw_only=True, frozen=True):
    """:ivar file_systems: that its kernel has or can load, among `virtiofs`, `9p`, `fuse`.

    :ivar port: its kernel has virtio-serial ports.
    """

    file_systems: frozenset[str] = frozenset()
    sshfs: bool = False
    port: bool = True


class Wanted(NamedTuple):
    """:ivar way: None leaves it to us. :ivar root: it is root of the host who shares."""

    read_only: bool = False
    way: Way | None = None
    root: bool = False


class Choice(Noun, kw_only=True, frozen=True):
    """:ivar reason: one sentence for people: why this one, and why not the faster ones."""

    way: Way
    reason: str


def choose(wanted: Wanted, host: HostAbilities, guest: GuestAbilities) -> Choice:
    """:raise HostLacks: the host cannot do the way that is wanted, or none at all.
    :raise AgentUnsupported: it is the guest that cannot.
    """
    if wanted.way is not None:
        lacks = _LACKS[wanted.way](wanted, host, guest)
        if lacks:
            raise _error(lacks, f"A share by {wanted.way.value} is not possible")
        return Choice(way=wanted.way, reason=f"{wanted.way.value}, as wanted.")
    passed: list[str] = []
    last: Lack | None = None
    for way in ORDER:
        last = _LACKS[way](wanted, host, guest)
        if last is None:
            not_those = f" ({'; '.join(passed)})" if passed else ""
            return Choice(way=way, reason=f"{way.value}: {_VIRTUES[way]}{not_those}.")
        passed.append(f"no {way.value}: {last.what}")
    # What is wrong with sftp is what can be put right most easily.
    lacks = _LACKS[Way.SFTP](wanted, host, guest) or last
    assert lacks is not None
    raise _error(lacks, f"No way leads there ({'; '.join(passed)})")


class Lack(NamedTuple):
    """:ivar guest: it is the guest that lacks it. :ivar cure: what to do."""

    what: str
    cure: str
    guest: bool = False


Look = Callable[[Wanted, HostAbilities, GuestAbilities], Lack | None]


def _virtiofs(wanted: Wanted, host: HostAbilities, guest: GuestAbilities) -> Lack | None:
    if not host.virtiofsd:
        return Lack(
            "the host has no virtiofsd",
            "Install it: apt install virtiofsd (Debian 13; Debian 12 has only one that is root's)",
        )
    if not host.virtiofsd_maps or (wanted.read_only and not host.virtiofsd_read_only):
        cannot = "keep a share read-only" if host.virtiofsd_maps else "map owners"
        return Lack(f"this virtiofsd cannot {cannot}", "Install virtiofsd 1.13 or newer.")
    if host.engine:
        return Lack(host.engine, "Use sftp.")
    if wanted.way is None and (risk := host.risk or _risk_of(wanted)):
        return Lack(risk, "Use --way virtiofs.")
    if "virtiofs" not in guest.file_systems:
        return Lack("the guest's kernel has no virtiofs", "Use a newer kernel in it.", guest=True)
    return None


def _risk_of(wanted: Wanted) -> str:
    # virtiofsd lets a guest set any mode, and there is no option against that.
    return "a guest could leave set-uid programs of root's in the folder" if wanted.root else ""


def _sftp(_wanted: Wanted, _host: HostAbilities, guest: GuestAbilities) -> Lack | None:
    if not guest.sshfs:
        return Lack("the guest has no sshfs", "Install it in the guest: apt install sshfs", True)
    if "fuse" not in guest.file_systems:
        return Lack("the guest's kernel has no FUSE", "Use a kernel that has it.", guest=True)
    if not guest.port:
        return Lack("the guest has no virtio-serial port", "Use a kernel that has it.", True)
    return None


def _ninep(_wanted: Wanted, _host: HostAbilities, guest: GuestAbilities) -> Lack | None:
    if "9p" not in guest.file_systems:
        return Lack(
            "the guest's kernel has no 9p", "Debian's linux-image-amd64 has it.", guest=True
        )
    # QEMU would serve it as the guest's own user, which must not see the sharer's files.
    return Lack(
        "QEMU runs as the guest's own user, which has no right to the folder",
        "Use sftp or virtiofs.",
    )


_LACKS: dict[Way, Look] = {Way.VIRTIOFS: _virtiofs, Way.SFTP: _sftp, Way.NINEP: _ninep}
_VIRTUES = {
    Way.VIRTIOFS: "the fastest",
    Way.SFTP: "the house's file server over a virtio-serial port",
    Way.NINEP: "QEMU's own",
}


def _error(lack: Lack, said: str) -> HostLacks | AgentUnsupported:
    message = said if lack.what in said else f"{said}: {lack.what}"
    if lack.guest:
        return AgentUnsupported(f"{message}.", hint=lack.cure)
    return HostLacks(f"{message}.", hint=lack.cure, capability="shares")
