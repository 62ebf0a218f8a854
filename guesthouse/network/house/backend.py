"""The house's network as a backend: cards of guests on bridges of the house.

What is wanted follows from the seats (cards that are attached) and the records (networks, groups,
sets); `_settle` brings the kernel and the services there, from whatever is found. It is the same
for a card that comes, a document that changed, a service that died, and a new daemon.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from guesthouse.errors import GuesthouseError, InvalidInput, NotFound, Unavailable
from guesthouse.host.namespace.holder import Member
from guesthouse.host.namespace.house import Facts, HouseNamespace
from guesthouse.model.device import Nic, Publish
from guesthouse.model.host import Capability
from guesthouse.model.network import Network, NetworkKind
from guesthouse.network.base import Attachment, Monitor, NetworkCapabilities
from guesthouse.network.builtin import netdev_id
from guesthouse.network.house import links
from guesthouse.network.house.hostside import Changes, HostSide, look
from guesthouse.network.house.loading import Rules
from guesthouse.network.house.naming import Naming
from guesthouse.network.house.publishing import Publishing, Where, where
from guesthouse.network.house.seats import Key, Records, Seat
from guesthouse.network.house.services import Services
from guesthouse.network.house.uplink import Uplink
from guesthouse.network.rules.ruleset import PRIVATE, Ruleset
from guesthouse.network.rules.text import Count

log = logging.getLogger(__name__)

SERVICES = "network-services.json"
RULES = "network-rules.json"
SOCKET = "uplink.sock"

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 30.0
"""Between attempts to make whole what broke, in seconds; doubled each time."""
_STABLE_SECONDS = 10.0
"""After which what was made whole counts as lasting."""


class HouseNetwork:
    """All networks of the house. `open` first (the first `attach` does it too), `close` at the
    end; what it built stays.

    :param runtime: the house's runtime folder, for records of services and the uplink's socket.
    """

    name = "house"
    capabilities = NetworkCapabilities(guest_to_guest=True, live_publish=True, ipv6_publish=True)

    def __init__(self, namespace: HouseNamespace, records: Records, runtime: Path) -> None:
        self._namespace, self._records = namespace, records
        self._services = Services(runtime / SERVICES, self._service_ended)
        self._uplink = Uplink(namespace, self._services, runtime / SOCKET)
        self._naming = Naming(namespace, self._services)
        self._publishing = Publishing(namespace, self._services, self._uplink)
        self._rules = Rules(namespace, runtime / RULES)
        self._records_of_ours = (runtime / SERVICES, runtime / RULES)
        self._seats: dict[Key, Seat] = {}
        self._resting: set[Key] = set()
        self._taps: dict[Key, int] = {}
        self._links: links.Links = {}
        self._host = HostSide((), ())
        self._facts: Facts | None = None
        self._members: tuple[Member, ...] = ()
        self._one_at_a_time = asyncio.Lock()
        self._changes: Changes | None = None
        self._holder_watch: asyncio.Task[None] | None = None
        self._mending: asyncio.Task[None] | None = None
        self._is_open = self._broken = self._look_again = False
        self._pause, self._broke_at = 0.0, 0.0

    # --- the house's life ----------------------------------------------------------------------

    async def open(self, seats: Iterable[Seat] = (), members: Iterable[Member] = ()) -> None:
        """Find what a daemon before us built, or begin.

        :param seats: of all guests that live, or whose connections are to outlive a restart.
        :param members: processes of these guests: they lead back into a namespace whose holder
            was killed.
        :raise HostLacks: this host does not let us; with the cure. :raise EngineError:
        """
        async with self._one_at_a_time:
            self._seats = {seat.key: seat for seat in seats}
            self._members = tuple(members)
            await self._services.find()
            self._host = await look()
            await self._enter()
            if self._uplink.runs:
                await self._publishing.find(self._seats.values())
            await self._rules.find(await self._ruleset())
            for error in (await self._settle()).values():
                log.warning("%s", error.message)
            self._changes = Changes(self._host_changed)
            self._is_open = True

    async def close(self) -> None:
        """Let go; networks, services and connections stay. Without the card of a guest that runs
        nothing stays, unless it was never opened: then nobody here knows whose it is (the database
        may be lost).
        """
        if not self._awake and self._is_open:
            await self.dissolve()
            return
        await self._let_go()
        await self._namespace.close()

    async def dissolve(self) -> None:
        """End everything. Guests that still run are cut off. :raise DeadlineExceeded:"""
        async with self._one_at_a_time:
            self._seats.clear()
            for name in self._services.names:
                await self._services.stop(name)
            await self._uplink.stop()
        await self._let_go()
        for file in self._records_of_ours:
            await asyncio.to_thread(file.unlink, missing_ok=True)
        await self._namespace.dissolve()

    async def refresh(self) -> None:
        """Documents have changed: networks, groups, sets. Raises as `attach`.

        While nobody has had a card there is nothing to bring about.
        """
        async with self._one_at_a_time:
            if self._is_open:
                await self._settle()

    async def update(self, seat: Seat) -> None:
        """The rules of an attached card have changed. :raise NotFound: it is not attached."""
        async with self._one_at_a_time:
            before = self._seat(*seat.key)
            self._seats[seat.key] = seat
            try:
                await self._settle()
            except BaseException:
                self._seats[seat.key] = before
                raise

    async def check(self) -> bool:
        """Load the rules again if the kernel has lost them; whether it had."""
        async with self._one_at_a_time:
            if await self._rules.are_there():
                return False
            self._rules.forget()
            await self._rules.load(await self._ruleset())
            return True

    async def counters(self) -> dict[str, Count]:
        """How often each rule decided, by its key."""
        return await self._rules.counters()

    @property
    def is_open(self) -> bool:
        return self._is_open

    @property
    def kernel_capabilities(self) -> tuple[Capability, ...]:
        """What this kernel's firewall can do; none before `open`."""
        return self._rules.capabilities

    # --- the contract --------------------------------------------------------------------------

    async def attach(self, guest: str, nic: Nic, index: int, *, hostname: str) -> Attachment:
        seat = await self._records.seat(guest, nic, index, hostname=hostname)
        if not self._is_open:  # nobody had a card until now
            await self.open(self._seats.values(), self._members)
        async with self._one_at_a_time:
            self._check_kind(seat)
            await self._enter()
            before = self._seats.get(seat.key)
            fd = await self._tap(seat)
            self._seats[seat.key] = seat
            self._resting.discard(seat.key)
            try:
                failed = await self._settle()
                for port in seat.ports:
                    if where(port) in failed:
                        raise failed[where(port)]
            except BaseException:
                # The next settling takes away what is there by now.
                if before is None:
                    self._forget(seat.key)
                else:
                    self._seats[seat.key] = before
                    self._resting.add(seat.key)
                raise
        return Attachment(f"tap,id={netdev_id(index)},fd={{fd}}", fd)

    async def rest(self, guest: str, index: int) -> None:
        async with self._one_at_a_time:
            if (guest, index) in self._seats:
                self._resting.add((guest, index))
                await self._settle()

    async def detach(self, guest: str, index: int) -> None:
        async with self._one_at_a_time:
            if (guest, index) in self._seats:
                self._forget((guest, index))
                await self._settle()

    async def leave(self, guest: str) -> None:
        """The guest is deleted: as `detach` for all its cards."""
        for index in [index for owner, index in self._seats if owner == guest]:
            await self.detach(guest, index)

    async def publish(self, guest: str, index: int, port: Publish, monitor: Monitor) -> None:
        async with self._one_at_a_time:
            seat = self._seat(guest, index)
            if port in seat.ports:
                return
            network = self._network_of(seat)
            if network.kind is NetworkKind.ISOLATED:
                raise InvalidInput(
                    f"Network {network.name} is isolated: nothing comes in from outside.",
                    hint="Publish on a card of another network.",
                    field="publish",
                )
            taken = {p: s.name for s in self._awake for p in s.ports}
            await self._publishing.open(port, seat, taken)
            self._seats[seat.key] = msgspec.structs.replace(seat, ports=(*seat.ports, port))
            try:
                await self._rules.load(await self._ruleset())
            except BaseException:
                self._seats[seat.key] = seat
                await asyncio.shield(self._publishing.close(port))
                raise

    async def unpublish(self, guest: str, index: int, port: Publish, monitor: Monitor) -> None:
        async with self._one_at_a_time:
            seat = self._seats.get((guest, index))
            if seat is None:
                return
            kept = tuple(p for p in seat.ports if where(p) != where(port))
            self._seats[seat.key] = msgspec.structs.replace(seat, ports=kept)
            await self._publishing.close(port)
            await self._rules.load(await self._ruleset())

    # --- what is wanted ------------------------------------------------------------------------

    @property
    def _awake(self) -> list[Seat]:
        return [seat for key, seat in self._seats.items() if key not in self._resting]

    def _seat(self, guest: str, index: int) -> Seat:
        try:
            return self._seats[guest, index]
        except KeyError:
            raise NotFound(f"Card {index} of the guest is on no network of the house.") from None

    def _network_of(self, seat: Seat) -> Network:
        for network in self._records.networks():
            if network.id == seat.network:
                return network
        raise InvalidInput(f"Card {seat.index} is on a network that is not there.", field="network")

    def _check_kind(self, seat: Seat) -> None:
        network = self._network_of(seat)
        if network.kind is NetworkKind.BRIDGED:
            raise InvalidInput(
                f"Network {network.name} is bridged, which this house cannot do yet.",
                hint="Use a network of kind nat, and publish ports.",
                field="network",
            )
        if seat.ports and network.kind is NetworkKind.ISOLATED:
            raise InvalidInput(
                f"Network {network.name} is isolated: no port of its guests can be published.",
                field="publish",
            )

    @property
    def _networks(self) -> list[Network]:
        """Those that somebody is on: the others cost nothing."""
        used = {seat.network for seat in self._seats.values()}
        own = (n for n in self._records.networks() if n.kind is not NetworkKind.BRIDGED)
        return [network for network in own if network.id in used]

    async def _ruleset(self) -> Ruleset:
        networks = self._networks
        there = {network.id for network in networks}
        return Ruleset(
            networks=tuple(networks),
            cards=tuple(s.card for s in self._seats.values() if s.network in there),
            groups=tuple(self._records.groups()),
            sets=tuple(self._records.sets()),
            published=self._publishing.published(self._awake),
            host=self._host.addresses,
            lan=tuple(dict.fromkeys((*PRIVATE, *self._host.networks))),
            features=await self._rules.features(),
        )

    # --- bringing it about ---------------------------------------------------------------------

    async def _enter(self) -> None:
        """Be in the namespace; notice when it, or its holder, is another one than before."""
        services = (self._services.member(name) for name in self._services.names)
        facts = await self._namespace.ensure((*self._members, *filter(None, services)))
        before = self._facts
        if before is not None and (before.pid, before.ticks) == (facts.pid, facts.ticks):
            return
        if before is not None and before.net != facts.net:
            # All that we held is of a network that is gone.
            self._close_taps()
            self._publishing.forget()
            self._rules.forget()
        self._facts = facts
        _none, listed, _features = await asyncio.gather(
            self._naming.enter(), self._namespace.run(links.LIST), self._rules.features()
        )
        self._links = links.read_links(listed.out)
        if self._holder_watch is not None:
            self._holder_watch.cancel()
        self._holder_watch = asyncio.create_task(self._watch_holder())

    async def _settle(self) -> dict[Where, GuesthouseError]:
        """Make everything as it is wanted; answers the ports that are not open, and why."""
        await self._enter()
        failed: dict[Where, GuesthouseError] = {}

        async def lead_out() -> None:
            failed.update(await self._lead_out())

        async def rule() -> None:
            await self._rules.load(await self._ruleset())

        async def wire() -> None:
            await self._wire()
            there = {network.id for network in self._networks}
            seats = [seat for seat in self._seats.values() if seat.network in there]
            await self._naming.settle(self._networks, seats)

        await _together(wire(), lead_out(), rule())
        await rule()  # of ports that were opened meanwhile; mostly there are none
        return failed

    async def _wire(self) -> None:
        there = {network.id for network in self._networks}
        # A tap that is gone with its namespace is no seat's any more until its next start.
        seats = [s for s in self._seats.values() if s.network in there and s.tap in self._links]
        ipv6 = "ipv6" not in self._namespace.facts.lacks
        wanted = links.wanted_links(self._networks, seats, ipv6=ipv6)
        lines = links.changes(self._links, wanted, ipv6=ipv6)
        if any(seat.network not in there for seat in self._seats.values()):
            # A document that does not parse is no reason to cut its guests off.
            lines = [line for line in lines if not line.startswith("link delete")]
        if not lines:
            return
        try:
            await self._namespace.run(links.BATCH, input="\n".join([*lines, ""]).encode())
        except BaseException:
            # What is there now is not known any more.
            listed = await asyncio.shield(self._namespace.run(links.LIST))
            self._links = links.read_links(listed.out)
            raise
        foreign = {name: link for name, link in self._links.items() if not links.is_ours(name)}
        self._links = {**foreign, **wanted}

    async def _lead_out(self) -> dict[Where, GuesthouseError]:
        ways = (NetworkKind.NAT, NetworkKind.ROUTED)
        if not any(network.kind in ways for network in self._networks):
            self._publishing.forget()
            await self._uplink.stop()
            return {}
        lost = await self._uplink.ensure()
        return await self._publishing.settle(self._awake, lost=lost)

    async def _tap(self, seat: Seat) -> int:
        """Open, or what is left of its last incarnation: without the frames that nobody took."""
        fd = self._taps.get(seat.key)
        if fd is None:
            fd = self._taps[seat.key] = await self._namespace.tap(seat.tap)
            self._links.setdefault(seat.tap, links.Link())
        else:
            await asyncio.to_thread(_drain, fd)
        return fd

    def _forget(self, key: Key) -> None:
        self._seats.pop(key, None)
        self._resting.discard(key)
        fd = self._taps.pop(key, None)
        if fd is not None:
            os.close(fd)

    def _close_taps(self) -> None:
        for fd in self._taps.values():
            os.close(fd)
        self._taps.clear()

    async def _let_go(self) -> None:
        if self._changes is not None:
            self._changes.close()
            self._changes = None
        for task in (self._holder_watch, self._mending):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._holder_watch = self._mending = None
        await self._services.close()
        self._close_taps()
        self._facts, self._is_open = None, False

    # --- making whole --------------------------------------------------------------------------

    async def _watch_holder(self) -> None:
        with suppress(Unavailable):
            await self._namespace.holder_ended()
            log.warning("the holder of the house's namespace ended; it gets a new one")
            self._mend_soon()

    def _service_ended(self, name: str) -> None:
        log.warning("%s of the house's network ended; it is started again", name)
        self._mend_soon()

    def _host_changed(self) -> None:
        self._look_again = True
        self._mend_soon()

    def _mend_soon(self) -> None:
        self._broken = True
        if self._mending is None or self._mending.done():
            self._mending = asyncio.create_task(self._mend())

    async def _mend(self) -> None:
        """Until everything is whole. What dies again and again is tried less and less often."""
        now = asyncio.get_running_loop().time
        if now() - self._broke_at > _STABLE_SECONDS:
            self._pause = 0.0
        while self._broken:
            await asyncio.sleep(self._pause)
            self._broke_at, self._broken = now(), False
            self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)
            try:
                async with self._one_at_a_time:
                    if self._look_again:
                        self._host, self._look_again = await look(), False
                    failed = await self._settle()
            except (GuesthouseError, OSError) as error:
                log.warning("the house's network is not whole yet: %s", error)
                self._broken = True
                continue
            for why in failed.values():
                log.warning("%s", why.message)


def _drain(fd: int) -> None:
    os.set_blocking(fd, False)
    with suppress(BlockingIOError, OSError):
        for _ in range(10_000):
            os.read(fd, 65536)


async def _together(*work: Awaitable[None]) -> None:
    """All to their ends, then the first that failed."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
