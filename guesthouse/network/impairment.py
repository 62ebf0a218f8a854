"""Impairments as commands of tc(8) and rules of nft(8), by what the kernel has.

What a guest gets leaves the house by the card's tap, where queues are; what it sends comes in
there, where none are, so it is led through an `ifb` device and queued on its way out of that.

    latency, jitter, reorder   netem
    rate                       netem, else tbf
    loss                       netem, else nft's lots (numgen); by lots too where a guest's own
                               packets are only lost, which needs no ifb

What the kernel cannot do is refused by name. Facts: tc-netem(8), tc-tbf(8), nft(8) on numgen;
kernel options CONFIG_NET_SCH_NETEM, CONFIG_NET_SCH_TBF, CONFIG_NFT_NUMGEN, CONFIG_IFB.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

import msgspec

from guesthouse.errors import HostLacks
from guesthouse.model.document import Noun
from guesthouse.model.host import Capability
from guesthouse.model.impairment import Impairment, NicImpairment, check_nic_impairment

Runner = Callable[[tuple[str, ...], bytes], Awaitable[bool]]
"""Runs a command in the namespace with that input, and says whether it succeeded."""

LOTS = 1_000_000
"""Loss is drawn in millionths."""
FULL_FRAME = 1514
LEAST_BURST = 32_768
QUEUE_TIME = "50ms"
MOST_QUEUED = 200_000


class Shaping(Noun, kw_only=True, frozen=True):
    """What the kernel of the house has; see `probe`."""

    netem: bool = False
    tbf: bool = False
    numgen: bool = False
    ifb: bool = False


class Plan(NamedTuple):
    """:ivar undo: commands that take away what may be there; they fail where nothing is.

    :ivar commands: what to run after those, in order; none where nothing is impaired.
    :ivar rules: for `nft -f -`; also takes away what was there before.
    """

    undo: tuple[tuple[str, ...], ...]
    commands: tuple[tuple[str, ...], ...]
    rules: str


def plan(tap: str, wanted: NicImpairment, kernel: Shaping) -> Plan:
    """How to impair the card whose tap is `tap`, as a whole: what it had before goes.

    :raise InvalidInput: see `check_nic_impairment`.
    :raise HostLacks: the kernel cannot do it; `detail["capability"]` names what it lacks.
    """
    check_nic_impairment(wanted)
    drawn_in = bool(wanted.incoming.loss) and not kernel.netem
    drawn_out = bool(wanted.outgoing.loss) and (not kernel.netem or _is_loss_alone(wanted, kernel))
    queued_in = _queue(_without_loss(wanted.incoming, drawn_in), kernel)
    queued_out = _queue(_without_loss(wanted.outgoing, drawn_out), kernel)
    commands: list[tuple[str, ...]] = []
    if queued_in:
        commands.append(("tc", "qdisc", "add", "dev", tap, "root", *queued_in))
    if queued_out:
        _require(kernel.ifb, "ifb", "Queueing what a guest sends", "CONFIG_IFB", "ifb")
        commands += _through_ifb(tap, queued_out)
    lost_in = wanted.incoming.loss if drawn_in else 0.0
    lost_out = wanted.outgoing.loss if drawn_out else 0.0
    rules = _rules(tap, lost_in, lost_out, kernel)
    return Plan(undo=_undo(tap), commands=tuple(commands), rules=rules)


def _is_loss_alone(wanted: NicImpairment, kernel: Shaping) -> bool:
    """Lots are drawn where the packet comes in: no queue, no other device."""
    return kernel.numgen and wanted.outgoing == Impairment(loss=wanted.outgoing.loss)


def _without_loss(wanted: Impairment, drawn: bool) -> Impairment:
    return msgspec.structs.replace(wanted, loss=0.0) if drawn else wanted


def _undo(tap: str) -> tuple[tuple[str, ...], ...]:
    return (
        ("tc", "qdisc", "del", "dev", tap, "root"),
        ("tc", "qdisc", "del", "dev", tap, "ingress"),
        ("ip", "link", "del", ifb_name(tap)),
    )


def ifb_name(tap: str) -> str:
    """Of the device through which what the guest sends is led."""
    return f"i{tap}"


def table_name(tap: str) -> str:
    """nft's table with the lots of one card: `table bridge …`."""
    return f"guesthouse_loss_{tap.replace('-', '_')}"


