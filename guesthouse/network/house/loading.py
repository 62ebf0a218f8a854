"""Rules, into the kernel: as a whole or not at all, and again after anything that loses them."""

from __future__ import annotations

import hashlib
import os

import msgspec

from guesthouse.errors import EngineError
from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.model.host import Capability
from guesthouse.network.rules.compiling import (
    CHAINS,
    bridge_settings,
    compile_ruleset,
    compile_staged,
    next_table,
    publish_text,
    unpublish_text,
)
from guesthouse.network.rules.counters import LIST, read_counters, read_listing
from guesthouse.network.rules.probing import capabilities, features, probe
from guesthouse.network.rules.ruleset import Features, Published, Ruleset
from guesthouse.network.rules.text import NAMES, TABLE, Count

LOAD = ("nft", "-f", "-")


class Rules:
    """The rules of the house, as the kernel has them."""

    def __init__(self, namespace: HouseNamespace) -> None:
        self._namespace = namespace
        self._answers: dict[str, bool] = {}
        self._table = ""
        self._loaded = ""

    async def features(self) -> Features:
        """What this kernel can do; asked once. :raise HostLacks: nft is not installed."""
        if not self._answers:
            self._answers = await probe(self._try)
        return features(self._answers)

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """For `guest doctor`; none before `features`."""
        return capabilities(self._answers) if self._answers else ()

    async def counters(self) -> dict[str, Count]:
        """How often each rule decided, by its key."""
        return read_counters((await self._namespace.run(LIST)).out)

    async def find(self, ruleset: Ruleset, made_of: str) -> None:
        """See what the kernel has. If it is what was loaded with this ruleset (`made_of`, as
        `made_of` gave it before), the next `load` of it has nothing to do."""
        self._table = await self._acting()
        if self._table and made_of == self.fingerprint(ruleset):
            self._loaded = made_of

    def forget(self) -> None:
        """The kernel may have lost them."""
        self._table = self._loaded = ""

    @property
    def made_of(self) -> str:
        """Of the ruleset that was loaded, in a word."""
        return self._loaded

    async def load(self, ruleset: Ruleset) -> bool:
        """Replace all rules at once; counters go on. False: they are there already.

        :raise HostLacks: rules that the kernel could hold only half. :raise InvalidInput:
        :raise ToolFailed: the old rules stay.
        """
        wanted = self.fingerprint(ruleset)
        if wanted == self._loaded:
            return False
        await self._settings(ruleset)
        counters = await self.counters() if self._table else {}
        if os.geteuid() == 0:
            await self._feed(compile_ruleset(ruleset, counters))
            self._table = TABLE
        else:
            await self._load_staged(ruleset, counters)
        self._loaded = wanted
        return True

    async def publish(self, port: Published, ruleset: Ruleset) -> None:
        """Open one port. :param ruleset: the one that has it."""
        await self._feed(publish_text(port, self._table))
        self._loaded = self.fingerprint(ruleset)

    async def unpublish(self, port: Published, ruleset: Ruleset) -> None:
        """Close one port. :param ruleset: the one without it."""
        await self._feed(unpublish_text(port, self._table))
        self._loaded = self.fingerprint(ruleset)

    async def are_there(self) -> bool:
        """Whether the kernel has some of ours."""
        return bool(self._table) and await self._acting() == self._table

    @staticmethod
    def fingerprint(ruleset: Ruleset) -> str:
        return hashlib.sha256(msgspec.json.encode(ruleset)).hexdigest()[:32]

    async def _load_staged(self, ruleset: Ruleset, counters: dict[str, Count]) -> None:
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
        await self._namespace.run(LOAD, input=text.encode())

    async def _try(self, argv: tuple[str, ...], data: bytes) -> bool:
        return not (await self._namespace.run(argv, input=data, check=False)).code
