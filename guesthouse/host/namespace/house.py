"""The house's namespace: one user, network and mount namespace for all its networks.

An ordinary user's house has all three; root's has network and mount and stays in the host's user
namespace. The rest is the same. docs/design/0002-house-namespace.md says why it is as it is.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from guesthouse.errors import EngineError, NotFound, Unavailable
from guesthouse.host.launcher import Namespaces
from guesthouse.host.namespace import entering, holder, probing
from guesthouse.host.namespace.entering import Doors, Porter
from guesthouse.host.namespace.holder import Failure, Member, Origin
from guesthouse.host.namespace.idplan import IdPlan, living_plan
from guesthouse.host.namespace.inhabitants import inhabited
from guesthouse.host.namespace.inside.record import Record
from guesthouse.host.process import ProcessHandle
from guesthouse.host.spawn import Finished, ensure_success, run

RECORD = "namespace.json"
_ATTEMPTS = 3
_END_SECONDS = 5.0


class Facts(NamedTuple):
    """:ivar pid: of the holder. :ivar ticks: when it began, in clock ticks since boot.
    :ivar origin: how this object came to it. :ivar net: inode number of the network namespace.
    :ivar lacks: `sysfs`: /sys shows the host's network; `ipv6`: the kernel has none.
    """

    pid: int
    ticks: int
    origin: Origin
    net: int
    lacks: tuple[str, ...]


class _Inside(NamedTuple):
    record: Record
    doors: Doors
    porter: Porter
    plan: IdPlan
    facts: Facts


class HouseNamespace:
    """The namespace of the house with that runtime folder. `ensure` first, `close` at the end.

    It outlives this object and this process: nothing of it is ours but descriptors.

    :param runtime: where its record is kept. :param etc: where subuid and subgid are.
    """

    def __init__(self, runtime: Path, *, etc: Path = Path("/etc")) -> None:
        self._record = runtime / RECORD
        self._etc = etc
        self._inside: _Inside | None = None
        self._one_at_a_time = asyncio.Lock()

    async def ensure(self, members: Iterable[Member] = ()) -> Facts:
        """Find it, or go back into it and give it a new holder, or make it. Idempotent.

        What a namespace is made ready with (forwarding, loopback, bridge-nf-call) is made so again.

        :param members: processes of this house that live: guests that have taps of it open, and
            services inside. They lead back when the holder was killed while no daemon ran.
        :raise HostLacks: this host does not let us; with the cure. :raise EngineError:
        """
        known = tuple(members)
        async with self._one_at_a_time:
            for _ in range(_ATTEMPTS):
                try:
                    return await self._ensure(known)
                except OSError:
                    # The holder died just after it was found.
                    continue
            raise EngineError("The holder of the house's namespace dies again and again.")

    @property
    def facts(self) -> Facts:
        """:raise Unavailable: `ensure` has not been called."""
        return self._here.facts

    @property
    def plan(self) -> IdPlan:
        """Of the namespace as it is, which may be older than the lines in /etc/subuid.

        :raise Unavailable: as `facts`.
        """
        return self._here.plan

    @property
    def launch(self) -> Namespaces:
        """Where a guest's process goes (`Confinement.namespaces`): into the house's user and mount
        namespace, if there is one, and an empty network. Good while the holder lives, so `ensure`
        comes before every launch. :raise Unavailable: as `facts`.
        """
        here = self._here
        pid = here.record.pid if here.plan.mapped else None
        return Namespaces(holder=pid, empty_network=True)

    def service(self, argv: Sequence[str]) -> list[str]:
        """`argv` as a command that runs inside as root there, for whoever starts services that
        outlive us. Good while the holder lives. :raise Unavailable: as `facts`."""
        here = self._here
        return entering.beside(here.record.pid, argv, user=here.plan.mapped)

    async def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = 60.0,
        cap: int = 4 << 20,
        check: bool = True,
    ) -> Finished:
        """Run a program inside, as root there, to its end; see `spawn.run`.

        :raise HostLacks: it is not installed. :raise ToolFailed: :raise DeadlineExceeded:
        :raise Unavailable: as `facts`.
        """
        doors = self._here.doors
        await asyncio.to_thread(entering.require_tool, argv[0])
        done = await run(
            entering.through(doors, argv),
            stdin=input,
            timeout=timeout,
            cap=cap,
            fds=doors.fds,
            env=entering.tool_environment(),
            cwd=Path("/"),
            check=False,
        )
        # It is the program that failed, not the way to it.
        done = msgspec.structs.replace(done, argv=tuple(argv))
        if check:
            ensure_success(done)
        return done

    async def tap(self, name: str) -> int:
        """Open the persistent tap `name`, made if need be; the descriptor is the caller's.

        It carries a virtio header (IFF_VNET_HDR), and stays when it is closed, as long as the
        namespace does. Raises as `Porter.tap`.
        """
        try:
            return await self._here.porter.tap(name)
        except Unavailable:
            return await (await self._another_porter()).tap(name)

    async def sniff(self, name: str, *, room: int) -> int:
        """A packet socket that sees all of interface `name`; it is the caller's.

        :param room: bytes that may wait in it. Raises as `Porter.sniff`, and as `facts`.
        """
        try:
            return await self._here.porter.sniff(name, room=room)
        except Unavailable:
            return await (await self._another_porter()).sniff(name, room=room)

    async def drop_tap(self, name: str) -> None:
        """Remove a tap, even one that is open; nothing happens if it is not there.

        :raise ToolFailed: :raise Unavailable: as `facts`.
        """
        entering.check_interface(name)
        done = await self.run(["ip", "link", "delete", "dev", name], check=False)
        if done.code and b"Cannot find device" not in done.err:
            ensure_success(done)

    async def settings(self, values: Mapping[str, str]) -> None:
        """Write values below /proc/sys/net inside, such as `ipv6/conf/tap0/accept_ra`.

        Raises as `Porter.settings`.
        """
        try:
            await self._here.porter.settings(values)
        except Unavailable:
            await (await self._another_porter()).settings(values)

    async def netfilter(self, group: int | None) -> tuple[list[int], int]:
        """What tells of changed rules and logged packets inside; as `Porter.netfilter`."""
        try:
            return await self._here.porter.netfilter(group)
        except Unavailable:
            return await (await self._another_porter()).netfilter(group)

    async def holder_ended(self) -> None:
        """Wait until the holder has ended: then `ensure` gives it a new one, and nothing is lost
        as long as we live. :raise Unavailable: as `facts`."""
        record = self._here.record
        try:
            handle = ProcessHandle.open(record.pid, record.ticks)
        except NotFound:
            return
        with handle:
            await handle.wait()

    async def close(self) -> None:
        """Let go of it. It lives on, and guests in it do not notice."""
        async with self._one_at_a_time:
            await self._let_go()

    async def dissolve(self) -> None:
        """End the holder and let go. The namespace is gone when nobody else is in it any more.

        :raise DeadlineExceeded: the holder does not end.
        """
        async with self._one_at_a_time:
            known = await holder.living(self._record)
            if known is not None:
                with ProcessHandle.open(known.pid, known.ticks) as handle:
                    handle.send_signal(signal.SIGTERM)
                    await handle.wait(_END_SECONDS)
            self._record.unlink(missing_ok=True)
            await self._let_go()

    async def leave(self, *, only_ours: bool = True) -> bool:
        """Let go, and as `dissolve` unless somebody lives in its user namespace: guests do,
        whatever their cards are on. Answers whether it is gone. :raise DeadlineExceeded:

        :param only_ours: there must be a user namespace of its own, which tells who lives there.
            Root's house has none, and its guests have but taps of it.
        """
        await self.close()
        known = await holder.living(self._record)
        if known is not None and known.user is None and only_ours:
            return False
        if known is not None and await asyncio.to_thread(inhabited, known):
            return False
        await self.dissolve()
        return True

    @property
    def _here(self) -> _Inside:
        if self._inside is None:
            raise Unavailable(
                "The house is not in its namespace.", hint="Start the daemon again, or wait for it."
            )
        return self._inside

    async def _ensure(self, members: tuple[Member, ...]) -> Facts:
        record = await holder.living(self._record)
        origin: Origin = "found"
        if record is None:
            record, origin = await self._new_holder(members)
        before = self._inside
        if before is not None and before.record == record and before.porter.alive:
            return before.facts
        plan = await asyncio.to_thread(self._plan_of, record)
        doors = Doors.open(record.pid, user=plan.mapped)
        try:
            porter, lacks = await self._porter(doors)
        except BaseException:
            doors.close()
            raise
        facts = Facts(record.pid, record.ticks, origin, record.net, tuple({*record.lacks, *lacks}))
        # At no moment is there none: somebody may be about to run something inside.
        await self._let_go(_Inside(record, doors, porter, plan, facts))
        return facts

    async def _new_holder(self, members: tuple[Member, ...]) -> tuple[Record, Origin]:
        wanted = await asyncio.to_thread(probing.wanted_plan, self._etc)
        here = self._inside
        known, doors = (None, None) if here is None else (here.record, here.doors)
        found = await holder.ensure(self._record, wanted, members=members, known=known, doors=doors)
        if isinstance(found, Failure):
            raise probing.explain(found, await asyncio.to_thread(probing.situation))
        return found

    def _plan_of(self, record: Record) -> IdPlan:
        """:raise OSError: the holder has ended."""
        if record.user is None:
            return probing.wanted_plan(self._etc)
        folder = Path(f"/proc/{record.pid}")
        return living_plan((folder / "uid_map").read_text(), (folder / "gid_map").read_text())

    async def _porter(self, doors: Doors) -> tuple[Porter, list[str]]:
        """Let a porter in; answers it and what the namespace lacks."""
        porter, greeting = await Porter.start(doors)
        if "failed" in greeting:
            await porter.close()
            failure = Failure(**greeting["failed"])
            raise probing.explain(failure, await asyncio.to_thread(probing.situation))
        return porter, greeting["lacks"]

    async def _another_porter(self) -> Porter:
        async with self._one_at_a_time:
            here = self._here
            if not here.porter.alive:
                await here.porter.close()
                porter, _lacks = await self._porter(here.doors)
                self._inside = here._replace(porter=porter)
            return self._here.porter

    async def _let_go(self, after: _Inside | None = None) -> None:
        before, self._inside = self._inside, after
        if before is not None:
            await before.porter.close()
            before.doors.close()
