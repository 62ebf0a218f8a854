"""Whether others here (Docker, firewalld) drop what the host forwards, and the rule against it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from guesthouse.errors import GuesthouseError
from guesthouse.host.namespace.entering import tool_environment
from guesthouse.host.spawn import run

_CALL = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_IP = frozenset({"ip", "ip6", "inet"})


async def forward_trouble(*, bridged: bool, device: str = "") -> str:
    """What drops forwarded packets, and the exact rule that lets ours through; empty if nothing.

    :param bridged: packets that only cross a bridge, which pass those rules where br_netfilter
        sends them there. :param device: the host's end of the house's uplink otherwise.
    """
    if bridged and not _bridged_packets_pass_rules():
        return ""
    try:
        done = await run(["nft", "-j", "list", "ruleset"], env=tool_environment(), check=False)
        listed = json.loads(done.out or b"{}").get("nftables", ())
    except (GuesthouseError, ValueError):
        return ""  # without nft nobody here has such rules
    dropping = droppers(listed)
    if not dropping:
        return ""
    return f"{' and '.join(dropping)} drop what this host forwards: {cure(listed, bridged, device)}"


def droppers(listed: Iterable[Mapping[str, Any]]) -> list[str]:
    """Chains of others, from `nft -j list ruleset`, whose policy drops what is forwarded."""
    return [
        f"chain {chain['name']} of table {chain['family']} {chain['table']}"
        for entry in listed
        if (chain := entry.get("chain"))
        and chain.get("hook") == "forward"
        and chain.get("policy") == "drop"
        and chain.get("family") in _IP
        and not str(chain.get("table", "")).startswith("guesthouse")
    ]


def cure(listed: Iterable[Mapping[str, Any]], bridged: bool, device: str = "") -> str:
    """The commands to type. Docker leaves a chain of its own to its users."""
    chains = {entry["chain"]["name"] for entry in listed if "chain" in entry}
    chain = "DOCKER-USER" if "DOCKER-USER" in chains else "FORWARD"
    if bridged:
        return f"iptables -I {chain} -m physdev --physdev-is-bridged -j ACCEPT"
    return f"iptables -I {chain} -i {device} -j ACCEPT; iptables -I {chain} -o {device} -j ACCEPT"


def _bridged_packets_pass_rules() -> bool:
    try:
        return _CALL.read_text().strip() == "1"
    except OSError:
        return False
