"""Bad networks on purpose: what is done to a card's packets."""

from __future__ import annotations

import re
from collections.abc import Mapping

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
    values: dict[str, float] = {}
    rate = 0
    for name, text in words.items():
        if name in {"latency", "jitter"}:
            values[name] = parse_seconds(text, field=name)
        elif name in {"loss", "reorder"}:
            values[name] = parse_share(text, field=name)
        elif name == "rate":
            rate = parse_rate(text)
        else:
            raise UnknownField(
                f"There is no impairment {name!r}.",
                hint="There are latency, jitter, loss, reorder and rate.",
                field=name,
            )
    wanted = Impairment(**values, rate=rate)
    check_impairment(wanted)
    return wanted


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
