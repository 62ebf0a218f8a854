"""The whole house's ruleset as text for `nft -f -`, which the kernel takes as a whole or not.

Names of the rules are comments, which `counters` reads back. Answers to what was allowed before
pass: the kernel's table of connections is not touched by a load.
"""

from __future__ import annotations

from collections.abc import Mapping

from guesthouse.errors import HostLacks
from guesthouse.model.firewall import Direction
from guesthouse.network.rules.counters import read_listing
from guesthouse.network.rules.house import house_chains
from guesthouse.network.rules.ruleset import Published, Ruleset
from guesthouse.network.rules.spoofing import bridge_chains
from guesthouse.network.rules.steps import is_judged
from guesthouse.network.rules.text import NAMES, TABLE, Count, Table

WITHOUT_ROOT = 200_000
"""Bytes of netlink in one load. Without CAP_NET_ADMIN on the host itself nft cannot widen its
socket (SO_SNDBUFFORCE, socket(7)), and the kernel refuses what is longer than that takes: 212,960
where net.core.wmem_default is as the kernel has it. A thousand rules are three times as much."""

CHAINS = ("nft", "-j", "list", "chains")


def compile_ruleset(ruleset: Ruleset, counters: Mapping[str, Count] | None = None) -> str:
    """:param counters: what `counters.read_counters` gave just before: counting goes on from there.

    :raise InvalidInput: see `Ruleset.check`.
    :raise HostLacks: there are rules, and the kernel could not hold them between the guests of
        one bridge.
    """
    return "".join(table.text() for table in _tables(ruleset, counters))


def compile_staged(
    ruleset: Ruleset,
    counters: Mapping[str, Count] | None = None,
    *,
    table: str,
    budget: int = WITHOUT_ROOT,
) -> tuple[str, ...]:
    """The same for a house without root, whose kernel takes little at once.

    Each text is loaded by a run of nft of its own, in order. All but the last fill a table that
    does not act yet; the last makes it act and takes away the one that did, at once. If one fails
    the old rules stay, and the next load sweeps up.

    :param table: see `next_table`. :param budget: bytes of netlink at once, at least 64 KiB.
        Raises as `compile_ruleset`.
    """
    tables = _tables(ruleset, counters)
    stages, room = [""], budget
    for each in tables:
        texts, room = each.stages(table, budget, room)
        stages[-1] += texts[0]
        stages += texts[1:]
    swept = "".join(
        f"table {each.family} {other}\ndelete table {each.family} {other}\n"
        for each in tables
        for other in NAMES
        if other != table
    )
    return (*stages, swept + "".join(each.hooks(table) for each in tables))


def difference(before: Ruleset, after: Ruleset, table: str = TABLE) -> str | None:
    """What to load where `before` is loaded, to have `after`; None if all is to be loaded anew.

    A card, a network or a port that comes or goes mostly is a few elements of sets: a third of the
    time, and no counter is read. :param table: which acts. Raises as `compile_ruleset`.
    """
    if before.features != after.features or bridge_settings(before) != bridge_settings(after):
        return None
    lines: list[str] = []
    for then, now in zip(_tables(before, None), _tables(after, None), strict=True):
        some = now.difference(then, table)
        if some is None:
            return None
        lines += some
    return "".join(f"{line}\n" for line in lines)


def acting_table(chains: bytes) -> str:
    """The name of the tables that act now, which `publish_text` wants; empty if there are none.

    :param chains: what `CHAINS` prints. :raise ToolFailed: it is no listing of nft.
    """
    hooked = (entry.get("chain", {}) for entry in read_listing(chains))
    names = {chain["table"] for chain in hooked if "hook" in chain}
    return next((name for name in NAMES if name in names), "")


def next_table(chains: bytes) -> str:
    """The name for the next `compile_staged`. Parameter and errors as `acting_table`."""
    acting = acting_table(chains)
    return next(name for name in NAMES[1:] if name != acting)


def _tables(ruleset: Ruleset, counters: Mapping[str, Count] | None) -> tuple[Table, Table]:
    """For bridges first: what guests claim is checked before anything else acts."""
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
    return bridge, inet


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


def publish_text(port: Published, table: str = TABLE) -> str:
    """For `nft -f -`: opens one port without a load of all rules."""
    return (
        f"add element inet {table} {port.map_name} "
        f"{{ {port.port} : {port.address} . {port.guest_port} }}\n"
    )


def unpublish_text(port: Published, table: str = TABLE) -> str:
    """For `nft -f -`: closes one port. Connections that use it go on."""
    return f"delete element inet {table} {port.map_name} {{ {port.port} }}\n"
