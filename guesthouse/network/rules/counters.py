"""How often each rule decided, read back from the kernel."""

from __future__ import annotations

from typing import Any

import msgspec

from guesthouse.errors import ToolFailed
from guesthouse.network.rules.text import TABLE, Count

LIST = (
    ("nft", "-j", "list", "table", "inet", TABLE),
    ("nft", "-j", "list", "table", "bridge", TABLE),
)
"""Commands whose outputs `read_counters` reads; nft without `-j` cannot be read reliably."""


def read_counters(*outputs: bytes) -> dict[str, Count]:
    """By the rule's key; several rules of nft with one key are added up.

    Packets that rules accept are the first ones of their connections: answers and what follows
    are counted under `house/established`.

    :raise ToolFailed: it is not what `nft -j list` prints.
    """
    found: dict[str, Count] = {}
    for output in outputs:
        for entry in _entries(output):
            rule = entry.get("rule", {})
            key = rule.get("comment")
            if not key or rule.get("table") != TABLE:
                continue
            for statement in rule.get("expr", []):
                counter = statement.get("counter") if isinstance(statement, dict) else None
                if isinstance(counter, dict):
                    more = Count(packets=counter["packets"], bytes=counter["bytes"])
                    found[key] = found.get(key, Count()).plus(more)
    return found


def _entries(output: bytes) -> list[dict[str, Any]]:
    try:
        return msgspec.json.decode(output, type=_Listing).nftables
    except msgspec.DecodeError as error:
        raise ToolFailed(
            f"What nft listed cannot be read: {error}.",
            hint="Guesthouse needs nft 0.9.4 or newer, with JSON.",
        ) from None


class _Listing(msgspec.Struct):
    nftables: list[dict[str, Any]]
