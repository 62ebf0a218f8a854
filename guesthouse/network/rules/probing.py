"""What this kernel and this nft can do, asked and never assumed.

Each question is a text for `nft --check -f -` in the namespace of the house: it is sent to the
kernel, which judges it, and nothing of it stays.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from guesthouse.model.host import Capability
from guesthouse.network.rules.ruleset import Features

CHECK = ("nft", "--check", "-f", "-")

Runner = Callable[[tuple[str, ...], bytes], Awaitable[bool]]
"""Runs a command in the namespace with that input, and says whether it succeeded."""


def _bridge(rule: str, before: str = "") -> str:
    return _table("bridge", "forward", rule, before)


def _table(family: str, hook: str, rule: str, before: str = "", kind: str = "filter") -> str:
    return (
        f"table {family} guesthouse_probe {{\n{before}\tchain probe {{\n"
        f"\t\ttype {kind} hook {hook} priority 0; policy accept;\n\t\t{rule}\n\t}}\n}}\n"
    )


QUESTIONS = {
    "nft": _table("inet", "forward", "ct state { established, related } counter accept"),
    "nft-nat": _table("inet", "postrouting", 'oifname "tap0" masquerade', kind="nat"),
    "nft-reject": _table("inet", "forward", "reject with icmpx admin-prohibited"),
    "nft-bridge": _bridge(
        "icmpv6 type nd-neighbor-advert iifname . @th,64,128 @targets drop",
        "\tset targets {\n\t\ttypeof iifname . @th,64,128\n\t}\n",
    ),
    "bridge-conntrack": _bridge("ct state established accept"),
    "bridge-reject": _bridge("reject with icmpx admin-prohibited"),
    "nft-log": _table("inet", "forward", 'log prefix "probe " group 7'),
    "nft-numgen": _bridge("numgen random mod 10000 < 100 drop"),
}

NF_CALL = ("test", "-w", "/proc/sys/net/bridge/bridge-nf-call-iptables")

_WITHOUT = {
    "nft": ("There is no nft, or the kernel has no nf_tables.", "apt install nftables"),
    "nft-nat": ("nftables cannot translate addresses.", "modprobe nft_masq"),
    "nft-reject": ("nftables cannot reject.", "modprobe nft_reject_inet"),
    "nft-bridge": ("nftables cannot filter bridges.", "modprobe nf_tables"),
    "bridge-conntrack": (
        "Bridges track no connections (CONFIG_NF_CONNTRACK_BRIDGE).",
        "modprobe nf_conntrack_bridge",
    ),
    "bridge-reject": (
        "Bridges cannot reject (CONFIG_NFT_BRIDGE_REJECT).",
        "modprobe nft_reject_bridge",
    ),
    "nft-log": (
        "nftables cannot log to a group (CONFIG_NETFILTER_NETLINK_LOG).",
        "modprobe nfnetlink_log",
    ),
    "nft-numgen": ("nftables draws no lots (CONFIG_NFT_NUMGEN).", "modprobe nft_numgen"),
    "bridge-nf-call": (
        "Bridged packets cannot be sent through the inet table.",
        "modprobe br_netfilter",
    ),
}


async def probe(run: Runner) -> dict[str, bool]:
    """Answers by name; those of `QUESTIONS` and `bridge-nf-call`."""
    answers = {name: await run(CHECK, text.encode()) for name, text in QUESTIONS.items()}
    answers["bridge-nf-call"] = await run(NF_CALL, b"")
    return answers


def features(answers: dict[str, bool]) -> Features:
    """What the compiler needs to know. Tracking in the bridge itself is the faster way."""
    state = "nf-call" if answers["bridge-nf-call"] else ""
    return Features(
        bridge_state="conntrack" if answers["bridge-conntrack"] else state,
        bridge_reject=answers["bridge-reject"],
        log_group=7 if answers["nft-log"] else None,
    )


def capabilities(answers: dict[str, bool]) -> tuple[Capability, ...]:
    """For `guest doctor`."""
    return tuple(
        Capability(
            name=name,
            available=answers[name],
            reason="The kernel takes such rules." if answers[name] else reason,
            cure="" if answers[name] else f"{cure} (as root)",
        )
        for name, (reason, cure) in _WITHOUT.items()
    )
