"""The whole house's ruleset as one text for `nft -f -`, which the kernel takes as a whole or not.

Names of the rules are comments, which `counters` reads back. Answers to what was allowed before
pass: the kernel's table of connections is not touched by a load.
"""

from __future__ import annotations

from collections.abc import Mapping

from guesthouse.errors import HostLacks
from guesthouse.model.firewall import Direction
from guesthouse.network.rules.house import house_chains
from guesthouse.network.rules.ruleset import Published, Ruleset
from guesthouse.network.rules.spoofing import bridge_chains
from guesthouse.network.rules.steps import is_judged
from guesthouse.network.rules.text import TABLE, Count, Table


def compile_ruleset(ruleset: Ruleset, counters: Mapping[str, Count] | None = None) -> str:
    """:param counters: what `counters.read_counters` gave just before: counting goes on from there.

    :raise InvalidInput: see `Ruleset.check`.
    :raise HostLacks: there are rules, and the kernel could not hold them between the guests of
        one bridge.
    """
    ruleset.check()
    if not ruleset.features.bridge_state and _is_judged(ruleset):
        raise HostLacks(
            "This kernel cannot filter between guests of one network, so rules and policies "
            "would hold only half.",
            hint="Load the module br_netfilter (as root: modprobe br_netfilter), or remove the "
            "rules and policies.",
            capability="bridge-firewall",
        )
    last = counters or {}
    # Where the bridge tracks connections, keys of rules stand in both tables: inet's go on.
    bridge = Table("bridge", {key: last[key] for key in last if _is_of_bridge(key)})
    inet = Table("inet", {key: last[key] for key in last if not _is_of_bridge(key)})
    house_chains(inet, ruleset)
    bridge_chains(bridge, ruleset)
    return bridge.text() + inet.text()


def _is_of_bridge(key: str) -> bool:
    return key.startswith("spoof/") or key == "wall/flooded"


def _is_judged(ruleset: Ruleset) -> bool:
    return any(is_judged(ruleset, card, way) for card in ruleset.cards for way in Direction)


def bridge_settings(ruleset: Ruleset) -> dict[str, str]:
    """Sysctls, without which the text says less than it seems to: set them before it is loaded.

    A new namespace has 1 for all; bridged packets are sent through the inet table only where
    somebody has rules, since it costs time.
    """
    through = ruleset.features.bridge_state == "nf-call" and _is_judged(ruleset)
    return {
        f"net.bridge.bridge-nf-call-{what}": str(int(through and what != "arptables"))
        for what in ("iptables", "ip6tables", "arptables")
    }


def publish_text(port: Published) -> str:
    """For `nft -f -`: opens one port without a load of all rules."""
    return (
        f"add element inet {TABLE} {port.map_name} "
        f"{{ {port.port} : {port.address} . {port.guest_port} }}\n"
    )


def unpublish_text(port: Published) -> str:
    """For `nft -f -`: closes one port. Connections that use it go on."""
    return f"delete element inet {TABLE} {port.map_name} {{ {port.port} }}\n"
