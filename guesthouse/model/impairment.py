"""Bad networks on purpose: what is done to a card's packets."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from guesthouse.errors import InvalidInput, UnknownField
from guesthouse.model.document import Noun
from guesthouse.model.units import parse_seconds, parse_share

LONGEST_LATENCY = 60.0
LEAST_RATE = 8_000
MOST_RATE = 100_000_000_000
_RATE = re.compile(
    r"(\d{1,9}(?:\.\d{1,3})?)\s*([kmg]?)(?:bit|bps|bit/s)?", re.IGNORECASE | re.ASCII
)
_FACTOR = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}


class Impairment(Noun, kw_only=True, frozen=True):
    """Of one direction.

    :ivar latency: seconds added to each packet. :ivar jitter: up to so many more or less, seconds;
        packets overtake one another by it.
    :ivar loss: share of packets that are lost, 0 to 1.
    :ivar reorder: share of packets that overtake others, 0 to 1; needs a latency.
    :ivar rate: bits per second at most; 0 for no limit.
    """

    latency: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    reorder: float = 0.0
    rate: int = 0


class NicImpairment(Noun, kw_only=True, frozen=True):
    """Of a card: what the guest gets, and what it sends."""

    incoming: Impairment = Impairment()
    outgoing: Impairment = Impairment()


WORDS = ("latency", "jitter", "loss", "reorder", "rate")
"""What people write; `in.` or `out.` before it means one direction, else both are meant."""
DIRECTIONS = {"in": "incoming", "out": "outgoing"}


def check_nic_impairment(wanted: NicImpairment, *, field: str = "") -> None:
    """:raise InvalidInput: as `check_impairment`."""
    prefix = f"{field}." if field else ""
    check_impairment(wanted.incoming, field=f"{prefix}incoming")
    check_impairment(wanted.outgoing, field=f"{prefix}outgoing")


def check_impairment(wanted: Impairment, *, field: str = "") -> None:
    """:raise InvalidInput: it cannot be right; `detail["field"]` says where."""
    prefix = f"{field}." if field else ""
    for name, share in (("loss", wanted.loss), ("reorder", wanted.reorder)):
        if not 0.0 <= share <= 1.0:
            raise InvalidInput(
                f"A {name} of {share * 100:g}% is not possible.",
                hint="Use 0% to 100%.",
                field=f"{prefix}{name}",
            )
    for name, seconds in (("latency", wanted.latency), ("jitter", wanted.jitter)):
        if not 0.0 <= seconds <= LONGEST_LATENCY:
            raise InvalidInput(
                f"A {name} of {seconds:g} seconds is not possible.",
                hint=f"Use 0 to {LONGEST_LATENCY:g} seconds.",
                field=f"{prefix}{name}",
            )
    if wanted.jitter > wanted.latency:
        raise InvalidInput(
            "The jitter is larger than the latency: packets would leave before they came.",
            field=f"{prefix}jitter",
        )
    if wanted.reorder and not wanted.latency:
        raise InvalidInput(
            "Packets can overtake others only where those are held up.",
            hint="Add a latency.",
            field=f"{prefix}reorder",
        )
    if wanted.rate and not LEAST_RATE <= wanted.rate <= MOST_RATE:
        raise InvalidInput(
            f"A rate of {wanted.rate} bit/s is not possible.",
            hint="Use 8kbit to 100gbit.",
            field=f"{prefix}rate",
        )


def parse_impairment(words: Mapping[str, str]) -> Impairment:
    """From what people write: `{"latency": "80ms", "loss": "1%", "rate": "8mbit"}`.

    :raise InvalidInput: a value that cannot be. :raise UnknownField: another word.
    """
    wanted = msgspec.structs.replace(Impairment(), **_read(words))
    check_impairment(wanted)
    return wanted


def _read(words: Mapping[str, str]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, text in words.items():
        if name in {"latency", "jitter"}:
            values[name] = parse_seconds(text, field=name)
        elif name in {"loss", "reorder"}:
            values[name] = parse_share(text, field=name)
        elif name == "rate":
            values[name] = parse_rate(text)
        else:
            raise _no_word(name)
    return values


def _no_word(name: str) -> UnknownField:
    return UnknownField(
        f"There is no impairment {name!r}.",
        hint="There are latency, jitter, loss, reorder and rate; in. or out. before it means one "
        "direction.",
        field=name,
    )


def change_impairment(before: NicImpairment, words: Mapping[str, str]) -> NicImpairment:
    """`before` with what people want of it: `{"loss": "1%", "in.latency": "80ms"}`.

    A word for one direction counts more than one for both, wherever it stands.

    :raise InvalidInput: a value that cannot be. :raise UnknownField: another word.
    """
    changed = {}
    for short, direction in DIRECTIONS.items():
        mine = {name: text for name, text in words.items() if "." not in name}
        for key, text in words.items():
            of, dot, name = key.partition(".")
            if dot and of not in DIRECTIONS:
                raise _no_word(key)
            if dot and of == short:
                mine[name] = text
        now = getattr(before, direction)
        changed[direction] = msgspec.structs.replace(now, **_read(mine))
        check_impairment(changed[direction])
    return NicImpairment(**changed)


def impairment_words(impairment: NicImpairment) -> tuple[str, ...]:
    """As people write it: `latency=80ms`, `in.loss=1%`; none where nothing is impaired."""
    words: list[tuple[str, str]] = []
    for name in WORDS:
        incoming = _written(name, getattr(impairment.incoming, name))
        outgoing = _written(name, getattr(impairment.outgoing, name))
        if incoming == outgoing:
            words.append((name, incoming))
        else:
            words += [(f"in.{name}", incoming), (f"out.{name}", outgoing)]
    return tuple(f"{name}={text}" for name, text in words if text)


def _written(name: str, value: float) -> str:
    """Empty for nothing."""
    if not value:
        return ""
    if name in {"latency", "jitter"}:
        return f"{value * 1000:.6g}ms"
    if name in {"loss", "reorder"}:
        return f"{value * 100:.6g}%"
    for unit, factor in (("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3)):
        if value >= factor:
            return f"{value / factor:.6g}{unit}"
    return f"{value:g}"


def parse_rate(text: str, *, field: str = "rate") -> int:
    """Bits per second of `8mbit`, `500k`, `1.5gbit` or `64000` (powers of 1000).

    :raise InvalidInput: not a rate.
    """
    match = _RATE.fullmatch(text.strip())
    if not match:
        raise InvalidInput(
            f"{text!r} is not a rate.",
            hint="Write a number of bits per second and a unit: 500kbit, 8mbit, 1gbit.",
            field=field,
        )
    return round(float(match[1]) * _FACTOR[match[2].lower()])
