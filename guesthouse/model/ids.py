"""Immutable ids: ULIDs (48 bits of milliseconds, 80 random bits, Crockford base 32).

They sort by creation time, also within one millisecond of one process, whatever its threads.
"""

from __future__ import annotations

import os
import re
import threading
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_SHAPE = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_last: tuple[int, int] = (0, 0)
_one_at_a_time = threading.Lock()


def new_id() -> str:
    """A new ULID, greater than every one made before by this process."""
    global _last
    with _one_at_a_time:
        now = time.time_ns() // 1_000_000
        millis, random = _last
        if now > millis:
            # The top random bit stays clear: counting up within a millisecond never overflows.
            millis, random = now, int.from_bytes(os.urandom(10)) >> 1
        else:  # same millisecond, or a clock that jumped back: count up to keep the order
            random += 1
        _last = (millis, random)
    number = millis << 80 | random
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def is_id(text: str) -> bool:
    """Whether `text` has the shape of an id."""
    return _SHAPE.fullmatch(text) is not None


def created_at(ulid: str) -> float:
    """Seconds since the epoch at which `ulid` was made."""
    millis = 0
    for letter in ulid[:10]:
        millis = millis << 5 | _ALPHABET.index(letter)
    return millis / 1000
