"""Guests that have a process now: their incarnation, their channels, how far they have come.

Nothing here is durable. After a restart of the daemon the supervisor fills it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field

from guesthouse.drivers.base import Running
from guesthouse.errors import AgentUnavailable, GuesthouseError, InvalidTransition, NotReady
from guesthouse.guestos.agent import Agent
from guesthouse.guestos.ssh import GuestSsh
from guesthouse.model.device import ssh_login
from guesthouse.model.guest import Guest, GuestStatus
from guesthouse.model.share import Share
from guesthouse.model.states import GuestState, require_state
from guesthouse.shares.attached import GuestShares


@dataclass
class Progress:
    """How far a guest has come up. :ivar passed: checks so far, in order.

    :ivar waiting: the check that is being waited for, empty when all passed.
    """

    passed: tuple[str, ...] = ()
    waiting: str = ""
    hint: str = ""
    addresses: tuple[str, ...] = ()
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def update(self, passed: tuple[str, ...], waiting: str, hint: str) -> None:
        self.passed, self.waiting, self.hint = passed, waiting, hint
        self._changed.set()
        self._changed = asyncio.Event()

    def changed(self) -> Coroutine[None, None, object]:
        """Until the next update after this call, even if nobody has begun to wait by then."""
        return self._changed.wait()


@dataclass
class LiveGuest:
    """One incarnation and its channels. :ivar ended: set once its process is gone.

    :ivar unrecorded: its status while the full disk does not take it.
    :ivar shares: what mounts its shares; None where there is no way in.
    :ivar share_problems: by name, why a share is not mounted.
    :ivar clock: what is wrong with the guest's clock that we could not put right.
    """

    guest_id: str
    running: Running
    agent: Agent
    ssh: GuestSsh | None
    shares: GuestShares | None = None
    share_problems: dict[str, str] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    unrecorded: GuestStatus | None = None
    clock: str = ""
    clock_turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def incarnation(self) -> int:
        return self.running.record.incarnation

    async def wait_ready(
        self, name: str, timeout: float, report: Callable[[str], None] = lambda _: None
    ) -> None:
        """Until every check has passed. :param timeout: seconds.

        :raise NotReady: names the check that did not come, or that the guest ended.
        """
        try:
            async with asyncio.timeout(timeout):
                while self.progress.waiting or not self.progress.passed:
                    if self.ended.is_set():
                        raise NotReady(
                            f"Guest {name!r} ended before it was ready.",
                            hint=f"See why: guest info {name}; guest logs {name}",
                        )
                    report(self.progress.waiting)
                    await _first(self.progress.changed(), self.ended.wait())
        except TimeoutError:
            raise NotReady(
                f"Guest {name!r} was not ready after {timeout:.0f} s: the check"
                f" {self.progress.waiting!r} has not passed. The guest runs on.",
                hint=self.progress.hint,
                check=self.progress.waiting,
            ) from None

    async def mount_shares(self, shares: Sequence[Share]) -> dict[str, GuesthouseError]:
        """Mount those that are not there yet; by name, what was wrong with the others."""
        if self.shares is None or not shares:
            return {}
        problems = await self.shares.mount_all(shares)
        self.share_problems = {name: str(error) for name, error in problems.items()}
        return problems

    async def close(self) -> None:
        """Close the channels. The guest is not touched."""
        await self.agent.close()
        if self.shares is not None:
            self.shares.close()
        if self.ssh is not None:
            await self.ssh.close()


class LiveGuests:
    """:ivar on_added: told of each incarnation that came; the supervisor follows it.

    :ivar on_found: takes up a process that its document names and nobody follows yet, or records
        its end.
    """

    def __init__(self) -> None:
        self._live: dict[str, LiveGuest] = {}
        self.on_added: Callable[[Guest, LiveGuest], None] | None = None
        self.on_found: Callable[[Guest], Awaitable[None]] | None = None

    def __iter__(self) -> Iterator[LiveGuest]:
        return iter(tuple(self._live.values()))

    def add(self, guest: Guest, live: LiveGuest) -> None:
        self._live[live.guest_id] = live
        if self.on_added is not None:
            self.on_added(guest, live)

    def get(self, guest_id: str) -> LiveGuest | None:
        return self._live.get(guest_id)

    def require(self, guest: Guest, *, verb: str) -> LiveGuest:
        """:raise InvalidTransition: it has no process, or none that answers."""
        live = self._live.get(guest.id)
        if live is None:
            raise InvalidTransition(
                f"Cannot {verb}: guest {guest.name!r} is {guest.state.value}.",
                hint=f"Start it first: guest start {guest.name}",
                guest=guest.name,
                state=guest.state.value,
            )
        return live

    def require_ssh(self, guest: Guest, *, verb: str) -> GuestSsh:
        """:raise AgentUnavailable: its image carries no ssh port.

        :raise InvalidTransition: it has no process, or one that is paused and cannot answer.
        """
        live = self.require(guest, verb=verb)
        running = frozenset(GuestState) - {GuestState.PAUSED}
        require_state(guest.name, guest.state, running, verb=verb)
        if live.ssh is None:
            raise AgentUnavailable(
                f"Guest {guest.name!r} cannot be entered: its image has no ssh port of ours.",
                hint=_other_ways(guest),
            )
        return live.ssh

    async def remove(self, guest_id: str, incarnation: int) -> None:
        """Forget an incarnation that ended; a newer one of the same guest stays."""
        live = self._live.get(guest_id)
        if live is None or live.incarnation != incarnation:
            return
        del self._live[guest_id]
        live.ended.set()
        await live.close()


def _other_ways(guest: Guest) -> str:
    """How else to reach a guest."""
    ways = f"guest console {guest.name}"
    if login := ssh_login(guest.spec.nics):
        ways += f", or {login}"
    else:
        ways += f", or ssh by a published port: guest publish {guest.name} 2222:22"
    return f"Use its serial console: {ways}"


async def _first(*waits: object) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]  # type: ignore[call-overload]  # awaitables of different kinds
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
