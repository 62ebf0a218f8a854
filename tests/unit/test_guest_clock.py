"""A guest's clock is set where it is wrong, by whatever way its agent knows."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from guesthouse.errors import AgentUnavailable, EngineError
from guesthouse.guestos.agent import Agent
from guesthouse.guestos.clock import step_clock

from .fake_agent import FakeAgent, refuses, returns


class Clock:
    """A guest's, `behind` ours by so many seconds."""

    def __init__(self, fake: FakeAgent) -> None:
        self.behind = 0.0
        self.date: list[str] = []
        fake.handlers["guest-get-time"] = lambda _: returns(time.time_ns() - int(self.behind * 1e9))
        fake.handlers["guest-set-time"] = self.set
        fake.handlers["guest-exec"] = self.run
        fake.handlers["guest-exec-status"] = lambda _: returns({"exited": True, "exitcode": 0})

    def set(self, arguments: dict[str, Any]) -> bytes:
        self.behind = time.time() - arguments["time"] / 1e9
        return returns({})

    def run(self, arguments: dict[str, Any]) -> bytes:
        self.date = [arguments["path"], *arguments["arg"]]
        self.behind = time.time() - float(arguments["arg"][-1].removeprefix("@"))
        return returns({"pid": 7})


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    async with FakeAgent(tmp_path / "ga") as made:
        yield made


@pytest.fixture
async def agent(fake: FakeAgent) -> AsyncIterator[Agent]:
    made = Agent(fake.socket)
    yield made
    await made.close()


@pytest.mark.parametrize("behind", [0.0, 0.5, -0.5])
async def test_one_that_is_near_is_left_alone(fake: FakeAgent, agent: Agent, behind: float) -> None:
    Clock(fake).behind = behind
    assert await step_clock(agent) == 0.0
    assert fake.commands == ["guest-sync-delimited", "guest-get-time"]


@pytest.mark.parametrize("behind", [3600.0, -90.0])
async def test_one_that_is_wrong_is_set(fake: FakeAgent, agent: Agent, behind: float) -> None:
    clock = Clock(fake)
    clock.behind = behind
    assert await step_clock(agent) == pytest.approx(behind, abs=5)
    assert abs(clock.behind) < 5
    assert not clock.date


@pytest.mark.parametrize(
    "refusal",
    [
        refuses("CommandDisabled", "The command guest-set-time has been disabled"),
        refuses("Unsupported", "this feature or command is not currently supported"),
        refuses("GenericError", "hwclock failed to set hardware clock to system time"),
    ],
)
async def test_without_a_hardware_clock_date_does_it(
    fake: FakeAgent, agent: Agent, refusal: bytes
) -> None:
    clock = Clock(fake)
    clock.behind = 3600.0
    fake.handlers["guest-set-time"] = lambda _: refusal
    assert await step_clock(agent) == pytest.approx(3600, abs=5)
    assert clock.date[:3] == ["date", "-u", "-s"]
    assert abs(clock.behind) < 5


async def test_an_agent_that_fails_after_it_set_the_time_has_set_it(
    fake: FakeAgent, agent: Agent
) -> None:
    clock = Clock(fake)
    clock.behind = 3600.0

    def half(arguments: dict[str, Any]) -> bytes:
        clock.set(arguments)
        return refuses("GenericError", "hwclock failed to set hardware clock to system time")

    fake.handlers["guest-set-time"] = half
    assert await step_clock(agent) == pytest.approx(3600, abs=5)
    assert not clock.date


async def test_one_that_stays_wrong_is_told_with_what_the_guest_said(
    fake: FakeAgent, agent: Agent
) -> None:
    clock = Clock(fake)
    clock.behind = 3600.0
    fake.handlers["guest-set-time"] = lambda _: refuses("GenericError", "no such clock")
    fake.handlers["guest-exec"] = lambda _: returns({"pid": 7})
    with pytest.raises(EngineError, match=r"Its clock is off by 3600 s: .*no such clock"):
        await step_clock(agent)


@pytest.mark.parametrize("nonsense", ["noon", None, [1], {"time": 5}, 1.5])
async def test_a_time_that_is_none(fake: FakeAgent, agent: Agent, nonsense: object) -> None:
    fake.handlers["guest-get-time"] = lambda _: returns(nonsense)
    with pytest.raises(AgentUnavailable, match="did not tell the time"):
        await step_clock(agent)
