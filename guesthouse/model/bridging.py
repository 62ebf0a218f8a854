"""What a bridged network needs to be told, and what it cannot have."""

from __future__ import annotations

import re
from collections.abc import Mapping

from guesthouse.errors import InvalidInput

MAX_VLAN = 4094
"""4095 is reserved, and 0 means no VLAN (IEEE 802.1Q)."""
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")  # IFNAMSIZ is 16 with its zero


def check_bridged(uplink: str, vlan: int, addresses: Mapping[str, object]) -> None:
    """:param addresses: what the network outside gives, by field; all must be empty.

    :raise InvalidInput: it cannot be.
    """
    if not _INTERFACE.fullmatch(uplink):
        raise InvalidInput(
            f"A bridged network needs an interface of the host; {uplink!r} is none.",
            hint="Name one that `ip link` shows: --bridge-host eth0",
            field="uplink",
        )
    if not 0 <= vlan <= MAX_VLAN:
        raise InvalidInput(f"{vlan} is not a VLAN.", hint=f"Use 1 to {MAX_VLAN}.", field="vlan")
    for name, value in addresses.items():
        if value:
            raise InvalidInput(
                "On a bridged network the host's own network gives the addresses.",
                hint=f"Leave {name} away.",
                field=name,
            )
