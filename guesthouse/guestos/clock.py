"""A guest's clock: how far it is behind ours, and stepping it there.

A guest that was stopped, and one whose host slept, goes on with the time that it had.
"""

from __future__ import annotations

import time

from guesthouse.errors import AgentUnsupported, EngineError
from guesthouse.guestos.agent import Agent

NEAR = 1.0
"""Seconds by which a clock may differ and is left alone: NTP in the guest does better than we."""


async def step_clock(agent: Agent) -> float:
    """Set the guest's clock to ours, unless it is near. Answers how many seconds it was behind
    (less than 0: ahead), and 0 where it was left alone.

    :raise EngineError: it is still wrong; with what the guest said. Raises as `Agent` does.
    """
    behind = await _behind(agent)
    if not behind:
        return 0.0
    said = "it was set, and is wrong all the same"
    try:
        await agent.set_time()
    except (AgentUnsupported, EngineError) as error:
        # qemu-ga 7.2 wants /sbin/hwclock (qga/commands-posix.c), which Debian 13 and busybox do
        # not have there; and where the guest has no hardware clock it fails after it has set the
        # time. So the clock tells, not the answer.
        said = error.message
        if await _behind(agent):
            done = await agent.exec(("date", "-u", "-s", f"@{round(time.time())}"))
            said = done.stderr.decode(errors="replace").strip()[:200] or said
    if left := await _behind(agent):
        raise EngineError(f"Its clock is off by {abs(left):.0f} s: {said}")
    return behind


async def _behind(agent: Agent) -> float:
    """Seconds; 0 where it is near, as far as can be told from outside."""
    asked = time.time()
    there = await agent.get_time()
    answered = time.time()
    behind = (asked + answered) / 2 - there
    return behind if abs(behind) > NEAR + (answered - asked) / 2 else 0.0
