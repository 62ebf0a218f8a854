"""Clocks of real guests that stood still, with a control: without our doing they stay behind."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from guesthouse.guestos.agent import Agent
from guesthouse.guestos.clock import NEAR, step_clock
from tests.contract.driver_house import DriverHouse, driver_house

from .conftest import House
from .qemu_guests import SECONDS, ended, micro_guest, up

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]

STILL = 6.0
"""Seconds that a guest stands still: far more than a slow answer could explain."""


@pytest.fixture
async def drivers() -> AsyncIterator[DriverHouse]:
    async with driver_house("qemu", Path(tempfile.mkdtemp(prefix="gq-"))) as made:
        yield made


async def test_it_stays_behind_until_it_is_set(drivers: DriverHouse) -> None:
    guest = micro_guest()
    running = await up(drivers, guest)
    agent = Agent(drivers.resources(guest).runtime / "agent.sock")
    async with asyncio.timeout(SECONDS):
        # Where it stands to ours by itself; QEMU's emulated clock drifts a little.
        before = time.time() - await agent.get_time()
        await running.pause()
        await asyncio.sleep(STILL)
        await running.resume()
        after = time.time() - await agent.get_time()
        assert after - before > STILL - 1, "the control: it does not catch up by itself"
        assert await step_clock(agent) > STILL - 2
        assert abs(time.time() - await agent.get_time()) < NEAR + 1
        assert await step_clock(agent) == 0.0
    await agent.close()
    await running.kill()
    await ended(running)


def test_the_time_is_right_after_a_resume(house: House, micro: str) -> None:
    house.run("pause", micro)
    time.sleep(STILL)
    house.run("resume", micro)
    asked = time.time()
    there = int(house.out("exec", micro, "--", "date", "+%s"))
    assert asked - 2 < there < time.time() + 2
    info = house.out("info", micro)
    assert "Clock" not in info, info
    job = next(job for job in house.json("job", "ls") if job["kind"] == "guest.resume")
    shown = house.out("job", "log", job["id"])
    assert "behind, and is set" in shown, shown
