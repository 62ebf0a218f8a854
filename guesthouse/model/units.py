"""Sizes, shares and spans of time as people write them."""

from __future__ import annotations

import re

from guesthouse.errors import InvalidInput

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(i?B)?", re.IGNORECASE | re.ASCII)
_FACTOR = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_LARGEST = 1 << 60
_SPAN = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|m|min|h|d)?", re.IGNORECASE | re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str, *, field: str = "size") -> int:
    """Bytes of a size such as `512M`, `2G`, `1.5GiB` or `4096` (powers of 1024).

    :raise InvalidInput: not a size, negative, not a whole number of bytes, or over 1 EiB.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise InvalidInput(
            f"{text!r} is not a size.",
            hint="Write a number and a unit: 512M, 2G, 1.5G.",
            field=field,
        )
    number, unit, _ = match.groups()
    size = (
        float(number) * _FACTOR[unit.upper()]
        if "." in number
        else int(number) * _FACTOR[unit.upper()]
    )
    if size != int(size) or size > _LARGEST:
        raise InvalidInput(
            f"{text!r} is not a usable size.",
            hint="Sizes are whole bytes and at most 1024P.",
            field=field,
        )
    return int(size)


def format_size(size: int) -> str:
    """The shortest exact-looking text: `2G`, `512M`, `1.5G`, `37K`."""
    for unit in "PTGMK":
        factor = _FACTOR[unit]
        if size >= factor:
            whole = size / factor
            return f"{whole:.0f}{unit}" if whole == int(whole) else f"{whole:.1f}{unit}"
    return f"{size}B"


def parse_share(text: str, *, field: str = "share") -> float:
    """A share of something: `50%` and `0.5` are both 0.5.

    :raise InvalidInput: neither a percentage nor a number, negative, or not finite.
    """
    stripped = text.strip()
    body, factor = (stripped[:-1], 0.01) if stripped.endswith("%") else (stripped, 1.0)
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", body, re.ASCII):
        raise InvalidInput(
            f"{text!r} is not a share.",
            hint="Write a percentage (50%) or a fraction (0.5).",
            field=field,
        )
    return float(body) * factor


def parse_seconds(text: str, *, field: str = "time") -> float:
    """Seconds of a span such as `5s`, `90`, `2m`, `1.5h`.

    :raise InvalidInput: not a span of time, or negative.
    """
    match = _SPAN.fullmatch(text.strip())
    if not match:
        raise InvalidInput(
            f"{text!r} is not a span of time.",
            hint="Write a number and a unit: 5s, 2m, 1h; a number alone is seconds.",
            field=field,
        )
    number, unit = match.groups()
    return float(number) * _SECONDS[(unit or "s").lower()]
