"""Who a guest's process is, where it is, and what it is not allowed."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from guesthouse.errors import HostLacks
from guesthouse.host.kvm_device import KVM
from guesthouse.host.launcher import Confinement, GuestIdentity, Namespaces
from guesthouse.host.namespace.holder import Member
from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.host.namespace.idbook import IdBook
from guesthouse.host.namespace.idplan import IdPlan
from guesthouse.host.namespace.probing import wanted_plan

log = logging.getLogger(__name__)

LIMITS = (("core", 0),)
"""No core dumps: they would hold the guest's memory."""

_SHARED = Confinement(limits=LIMITS)
"""The user's own identity, where no other can be had."""
_LOOK_AGAIN_SECONDS = 60.0
"""After which a host that let us have no namespace is asked again."""


class Needs(NamedTuple):
    """What QEMU opens by itself, and must therefore be able to.

    :ivar program: QEMU itself. :ivar host_network: sockets, for a card of its builtin network.
    :ivar kvm_by_path: /dev/kvm, because it takes no descriptor of it.
    :ivar kvm_group: the group that root's guests need for that.
    """

    program: Path
    host_network: bool
    kvm_by_path: bool = False
    kvm_group: int | None = None


class Identities:
    """Gives each guest's process ids of its own, from the book of ids, and its namespaces.

    As root always; for an ordinary user in the house's namespace. Where the host does not let us
    have that, guests stay the user, and the log says once what is lacking.

    :param namespace: shared with the house's network. :param members: as `HouseNamespace.ensure`.
    :param book: may raise HostLacks, where there is no place for it.
    """

    def __init__(
        self,
        namespace: HouseNamespace,
        book: Callable[[], IdBook],
        *,
        am_root: bool,
        members: Callable[[], Iterable[Member]] = tuple,
        etc: Path = Path("/etc"),
        kvm: Path = KVM,
    ) -> None:
        self._namespace, self._book, self._members = namespace, book, members
        self._am_root, self._etc, self._kvm = am_root, etc, kvm
        self._lacks: HostLacks | None = None
        self._look_again = 0.0

    @property
    def lacks(self) -> HostLacks | None:
        """Why guests share the user's identity, if they do, as far as is known by now."""
        return self._lacks

    async def confinement(self, guest: str, needs: Needs) -> Confinement:
        """For the process of the guest with that id, which is about to be launched.

        :raise HostLacks: no ids are left. :raise EngineError: :raise Unavailable: :raise Busy:
        """
        if self._am_root:
            plan = await asyncio.to_thread(wanted_plan, self._etc)
            groups = () if needs.kvm_group is None else (needs.kvm_group,)
            who = await self._who(guest, plan, groups)
            return _confined(who, Namespaces(empty_network=not needs.host_network))
        closed = await asyncio.to_thread(self._closed_to_others, needs)
        if closed is not None:
            log.warning("guest %s runs as the user: only that user may open %s", guest, closed)
            return _SHARED
        if not await self._inside():
            return _SHARED
        who = await self._who(guest, self._namespace.plan)
        # What QEMU's own network needs is the host's /run too, where the resolver's address is.
        where = Namespaces(
            holder=self._namespace.launch.holder,
            mounts=not needs.host_network,
            empty_network=not needs.host_network,
        )
        return _confined(who, where, keep_groups=needs.kvm_by_path and not self._kvm_is_open())

    async def give_back(self, guest: str) -> None:
        """The guest is deleted, its process has ended. Raises as `IdBook.give_back`."""
        await self._book().give_back("vm", guest)

    async def keep_only(self, guests: Collection[str]) -> None:
        """Those that there are, or whose processes live: give back what is held for others."""
        for gone in await self._book().keep_only(guests):
            log.info("the ids of guest %s, which is no more, are free", gone.guest)

    async def _inside(self) -> bool:
        """Whether the house's namespace stands."""
        if self._lacks is not None and time.monotonic() < self._look_again:
            return False
        try:
            await self._namespace.ensure(self._members())
            await self._book().prepare()
        except HostLacks as lacks:
            if self._lacks is None:
                cure = f" {lacks.hint}" if lacks.hint else ""
                log.warning("guests run as the user, not apart: %s%s", lacks.message, cure)
            self._lacks, self._look_again = lacks, time.monotonic() + _LOOK_AGAIN_SECONDS
            return False
        self._lacks = None
        return True

    async def _who(self, guest: str, plan: IdPlan, groups: tuple[int, ...] = ()) -> GuestIdentity:
        return plan.vm(await self._book().take("vm", guest, limit=plan.vm_count), groups=groups)

    def _closed_to_others(self, needs: Needs) -> Path | None:
        """What a process that is not the user could not open."""
        for path in (*needs.program.parents, *needs.program.resolve().parents):
            if not path.stat().st_mode & stat.S_IXOTH:
                return path
        if needs.kvm_by_path and not self._kvm_is_open() and not self._kvm_by_group():
            return self._kvm
        return None

    def _kvm_is_open(self) -> bool:
        return self._kvm.stat().st_mode & 0o006 == 0o006

    def _kvm_by_group(self) -> bool:
        """Whether a process opens it that has no more of the user than the groups.

        They cannot be named one by one: the namespace has no number for a group of the host's.
        """
        found = self._kvm.stat()
        of_group = stat.S_IMODE(found.st_mode) & 0o060 == 0o060
        return of_group and found.st_gid in os.getgroups()


def _confined(who: GuestIdentity, where: Namespaces, *, keep_groups: bool = False) -> Confinement:
    return Confinement(
        uid=who.uid,
        gid=who.gid,
        groups=who.groups,
        keep_groups=keep_groups,
        limits=LIMITS,
        namespaces=where,
    )
