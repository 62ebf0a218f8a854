"""How often each rule decided, read back from the kernel."""

from __future__ import annotations

from typing import Any

import msgspec

from guesthouse.errors import ToolFailed
from guesthouse.network.rules.text import NAMES, Count

LIST = ("nft", "-j", "list", "ruleset")
"""The command whose output `read_counters` reads."""


def read_counters(output: bytes) -> dict[str, Count]:
    """By the rule's key; several rules of nft with one key are added up.

    Packets that rules accept are the first ones of their connections: answers and what follows
    are counted under `house/established`.

    :raise ToolFailed: it is not what `nft -j list` prints.
    """
    found: dict[str, Count] = {}
    for entry in read_listing(output):
        rule = entry.get("rule", {})
        key = rule.get("comment")
        if not key or rule.get("table") not in NAMES:
            continue
        for statement in rule.get("expr", []):
            counter = statement.get("counter") if isinstance(statement, dict) else None
            if isinstance(counter, dict):
                more = Count(packets=counter["packets"], bytes=counter["bytes"])
                found[key] = found.get(key, Count()).plus(more)
    return found


def read_listing(output: bytes) -> list[dict[str, Any]]:
    """The entries of what `nft -j list …` prints. :raise ToolFailed: it is none."""
    try:
        return msgspec.json.decode(output, type=_Listing).nftables
    except msgspec.DecodeError as error:
        raise ToolFailed(
            f"What nft listed cannot be read: {error}.",
            hint="Guesthouse needs nft 0.9.4 or newer, with JSON.",
        ) from None


class _Listing(msgspec.Struct):
    nftables: list[dict[str, Any]]
