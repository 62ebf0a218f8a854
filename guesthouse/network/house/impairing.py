"""Impairments, into the kernel: a card's as a whole, and again after anything that loses them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import msgspec

from guesthouse.errors import GuesthouseError, HostLacks
from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.host.process import boot_id
from guesthouse.model.document import Noun
from guesthouse.model.host import Capability
from guesthouse.model.impairment import NicImpairment
from guesthouse.network.house.seats import Key, Seat
from guesthouse.network.impairment import (
    Plan,
    Shaping,
    capabilities,
    plan,
    probe,
)

log = logging.getLogger(__name__)

IMPAIRMENTS = "network-impairments.json"
_NONE = NicImpairment()
_LOAD = ("nft", "-f", "-")


class _Record(Noun, kw_only=True, frozen=True):
    """:ivar net: inode number of the network namespace. :ivar kernel: its answers.

    :ivar done: what is done to each tap; None while it is being changed, and after that failed.
        A tap that is not in it is not impaired.
    """

    boot: str
    net: int
    kernel: Shaping | None = None
    done: dict[str, NicImpairment | None] = {}


class Impairing:
    """What is done to the cards of the house on purpose.

    :param record: the file that says so to the daemon after us.
    :ivar problems: cards whose impairment could not be brought about, and why.
    """

    def __init__(self, namespace: HouseNamespace, record: Path) -> None:
        self._namespace, self._file = namespace, record
        self._record = _Record(boot=boot_id(), net=0)
        self._found: _Record | None = None
        self._kernel: Shaping | None = None
        self.problems: dict[Key, GuesthouseError] = {}

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """For `guest doctor`; none before `look`."""
        return capabilities(self._kernel) if self._kernel else ()

    async def look(self) -> None:
        """What this kernel can do, and what the daemon before us did. Before `enter`."""
        if self._found is None:
            self._found = await asyncio.to_thread(self._read)
        if self._kernel is None and self._found is not None:
            self._kernel = self._found.kernel
        if self._kernel is None:
            self._kernel = await self._asked()

    async def enter(self, net: int, taps: Iterable[str]) -> None:
        """We are in this namespace now, in which there are these taps."""
        there = set(taps)
        if self._record.net != net:
            known = self._found if self._found is not None and self._found.net == net else None
            # What was done to taps that are there already, nobody else knows.
            done = dict(known.done) if known is not None else dict.fromkeys(there)
            self._record = msgspec.structs.replace(self._record, net=net, done=done)
        # Of a namespace that is gone (its number may come again), or taken away by hand.
        self._record.done.update(dict.fromkeys(self._record.done.keys() - there))
        await self._save()

    async def check(self, wanted: NicImpairment) -> None:
        """Before anything is done. Where nobody has asked this kernel yet, the next start of the
        guest tells.

        :raise HostLacks: this kernel cannot do it; names what it lacks. :raise InvalidInput:
        """
        if self._record.net:
            await self._plan("t0-0", wanted)
            return
        found = await asyncio.to_thread(self._read)
        if found is not None and found.kernel is not None:
            plan("t0-0", wanted, found.kernel)

    async def settle(self, seats: Collection[Seat]) -> None:
        """Every card is impaired as its seat says, and nothing is left of those that are gone.

        What fails stands in `problems` afterwards; others do not suffer from it.
        """
        self.problems = {}
        taps = {seat.tap for seat in seats}
        for tap in [tap for tap in self._record.done if tap not in taps]:
            try:
                await self._bring_about(tap, _NONE)
            except GuesthouseError as error:
                log.warning("what is left of %s: %s", tap, error.message)
        for seat in seats:
            if self._record.done.get(seat.tap, _NONE) == seat.impairment:
                continue
            try:
                await self._bring_about(seat.tap, seat.impairment)
            except GuesthouseError as error:
                self.problems[seat.key] = error
                log.warning("card %d of %s: %s", seat.index, seat.name, error.message)

    def require(self, seat: Seat, *, starting: bool = False) -> None:
        """:raise GuesthouseError: the impairment of this card could not be brought about.

        :param starting: nobody asked for it just now.
        """
        error = self.problems.get(seat.key)
        if isinstance(error, HostLacks) and starting:
            raise HostLacks(
                f"Card {seat.index} of {seat.name!r} cannot be impaired as it should: "
                f"{error.message}",
                hint=f"Let it be as it is: guest nic set {seat.name} {seat.index} clear",
                **error.detail,
            )
        if error is not None:
            raise error

    async def lost(self) -> bool:
        """Whether the kernel has lost some of it; `settle` brings that about again."""
        expected = {tap: done for tap, done in self._record.done.items() if done}
        if not any(done != _NONE for done in expected.values()):
            return False
        there = await self._there()
        plans = {tap: await self._plan(tap, done) for tap, done in expected.items()}
        gone = [tap for tap, made in plans.items() if not _stands(made, there)]
        self._record.done.update(dict.fromkeys(gone))
        return bool(gone)

    async def _bring_about(self, tap: str, wanted: NicImpairment) -> None:
        """:raise HostLacks: as `check`. :raise ToolFailed: :raise InvalidInput:"""
        made = await self._plan(tap, wanted)
        fresh = tap not in self._record.done
        await self._note(tap, None)
        if not fresh:
            for command in made.undo:
                await self._namespace.run(command, check=False)
        for command in made.commands:
            await self._namespace.run(command)
        if not fresh or "chain" in made.rules:
            await self._namespace.run(_LOAD, input=made.rules.encode())
        await self._note(tap, wanted)

    async def _plan(self, tap: str, wanted: NicImpairment) -> Plan:
        try:
            return plan(tap, wanted, self._kernel or Shaping())
        except HostLacks:
            # A module may have been loaded meanwhile, as the error itself suggests.
            self._kernel = await self._asked()
            return plan(tap, wanted, self._kernel)

    async def _asked(self) -> Shaping:
        async def tried(argv: tuple[str, ...], data: bytes) -> bool:
            return not (await self._namespace.run(argv, input=data, check=False)).code

        return await probe(tried)

    async def _save(self) -> None:
        self._record = msgspec.structs.replace(self._record, kernel=self._kernel)
        await asyncio.to_thread(self._write)

    async def _note(self, tap: str, done: NicImpairment | None) -> None:
        if done == _NONE:
            self._record.done.pop(tap, None)
        else:
            self._record.done[tap] = done
        await self._save()

    async def _there(self) -> Mapping[str, set[str]]:
        """Devices by the kinds of their queues, and `nft`: the tables of the bridge family."""
        queues = await self._namespace.run(("tc", "-j", "qdisc", "show"))
        tables = await self._namespace.run(("nft", "-j", "list", "tables", "bridge"))
        found: dict[str, set[str]] = {}
        for queue in json.loads(queues.out or b"[]"):
            found.setdefault(str(queue.get("dev")), set()).add(str(queue.get("kind")))
        listed = json.loads(tables.out)["nftables"]
        found["nft"] = {entry["table"]["name"] for entry in listed if "table" in entry}
        return found

    def _read(self) -> _Record | None:
        try:
            record = msgspec.json.decode(self._file.read_bytes(), type=_Record)
        except (OSError, msgspec.DecodeError):
            return None  # the first start, or damaged: then taps are taken for impaired somehow
        return record if record.boot == boot_id() else None

    def _write(self) -> None:
        new = self._file.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(self._record))
        new.replace(self._file)


def _stands(made: Plan, there: Mapping[str, set[str]]) -> bool:
    """Whether what a plan makes is there, as far as names and kinds tell."""
    for command in made.commands:
        if command[:3] == ("tc", "qdisc", "add"):
            kinds = there.get(command[4], set())
            if not kinds & set(command):
                return False
    # Without rules the table is only made to be deleted.
    named = [line.split()[2] for line in made.rules.splitlines() if line.startswith("table ")]
    return len(named) < 2 or named[-1] in there["nft"]
