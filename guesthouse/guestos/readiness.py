"""Whether a guest is ready: named checks in order, each with a hint for when it does not come.

Pure of drivers: whoever watches hands in, for each check, how to ask and what to wait for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

from guesthouse.errors import AgentUnavailable, DeadlineExceeded, NotReady
from guesthouse.guestos.agent_answers import Address


class Check(NamedTuple):
    """:ivar awaited: what is being waited for, to complete "It waits for …"."""

    name: str
    awaited: str
    hint: str


PROCESS = Check("process", "its process to run", "See why it does not: guest logs --engine {guest}")
KERNEL = Check(
    "kernel", "a sign of life from its kernel", "See what its console says: guest logs {guest}"
)
AGENT = Check(
    "agent",
    "its agent to answer",
    "It may still be starting (emulated guests take a minute), or its image has no "
    "qemu-guest-agent. See: guest logs {guest}",
)
NETWORK = Check(
    "network",
    "an address on each of its network cards",
    "Look at its network inside: guest console {guest}",
)
SSH = Check(
    "ssh",
    "ssh to answer on its port",
    "Its image may have no ssh port; look inside: guest console {guest}",
)
CHECKS = (PROCESS, KERNEL, AGENT, NETWORK, SSH)


class Probe(NamedTuple):
    """How to find out whether a check has come.

    :ivar ask: answers whether it has. "Not yet" may also be an `AgentUnavailable` or a
        `DeadlineExceeded`; any other error ends the watch.
    :ivar event: completes when it is worth asking again; None when nothing tells.
    :ivar slowest: longest pause in seconds between two askings when no event comes.
    """

    check: Check
    ask: Callable[[], Awaitable[bool]]
    event: Callable[[], Awaitable[None]] | None = None
    slowest: float = 1.0


FIRST_PAUSE = 0.05
"""Seconds; each pause is half as long again as the one before, up to the probe's `slowest`."""


async def watch(
    probes: Sequence[Probe],
    on_pass: Callable[[Check], Awaitable[None]],
    deadline: float,
    *,
    guest: str,
) -> None:
    """Wait until all checks have come, in order, calling `on_pass` for each.

    :param deadline: seconds for all together. :param guest: its name, for the message.
    :raise NotReady: names the first check that did not come (`detail["check"]`), with its hint and
        what was passed (`detail["passed"]`). Errors of probes other than "not yet" pass through.
    """
    end = time.monotonic() + deadline
    passed: list[str] = []
    for probe in probes:
        reasons: list[str] = []
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + _left(end)):
                await _until(probe, reasons)
        except TimeoutError:
            raise _not_ready(probe.check, guest, deadline, passed, reasons) from None
        passed.append(probe.check.name)
        await on_pass(probe.check)


def covers(addresses: Iterable[Address], macs: Iterable[str]) -> bool:
    """Whether each card has an address that reaches beyond its own network."""
    have = {address.mac for address in addresses if not address.link_local}
    return all(mac.lower() in have for mac in macs)


async def _until(probe: Probe, reasons: list[str]) -> None:
    """Ask until the answer is yes. `reasons` holds the latest reason for a no."""
    pause = FIRST_PAUSE
    while True:
        try:
            if await probe.ask():
                return
            reasons.clear()
        except (AgentUnavailable, DeadlineExceeded) as error:
            reasons[:] = [error.message]
        if await _happened(probe.event, pause):
            pause = FIRST_PAUSE
        else:
            pause = min(pause * 1.5, probe.slowest)


async def _happened(event: Callable[[], Awaitable[None]] | None, pause: float) -> bool:
    """Wait for the event, at most `pause` seconds."""
    if event is None:
        await asyncio.sleep(pause)
        return False
    try:
        async with asyncio.timeout(pause):
            await event()
            return True
    except TimeoutError:
        return False


def _left(end: float) -> float:
    return max(0.0, end - time.monotonic())


def _not_ready(
    check: Check, guest: str, deadline: float, passed: list[str], reasons: list[str]
) -> NotReady:
    because = f" ({reasons[0].rstrip('.')})" if reasons else ""
    return NotReady(
        f"Guest {guest!r} was not ready within {deadline:g} seconds: it waits for "
        f"{check.awaited}{because}.",
        hint=check.hint.format(guest=guest),
        check=check.name,
        passed=list(passed),
    )