def _queue(wanted: Impairment, kernel: Shaping) -> tuple[str, ...]:
    """The queueing discipline and its parameters; nothing where no queue is needed."""
    held = {"latency": wanted.latency, "jitter": wanted.jitter, "reorder": wanted.reorder}
    for name, value in held.items():
        if value:
            _require(kernel.netem, "netem", name.capitalize(), "CONFIG_NET_SCH_NETEM", "sch_netem")
    if kernel.netem and any((*held.values(), wanted.rate, wanted.loss)):
        return ("netem", *_netem(wanted))
    if wanted.rate:
        _require(kernel.tbf, "tbf", "A rate", "CONFIG_NET_SCH_TBF", "sch_tbf")
        # What may pass at once: at least what comes in a tick of a slow kernel (100 Hz).
        burst = max(LEAST_BURST, wanted.rate // 8 // 100)
        rate = f"{wanted.rate}bit"
        return ("tbf", "rate", rate, "burst", str(burst), "latency", QUEUE_TIME)
    return ()


def _netem(wanted: Impairment) -> Iterator[str]:
    """tc-netem(8). The limit counts packets: all that can be on their way, and half as many."""
    held = wanted.latency + wanted.jitter
    rate = wanted.rate or 10_000_000_000
    yield from ("limit", str(min(MOST_QUEUED, max(1000, int(held * rate / 8 / FULL_FRAME * 1.5)))))
    if wanted.latency:
        yield from ("delay", _microseconds(wanted.latency))
        if wanted.jitter:
            yield _microseconds(wanted.jitter)
    if wanted.loss:
        yield from ("loss", "random", _percent(wanted.loss))
    if wanted.reorder:
        yield from ("reorder", _percent(wanted.reorder))
    if wanted.rate:
        yield from ("rate", f"{wanted.rate}bit")


def _through_ifb(tap: str, queue: tuple[str, ...]) -> list[tuple[str, ...]]:
    device = ifb_name(tap)
    return [
        ("ip", "link", "add", device, "type", "ifb"),
        ("ip", "link", "set", device, "up"),
        ("tc", "qdisc", "add", "dev", device, "root", *queue),
        *_led(tap, device),
    ]


def _led(tap: str, device: str) -> list[tuple[str, ...]]:
    """All that comes in by `tap` takes the way through `device`."""
    everything = ("protocol", "all", "u32", "match", "u32", "0", "0")
    lead = ("action", "mirred", "egress", "redirect", "dev", device)
    return [
        ("tc", "qdisc", "add", "dev", tap, "handle", "ffff:", "ingress"),
        ("tc", "filter", "add", "dev", tap, "parent", "ffff:", *everything, *lead),
    ]


def _rules(tap: str, lost_in: float, lost_out: float, kernel: Shaping) -> str:
    """The first two lines take away what was there, whether it was or not."""
    table = f"bridge {table_name(tap)}"
    lines = [f"table {table}", f"delete table {table}"]
    chains: list[str] = []
    for name, where, device, share in (
        ("gets", "postrouting priority 300", "oifname", lost_in),
        # After the checks of what a card may claim, so that these count all lies.
        ("sends", "prerouting priority -250", "iifname", lost_out),
    ):
        if share:
            _require(kernel.numgen, "nft-numgen", "Loss", "CONFIG_NFT_NUMGEN", "nft_numgen")
            lost = max(1, round(share * LOTS))
            drawn = f"numgen random mod {LOTS} < {lost} " if lost < LOTS else ""
            chains += [
                f"\tchain {name} {{",
                f"\t\ttype filter hook {where}; policy accept;",
                f'\t\t{device} "{tap}" {drawn}counter drop comment "loss/{name}"',
                "\t}",
            ]
    if chains:
        lines += [f"table {table} {{", *chains, "}"]
    return "\n".join(lines) + "\n"


def _microseconds(seconds: float) -> str:
    return f"{round(seconds * 1_000_000)}us"


def _percent(share: float) -> str:
    return f"{share * 100:.4f}".rstrip("0").rstrip(".") + "%"


def _require(present: bool, name: str, what: str, option: str, module: str) -> None:
    if not present:
        raise HostLacks(
            f"{what} is not possible: this kernel lacks {name} ({option}).",
            hint=f"Load it (as root: modprobe {module}), or use a kernel that has it.",
            capability=name,
        )


_PROBE = "gh-probe"
_IFB_PROBE = "gh-probe-ifb"


async def probe(run: Runner) -> Shaping:
    """Asks the kernel by doing it to a device that nobody uses, and takes that away again."""
    link = ("ip", "link", "add", _PROBE, "type", "bridge")
    queue = ("tc", "qdisc", "replace", "dev", _PROBE, "root")
    await run(link, b"")
    try:
        netem = await run((*queue, "netem", "delay", "1ms"), b"")
        tbf = await run((*queue, "tbf", "rate", "8mbit", "burst", "32768", "latency", "50ms"), b"")
        ifb = await run(("ip", "link", "add", _IFB_PROBE, "type", "ifb"), b"")
        # Leading to a device needs more of the kernel than the device: ingress, u32 and mirred.
        for command in _led(_PROBE, _IFB_PROBE):
            ifb = ifb and await run(command, b"")
        lots = f"chain c {{\nnumgen random mod {LOTS} < 1 drop\n}}"
        text = f"table bridge {_PROBE} {{\n{lots}\n}}\n"
        numgen = await run(("nft", "--check", "-f", "-"), text.encode())
    finally:
        await run(("ip", "link", "del", _PROBE), b"")
        await run(("ip", "link", "del", _IFB_PROBE), b"")
    return Shaping(netem=netem, tbf=tbf, numgen=numgen, ifb=ifb)


def capabilities(kernel: Shaping) -> tuple[Capability, ...]:
    """For `guest doctor`."""
    return tuple(
        Capability(
            name=name,
            available=present,
            reason=f"The kernel has {name}." if present else f"The kernel lacks {option}.",
            cure="" if present else f"modprobe {module} (as root)",
        )
        for name, present, option, module in (
            ("netem", kernel.netem, "CONFIG_NET_SCH_NETEM", "sch_netem"),
            ("tbf", kernel.tbf, "CONFIG_NET_SCH_TBF", "sch_tbf"),
            ("ifb", kernel.ifb, "CONFIG_IFB", "ifb"),
        )
    )
