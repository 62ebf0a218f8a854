"""The house's network as a backend: cards of guests on bridges of the house.

What is wanted follows from the seats (cards that are attached) and the records (networks, groups,
sets); `_settle` brings the kernel and the services there, from whatever is found. It is the same
for a card that comes, a document that changed, a service that died, and a new daemon.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from guesthouse.errors import GuesthouseError, InvalidInput, NotFound, Unavailable
from guesthouse.host.namespace.holder import Member
from guesthouse.host.namespace.house import Facts, HouseNamespace
from guesthouse.model.device import Nic, Publish
from guesthouse.model.firewall import Firewall
from guesthouse.model.host import Capability
from guesthouse.model.network import Network, NetworkKind
from guesthouse.network.base import Attachment, Monitor, NetworkCapabilities
from guesthouse.network.builtin import netdev_id
from guesthouse.network.house.hostside import Changes, HostSide, look
from guesthouse.network.house.impairing import IMPAIRMENTS, Impairing
from guesthouse.network.house.listening import Listening
from guesthouse.network.house.loading import Rules
from guesthouse.network.house.mending import Mending
from guesthouse.network.house.naming import Naming
from guesthouse.network.house.outside import Outside, check_publishable
from guesthouse.network.house.publishing import Publishing, Where, where
from guesthouse.network.house.seats import Key, Records, Seat
from guesthouse.network.house.services import Services
from guesthouse.network.house.uplink import Uplink
from guesthouse.network.house.wiring import Wiring
from guesthouse.network.rules.ruleset import PRIVATE, Ruleset
from guesthouse.network.rules.text import Count

log = logging.getLogger(__name__)

SERVICES = "network-services.json"
RULES = "network-rules.json"
SOCKET = "uplink.sock"


class HouseNetwork:
    """All networks of the house. `open` first (the first `attach` does it too), `close` at the
    end; what it built stays.

    :param runtime: the house's runtime folder, for records of services and the uplink's socket.
    :param log: of packets that rules log; None keeps none.
    """

    name = "house"
    capabilities = NetworkCapabilities(guest_to_guest=True, live_publish=True, ipv6_publish=True)

    def __init__(
        self, namespace: HouseNamespace, records: Records, runtime: Path, log: Path | None = None
    ) -> None:
        self._namespace, self._records = namespace, records
        self._services = Services(runtime / SERVICES, self._service_ended)
        self._uplink = Uplink(namespace, self._services, runtime / SOCKET)
        self._mending = Mending(self._mend)
        self._naming = Naming(namespace, self._services, self._mending.soon)
        self._publishing = Publishing(namespace, self._services, self._uplink)
        self._listening = Listening(self._rules_changed, self._guest_of, log)
        self._rules = Rules(namespace, runtime / RULES, self._listening.ours)
        self.impairing = Impairing(namespace, runtime / IMPAIRMENTS)
        self._records_of_ours = (runtime / SERVICES, runtime / RULES, runtime / IMPAIRMENTS)
        self._seats: dict[Key, Seat] = {}
        self._resting: set[Key] = set()
        self._wiring = Wiring(namespace)
        self._outside = Outside(namespace, self._wiring, runtime)
        self._host = HostSide((), ())
        self._facts: Facts | None = None
        self._members: tuple[Member, ...] = ()
        self._one_at_a_time = asyncio.Lock()
        self._changes: Changes | None = None
        self._holder_watch: asyncio.Task[None] | None = None
        self._is_open = self._look_again = False

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
            await self.impairing.lost()
            for error in (await self._settle()).values():
                log.warning("%s", error.message)
            self._changes = Changes(self._host_changed)
            self._is_open = True

    async def close(self) -> None:
        """Let go; networks, services and connections stay. Without the card of a guest that runs
        nothing stays, but the namespace while guests live there. If it was never opened, nobody
        here knows whose cards there are (the database may be lost): then only the kernel is asked.
        """
        if not self._awake and self._is_open:
            await self.dissolve()
            return
        await self._let_go()
        if self._awake:
            await self._namespace.close()
        else:
            await self._namespace.leave()

    async def dissolve(self) -> None:
        """End everything, but the namespace while guests live there, whose cards may be on no
        network of it. Those that are on one are cut off. :raise DeadlineExceeded:"""
        async with self._one_at_a_time:
            self._seats.clear()
            await self._naming.finish()
            for name in self._services.names:
                await self._services.stop(name)
            await self._uplink.stop()
            await self._outside.leave()
        await self._let_go()
        if await self._namespace.leave(only_ours=False):  # else they are true still
            for file in self._records_of_ours:
                await asyncio.to_thread(file.unlink, missing_ok=True)

    async def refresh(self) -> None:
        """Documents have changed: networks, groups, sets. Raises as `attach`.

        While nobody has had a card there is nothing to bring about.
        """
        async with self._one_at_a_time:
            if self._is_open:
                await self._settle()

    async def update(self, seat: Seat) -> None:
        """An attached card has changed: its rules, its impairment, its addresses.
        :raise NotFound: it is not attached. :raise HostLacks: the kernel cannot impair it so."""
        async with self._one_at_a_time:
            before = self._seat(*seat.key)
            self._seats[seat.key] = seat
            try:
                await self._settle()
                self.impairing.require(seat)
                self._outside.require(seat.network)
            except BaseException:
                self._seats[seat.key] = before
                await self.impairing.settle(self._seats.values())
                raise

    async def reload(self, firewalls: Mapping[str, Firewall]) -> None:
        """Rules have changed: of guests, by their ids, or of networks, groups, sets.

        Raises as `attach`; then the kernel has the old ones. While nobody has had a card there is
        nothing to load.
        """
        async with self._one_at_a_time:
            if not self._is_open:
                return
            before = self._seats
            self._seats = {
                key: msgspec.structs.replace(seat, firewall=firewalls.get(key[0], seat.firewall))
                for key, seat in before.items()
            }
            try:
                await self._enter()
                await self._rules.load(await self._ruleset())
            except BaseException:
                self._seats = before
                raise

    async def ruleset(self) -> Ruleset:
        """What is loaded, or would be. :raise HostLacks: nft is not installed."""
        return await self._ruleset()

    async def counters(self) -> dict[str, Count]:
        """How often each rule decided, by its key."""
        return await self._rules.counters()

    @property
    def is_open(self) -> bool:
        return self._is_open

    def holds(self, guest: str) -> bool:
        """Whether cards of the guest with that id are attached, so that its rules are in force."""
        return any(owner == guest for owner, _index in self._seats)

    @property
    def kernel_capabilities(self) -> tuple[Capability, ...]:
        """What this kernel can do for rules and impairments; none before `open`."""
        return (*self._rules.capabilities, *self.impairing.capabilities)

    # --- the contract --------------------------------------------------------------------------

    async def attach(self, guest: str, nic: Nic, index: int, *, hostname: str) -> Attachment:
        seat = await self._records.seat(guest, nic, index, hostname=hostname)
        if not self._is_open:  # nobody had a card until now
            await self.open(self._seats.values(), self._members)
        async with self._one_at_a_time:
            if seat.ports:
                check_publishable(self._network_of(seat))
            await self._enter()
            before = self._seats.get(seat.key)
            fd = await self._wiring.tap(seat)
            self._seats[seat.key] = seat
            self._resting.discard(seat.key)
            try:
                failed = await self._settle()
                self.impairing.require(seat, starting=True)
                self._outside.require(seat.network)
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
        netdev = netdev_id(index)
        return Attachment(f"tap,id={netdev},fd={{fd}}", fd, {"type": "tap", "id": netdev})

    async def change(self, guest: str, nic: Nic, index: int, *, hostname: str) -> None:
        seat = await self._records.seat(guest, nic, index, hostname=hostname)
        if seat.ports:
            check_publishable(self._network_of(seat))
        await self.update(seat)

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
            check_publishable(self._network_of(seat))
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

    @property
    def _networks(self) -> list[Network]:
        """Those that somebody is on: the others cost nothing."""
        used = {seat.network for seat in self._seats.values()}
        return [network for network in self._records.networks() if network.id in used]

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
            direct=self._outside.direct,
            direct_hosts=self._outside.direct_hosts,
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
            self._wiring.close()
            self._publishing.forget()
            self._rules.forget()
        self._facts = facts
        looks = (self._wiring.look(), self._rules.features(), self.impairing.look())
        await asyncio.gather(self._naming.enter(), *looks)
        await self.impairing.enter(facts.net, self._wiring.taps)
        if before is None or before.net != facts.net:
            await self._listening.open(self._namespace, (await self._rules.features()).log_group)
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
            await self._outside.settle(self._networks)
            await self._wiring.settle(self._networks, self._seats.values())
            own = [network for network in self._networks if not network.port]
            there = {network.id for network in own}
            seats = [seat for seat in self._seats.values() if seat.network in there]
            await self._naming.settle(own, seats, self._host.resolver)

        # The uplink first: it takes longest, and most of that is waiting.
        await _together(lead_out(), wire(), rule())
        await rule()  # of ports that were opened meanwhile; mostly there are none
        await self.impairing.settle(self._seats.values())
        return failed

    async def _lead_out(self) -> dict[Where, GuesthouseError]:
        ways = (NetworkKind.NAT, NetworkKind.ROUTED)
        if not any(network.kind in ways for network in self._networks):
            self._publishing.forget()
            await self._uplink.stop()
            return {}
        lost = await self._uplink.ensure()
        return await self._publishing.settle(self._awake, lost=lost)

    def _forget(self, key: Key) -> None:
        self._seats.pop(key, None)
        self._resting.discard(key)
        self._wiring.drop(key)

    async def _let_go(self) -> None:
        if self._changes is not None:
            self._changes.close()
            self._changes = None
        if self._holder_watch is not None:
            self._holder_watch.cancel()
            await asyncio.gather(self._holder_watch, return_exceptions=True)
            self._holder_watch = None
        await self._mending.close()
        await self._naming.finish()
        await self._services.close()
        await self._listening.close()
        self._wiring.close()
        self._facts, self._is_open = None, False

    # --- making whole --------------------------------------------------------------------------

    async def _watch_holder(self) -> None:
        with suppress(Unavailable):
            await self._namespace.holder_ended()
            log.warning("the holder of the house's namespace ended; it gets a new one")
            self._mending.soon()

    def _service_ended(self, name: str) -> None:
        log.warning("%s of the house's network ended; it is started again", name)
        self._mending.soon()

    def _rules_changed(self) -> None:
        log.warning("another hand changed the rules of the house's network; they are loaded again")
        self._rules.doubt()
        self._mending.soon()

    def _guest_of(self, address: str) -> str:
        owners = (seat.guest for seat in self._seats.values() if address in seat.addresses)
        return next(owners, "")

    def _host_changed(self) -> None:
        self._look_again = True
        self._mending.soon()

    async def _mend(self) -> None:
        async with self._one_at_a_time:
            if self._look_again:
                self._host, self._look_again = await look(), False
            await self.impairing.lost()
            failed = await self._settle()
        for why in failed.values():
            log.warning("%s", why.message)


async def _together(*work: Awaitable[None]) -> None:
    """All to their ends, then the first that failed."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
