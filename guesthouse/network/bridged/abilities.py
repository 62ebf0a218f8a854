"""Whether this house can have bridged networks, for `guest doctor`."""

from __future__ import annotations

from guesthouse.errors import GuesthouseError
from guesthouse.model.host import Capability
from guesthouse.network.bridged.attaching import check_vlan
from guesthouse.network.bridged.hostlink import check_may_change


async def capabilities() -> tuple[Capability, ...]:
    """`bridging`; and `vlan` where there can be any: it is really tried."""
    try:
        check_may_change()
    except GuesthouseError as lacks:
        return (_without("bridging", lacks),)
    may = "This house may change the host's own network."
    bridging = Capability(name="bridging", available=True, reason=may)
    try:
        await check_vlan()
    except GuesthouseError as lacks:
        return bridging, _without("vlan", lacks)
    return bridging, Capability(name="vlan", available=True, reason="A VLAN (802.1Q) was made.")


def _without(name: str, lacks: GuesthouseError) -> Capability:
    return Capability(name=name, available=False, reason=lacks.message, cure=lacks.hint)
