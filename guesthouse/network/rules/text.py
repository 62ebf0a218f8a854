"""The language of nft(8): tables, chains, sets and maps as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from guesthouse.model.document import Noun

TABLE = "guesthouse"
NAMES = (TABLE, f"{TABLE}_a", f"{TABLE}_b")
"""Of tables; the second and third where a ruleset is too long for one load and they take turns."""

ON_ONE_LINE = 8
"""Elements of a set; more get a line each."""

# What nft 1.0.6 makes of it, measured and rounded up: 104 bytes for `drop`, the length of names and
# 180 for each thing that is looked at, 60 for an element of a map.
COST_OF_NAME = 100
COST_OF_RULE = 130
COST_OF_LOOK = 160
_LOOKS = re.compile(r"addr |port |proto |ifname |mark |state |status |type |limit |vmap |frag|@th")
SOME = 50
T = TypeVar("T")
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
        self._sets: dict[str, _Set] = {}
        self._kept: set[str] = set()
        self._shared: dict[tuple[str, str, tuple[str, ...]], str] = {}
        self._chains: dict[str, list[str]] = {}
        self._hooks: dict[str, str] = {}

    def chain(self, name: str, lines: Iterable[str], *, hook: str = "") -> str:
        """:param hook: of a base chain, `filter forward filter - 1 accept`: type, hook, priority
        (of any number of words) and policy. :return: the name."""
        if hook:
            kind, where, *priority, policy = hook.split()
            order = " ".join(priority)
            self._hooks[name] = f"type {kind} hook {where} priority {order}; policy {policy};"
        self._chains[name] = list(lines)
        return name

    def has_chain(self, name: str) -> bool:
        return name in self._chains

    def set(self, name: str, key: str, elements: Iterable[str], *, keep: bool = False) -> None:
        """:param key: `type …`, `typeof …`, with `; flags interval` behind it for networks.
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
        self._sets[name] = _Set(f"{word} {name}", tuple(key.split("; ")), tuple(elements))
        if keep:
            self._kept.add(name)

    def counter(self, key: str) -> str:
        """A counter that goes on from where the last load left off; written once for each key."""
        last = self._counters.pop(key, None)
        return f"counter packets {last.packets} bytes {last.bytes}" if last else "counter"

    def text(self, name: str = TABLE) -> str:
        """Replaces the table as a whole: the first line makes the second one succeed."""
        chains = [line for chain in self._chains for line in self._chain(chain)]
        sets = [line for used in self._used() for line in used.lines()]
        return self._renewed(name, [*sets, *chains])

    def difference(self, before: Table, name: str = TABLE) -> list[str] | None:
        """Lines that make this of what `before` is, if they differ in elements of sets and maps
        alone; None if in more. Rules, and what they counted, stay."""
        then, now = {s.head: s for s in before._used()}, {s.head: s for s in self._used()}
        same = (self.family, self._chains, self._hooks) == (
            before.family,
            before._chains,
            before._hooks,
        )
        if not same or {h: s.key for h, s in then.items()} != {h: s.key for h, s in now.items()}:
            return None
        lines: list[str] = []
        for head, new in now.items():
            gone, come = new.changes(then[head])
            # To replace parts of intervals within one load is what kernels have got wrong.
            if gone and "flags interval" in new.key:
                return None
            for word, elements in (("delete", gone), ("add", come)):
                for some in _slices(elements, SOME):
                    where = f"{self.family} {name} {new.name}"
                    lines.append(f"{word} element {where} {{ {', '.join(some)} }}")
        return sorted(lines, key=lambda line: line.startswith("add"))

    def stages(self, name: str, budget: int, room: int) -> tuple[list[str], int]:
        """The table but for its base chains, in texts that are loaded in order: nothing of it acts
        until `hooks` is loaded.

        :param budget: bytes of netlink that a text may become, by a high estimate.
        :param room: the same for the first text. :return: the texts, and what is left of the last.
        """
        texts = [self._renewed(name, [])]
        lines: list[str] = []
        for cost, part in self._parts():
            if cost > room:
                texts[-1] += self._named(name, lines)
                texts.append("")
                lines, room = [], budget
            lines += part
            room -= cost
        texts[-1] += self._named(name, lines)
        return texts, room

    def _parts(self) -> Iterator[tuple[int, list[str]]]:
        """Small parts in the order in which they can be loaded, with what each costs."""
        plain = [chain for chain in self._chains if chain not in self._hooks]
        for chain in plain:
            yield COST_OF_NAME, [f"chain {chain} {{", "}"]
        for each in self._used():
            for some in _slices(each.elements, SOME) or [()]:
                yield COST_OF_NAME * (1 + len(some)), each._replace(elements=tuple(some)).lines()
        for chain in plain:
            for rules in _slices(self._chains[chain], SOME):
                yield (
                    sum(map(_cost, rules)),
                    [f"chain {chain} {{", *(f"\t{rule}" for rule in rules), "}"],
                )

    def hooks(self, name: str) -> str:
        """What makes the stages act."""
        lines = [line for chain in self._hooks for line in self._chain(chain)]
        return self._named(name, lines)

    def _used(self) -> list[_Set]:
        lines = (line for lines in self._chains.values() for line in lines)
        used = self._kept | {name for line in lines for name in _REFERENCE.findall(line)}
        return [each for name, each in self._sets.items() if name in used]

    def _chain(self, name: str) -> list[str]:
        head = [self._hooks[name]] if name in self._hooks else []
        return [f"chain {name} {{", *(f"\t{x}" for x in (*head, *self._chains[name])), "}"]

    def _renewed(self, name: str, lines: list[str]) -> str:
        named = f"table {self.family} {name}"
        return f"{named}\ndelete {named}\n" + self._named(name, lines)

    def _named(self, name: str, lines: list[str]) -> str:
        body = "".join(f"\t{line}\n" for line in lines)
        return f"table {self.family} {name} {{\n{body}}}\n"


class _Set(NamedTuple):
    """:ivar head: `set NAME` or `map NAME`."""

    head: str
    key: tuple[str, ...]
    elements: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.head.partition(" ")[2]

    def changes(self, before: _Set) -> tuple[list[str], list[str]]:
        """Elements that are gone since, and those that have come."""
        then, now = dict.fromkeys(before.elements), dict.fromkeys(self.elements)
        return [e for e in then if e not in now], [e for e in now if e not in then]

    def lines(self) -> list[str]:
        return [f"{self.head} {{", *(f"\t{part}" for part in self.key), *self.filling(), "}"]

    def filling(self) -> list[str]:
        listed = self.elements
        if not listed:
            return []
        if len(listed) <= ON_ONE_LINE:
            return [f"\telements = {{ {', '.join(listed)} }}"]
        most = [f"\t\t{element}," for element in listed[:-1]]
        return ["\telements = {", *most, f"\t\t{listed[-1]}", "\t}"]


def _cost(rule: str) -> int:
    """Bytes of netlink, estimated high."""
    return COST_OF_RULE + len(rule) + COST_OF_LOOK * len(_LOOKS.findall(rule))


def _slices(values: Sequence[T], size: int) -> list[Sequence[T]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def quoted(text: str) -> str:
    """A string as nft takes it. It knows no escapes, so what it cannot hold is left out."""
    if not text.isprintable() or '"' in text or "\\" in text:
        text = "".join(c for c in text if c.isprintable() and c not in '"\\')
    return f'"{text}"'


def one_of(values: Iterable[str]) -> str:
    """One value, or an anonymous set of several."""
    listed = list(values)
    return listed[0] if len(listed) == 1 else f"{{ {', '.join(listed)} }}"
