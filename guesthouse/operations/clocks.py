"""A guest's clock after it stood still: set right where its agent lets us, and told where not."""

from __future__ import annotations

import asyncio
import logging

from guesthouse.errors import GuesthouseError
from guesthouse.guestos.clock import step_clock
from guesthouse.guestos.readiness import AGENT
from guesthouse.operations.live import LiveGuest

log = logging.getLogger(__name__)


async def step_guest_clock(name: str, live: LiveGuest, *, timeout: float) -> str:
    """Never fails; answers what was done, or why it was not, as a sentence. Empty: nothing was.

    What is wrong stays with `live.clock`, where `guest info` shows it. A guest whose agent has not
    answered yet reads the time of the host when it boots.
    """
    if AGENT.name not in live.progress.passed:
        return ""
    async with live.clock_turn:
        try:
            async with asyncio.timeout(timeout):
                behind = await step_clock(live.agent)
        except TimeoutError:
            said = f"its agent did not answer within {timeout:g} s"
            return _wrong(name, live, f"not set after it stood still: {said}")
        except GuesthouseError as error:
            return _wrong(name, live, f"not set after it stood still: {error.message}")
        live.clock = ""
    if not behind:
        return ""
    off = f"{abs(behind):.1f} s {'behind' if behind > 0 else 'ahead'}"
    log.info("guest %s: its clock was %s, and is set", name, off)
    return f"its clock was {off}, and is set"


def _wrong(name: str, live: LiveGuest, what: str) -> str:
    live.clock = what
    log.warning("guest %s: its clock is %s", name, what)
    return f"its clock is {what}"
