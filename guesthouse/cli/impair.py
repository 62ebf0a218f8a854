"""Impairing a card: what `guest nic set GUEST CARD latency=80ms loss=1%` does."""

from __future__ import annotations

from collections.abc import Sequence

from guesthouse.cli import output
from guesthouse.cli.following import Wish, carry_out
from guesthouse.client.house import House
from guesthouse.errors import InvalidInput
from guesthouse.model.impairment import (
    DIRECTIONS,
    WORDS,
    NicImpairment,
    change_impairment,
    impairment_words,
)
from guesthouse.model.nics import find_nic

CLEAR = "clear"
KEYS = (*WORDS, *(f"{way}.{word}" for way in DIRECTIONS for word in WORDS))
HELP = """\b
    latency=80ms       hold each packet up for so long
    jitter=10ms        up to so much more or less than the latency
    loss=1%            lose so many
    reorder=5%         let so many overtake others; needs a latency
    rate=8mbit         so many bits a second at most
    in.loss=1%         only what the guest gets; out.loss=1%: only what it sends;
                       without either both, so a round trip takes twice the latency
    clear              none of it any more"""
"""Of the words, for the help of a command."""


def is_impairment(text: str) -> bool:
    """Whether a word of the command line is about impairment."""
    return text == CLEAR or text.partition("=")[0].strip() in KEYS


def impair_card(house: House, name: str, card: str, texts: Sequence[str]) -> None:
    """Change what those words say, live, and show all that is done to the card then.

    :raise InvalidInput: a word that is none, or a value that cannot be.
    :raise NotFound: there is no such card.
    """
    words = read_words(texts)
    before = NicImpairment() if CLEAR in texts else find_nic(house.guest(name), card).impairment
    wanted = change_impairment(before, words)
    (job,) = carry_out(house, [Wish(name, lambda: house.impair(name, card, wanted))])
    done = " ".join(impairment_words(wanted)) or "not impaired"
    output.result(f"Card {card} of {job.target_name or name}: {done}")


def read_words(texts: Sequence[str]) -> dict[str, str]:
    """By key, without `clear`. :raise InvalidInput: no such key, or one given twice."""
    words: dict[str, str] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if text == CLEAR:
            continue
        if not equals or key not in KEYS or not value:
            raise InvalidInput(
                f"{text!r} impairs nothing: write KEY=VALUE, where KEY is one of "
                f"{', '.join(WORDS)}.",
                hint=_near(key),
                field=key,
            )
        if key in words:
            raise InvalidInput(f"{key} is given twice.", field=key)
        words[key] = value
    return words


def complete_impairment(incomplete: str, taken: Sequence[str]) -> list[str]:
    """Keys that are not on the line yet."""
    keys = {text.partition("=")[0] for text in taken}
    found = [f"{key}=" for key in KEYS if key not in keys] + ([] if CLEAR in keys else [CLEAR])
    # One direction is offered to whoever asks for it.
    shown = found if "." in incomplete else [one for one in found if "." not in one]
    return [one for one in shown if one.startswith(incomplete)]


def _near(key: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(key, KEYS, n=1)
    return f"Did you mean {near[0]}=…?" if near else "See: guest nic set --help"
