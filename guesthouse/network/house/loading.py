"""Rules, into the kernel: as a whole or not at all, and again after anything that loses them."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec

from guesthouse.errors import EngineError, ToolFailed
from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.host.process import boot_id
from guesthouse.model.document import Noun
from guesthouse.model.host import Capability
from guesthouse.network.rules.compiling import (
    CHAINS,
    bridge_settings,
    compile_ruleset,
    compile_staged,
    difference,
    next_table,
)
from guesthouse.network.rules.counters import LIST, read_counters, read_listing
from guesthouse.network.rules.probing import capabilities, features, probe
from guesthouse.network.rules.ruleset import Features, Ruleset
from guesthouse.network.rules.text import NAMES, TABLE, Count

LOAD = ("nft", "-f", "-")


class _Record(Noun, kw_only=True, frozen=True):
    """:ivar answers: of the kernel; they change with its boot, and when modules are loaded.

    :ivar made_of: which ruleset is loaded.
    """

    boot: str
    answers: dict[str, bool]
    made_of: str


class Rules:
    """The rules of the house, as the kernel has them.

    :param record: the file that says so to the daemon after us.
    :param ours: a context around every change, so that it is not taken for another's.
    """

    def __init__(
        self,
        namespace: HouseNamespace,
        record: Path,
        ours: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._namespace, self._file, self._ours = namespace, record, ours
        self._answers: dict[str, bool] = {}
        self._table = ""
        self._loaded: Ruleset | None = None
        self._doubted = False

    async def features(self) -> Features:
        """What this kernel can do; asked once. :raise HostLacks: nft is not installed."""
        if not self._answers:
            record = await asyncio.to_thread(self._read)
            self._answers = record.answers if record else await probe(self._try)
        return features(self._answers)

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """For `guest doctor`; none before `features`."""
        return capabilities(self._answers) if self._answers else ()

    async def counters(self) -> dict[str, Count]:
        """How often each rule decided, by its key."""
        return read_counters((await self._namespace.run(LIST)).out)

    async def find(self, ruleset: Ruleset) -> None:
        """See what the kernel has. If it is this ruleset, `load` has nothing to do."""
        record = await asyncio.to_thread(self._read)
        self._table = await self._acting()
        if self._table and record and record.made_of == _fingerprint(ruleset):
            self._loaded = ruleset

    def forget(self) -> None:
        """The kernel may have lost them."""
        self._table, self._loaded = "", None

    def doubt(self) -> None:
        """Another hand changed something: the next load is a whole one, and counters go on."""
        self._doubted = True

    async def load(self, ruleset: Ruleset) -> bool:
        """Make these the rules, at once; counters go on. False: they are there already.

        :raise HostLacks: rules that the kernel could hold only half. :raise InvalidInput:
        :raise ToolFailed: the old rules stay.
        """
        if self._doubted:
            self._loaded, self._table = None, await self._acting()
            self._doubted = False
        if ruleset == self._loaded:
            return False
        ruleset.check()
        if not await self._load_difference(ruleset):
            await self._load_whole(ruleset)
        self._loaded = ruleset
        await asyncio.to_thread(self._write, _fingerprint(ruleset))
        return True

    async def _load_difference(self, ruleset: Ruleset) -> bool:
        if self._loaded is None or not self._table:
            return False
        text = difference(self._loaded, ruleset, self._table)
        if text is None:
            return False
        try:
            if text:
                await self._feed(text)
        except ToolFailed:
            # The kernel has not what we believed it had.
            self.forget()
            return False
        return True

    async def _load_whole(self, ruleset: Ruleset) -> None:
        await self._settings(ruleset)
        counters = await self.counters() if self._table else {}
        if os.geteuid() == 0:
            await self._feed(compile_ruleset(ruleset, counters))
            self._table = TABLE
            return
        table = next_table((await self._namespace.run(CHAINS)).out)
        for text in compile_staged(ruleset, counters, table=table):
            await self._feed(text)
        self._table = table

    async def _acting(self) -> str:
        listed = read_listing((await self._namespace.run(CHAINS)).out)
        acting = {e["chain"]["table"] for e in listed if "hook" in e.get("chain", {})}
        return next((name for name in NAMES if name in acting), "")

    async def _settings(self, ruleset: Ruleset) -> None:
        """Before the rules: without them these say less than it seems."""
        wanted = {
            name.removeprefix("net.").replace(".", "/"): value
            for name, value in bridge_settings(ruleset).items()
        }
        try:
            await self._namespace.settings(wanted)
        except EngineError:
            # Without br_netfilter there are none; the compiler refuses what would need them.
            if "1" in wanted.values():
                raise

    async def _feed(self, text: str) -> None:
        with self._ours():
            await self._namespace.run(LOAD, input=text.encode())

    async def _try(self, argv: tuple[str, ...], data: bytes) -> bool:
        return not (await self._namespace.run(argv, input=data, check=False)).code

    def _read(self) -> _Record | None:
        try:
            record = msgspec.json.decode(self._file.read_bytes(), type=_Record)
        except (OSError, msgspec.DecodeError):
            return None
        return record if record.boot == boot_id() else None

    def _write(self, made_of: str) -> None:
        record = _Record(boot=boot_id(), answers=self._answers, made_of=made_of)
        new = self._file.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(record))
        new.replace(self._file)


def _fingerprint(ruleset: Ruleset) -> str:
    return hashlib.sha256(msgspec.json.encode(ruleset)).hexdigest()[:32]
