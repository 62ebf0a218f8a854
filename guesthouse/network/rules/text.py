"""The language of nft(8): tables, chains, sets and maps as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from guesthouse.model.document import Noun

TABLE = "guesthouse"
ON_ONE_LINE = 8
"""Elements of a set; more get a line each."""
_REFERENCE = re.compile(r"@([a-z][a-z0-9_]*)(?![\w,])")


class Count(Noun, kw_only=True, frozen=True):
    """What a rule has decided about."""

    packets: int = 0
    bytes: int = 0

    def plus(self, other: Count) -> Count:
        return Count(packets=self.packets + other.packets, bytes=self.bytes + other.bytes)


class Table:
    """Collects what one table holds. Of the sets that are offered only those in use are written."""

    def __init__(self, family: str, counters: Mapping[str, Count]) -> None:
        self.family = family
        self._counters = dict(counters)
        self._sets: dict[str, str] = {}
        self._kept: set[str] = set()
        self._shared: dict[tuple[str, str, tuple[str, ...]], str] = {}
        self._chains: dict[str, list[str]] = {}

    def chain(self, name: str, lines: Iterable[str], *, hook: str = "") -> str:
        """:param hook: of a base chain, `filter forward filter - 1 accept`: type, hook, priority
        (of any number of words) and policy. :return: the name."""
        head = []
        if hook:
            kind, where, *priority, policy = hook.split()
            order = " ".join(priority)
            head = [f"type {kind} hook {where} priority {order}; policy {policy};"]
        self._chains[name] = [*head, *lines]
        return name

    def has_chain(self, name: str) -> bool:
        return name in self._chains

    def set(self, name: str, key: str, elements: Iterable[str], *, keep: bool = False) -> None:
        """:param key: `type …`, `typeof …`, with `flags interval;` before it for networks.
        :param keep: write it even if nothing here refers to it."""
        self._add("set", name, key, elements, keep)

    def map(self, name: str, key: str, elements: Mapping[str, str], *, keep: bool = False) -> None:
        """:param key: `type KEY : VALUE` or `typeof KEY : VALUE`."""
        self._add("map", name, key, (f"{k} : {v}" for k, v in elements.items()), keep)

    def shared(self, name: str, key: str, elements: list[str]) -> str:
        """The name of a set of exactly these, made once: anonymous ones cost a load much time."""
        wanted = (name, key, tuple(elements))
        if wanted not in self._shared:
            self._shared[wanted] = f"{name}_{len(self._shared) + 1}"
            self.set(self._shared[wanted], key, elements)
        return self._shared[wanted]

    def _add(self, word: str, name: str, key: str, elements: Iterable[str], keep: bool) -> None:
        lines = [f"\t{word} {name} {{", *(f"\t\t{part}" for part in key.split("; "))]
        listed = list(elements)
        if listed and len(listed) <= ON_ONE_LINE:
            lines.append(f"\t\telements = {{ {', '.join(listed)} }}")
        elif listed:
            lines.append("\t\telements = {")
            lines += [f"\t\t\t{element}," for element in listed[:-1]]
            lines += [f"\t\t\t{listed[-1]}", "\t\t}"]
        self._sets[name] = "\n".join([*lines, "\t}"])
        if keep:
            self._kept.add(name)

    def counter(self, key: str) -> str:
        """A counter that goes on from where the last load left off; written once for each key."""
        last = self._counters.pop(key, None)
        return f"counter packets {last.packets} bytes {last.bytes}" if last else "counter"

    def text(self) -> str:
        """Replaces the table as a whole: the first line makes the second one succeed."""
        named = f"{self.family} {TABLE}"
        used = self._kept | {
            name
            for lines in self._chains.values()
            for line in lines
            for name in _REFERENCE.findall(line)
        }
        parts = [f"table {named}", f"delete table {named}", f"table {named} {{"]
        parts += [text for name, text in self._sets.items() if name in used]
        for name, lines in self._chains.items():
            parts += [f"\tchain {name} {{", *(f"\t\t{line}" for line in lines), "\t}"]
        return "\n".join([*parts, "}"]) + "\n"


def quoted(text: str) -> str:
    """A string as nft takes it. It knows no escapes, so what it cannot hold is left out."""
    return '"' + "".join(c for c in text if c.isprintable() and c not in '"\\') + '"'


def one_of(values: Iterable[str]) -> str:
    """One value, or an anonymous set of several."""
    listed = list(values)
    return listed[0] if len(listed) == 1 else f"{{ {', '.join(listed)} }}"
