"""Readiness: checks in order, woken by events, ended by a deadline with a reason."""

from __future__ import annotations

import asyncio

import pytest

from guesthouse.errors import AgentUnavailable, NotFound, NotReady
from guesthouse.guestos.agent_answers import Address
from guesthouse.guestos.readiness import (
    AGENT,
    CHECKS,
    KERNEL,
    NETWORK,
    PROCESS,
    SSH,
    Check,
    Probe,
    covers,
    watch,
)


async def yes() -> bool:
    return True


async def never() -> bool:
    return False


class Passed:
    def __init__(self) -> None:
        self.names: list[str] = []

    async def __call__(self, check: Check) -> None:
        self.names.append(check.name)


def test_names_and_hints() -> None:
    assert [check.name for check in CHECKS] == ["process", "kernel", "agent", "network", "ssh"]
    for check in CHECKS:
        assert "web" in check.hint.format(guest="web")


async def test_all_in_order() -> None:
    passed = Passed()
    await watch([Probe(check, yes) for check in CHECKS], passed, 60, guest="web")
    assert passed.names == [check.name for check in CHECKS]


async def test_the_first_that_does_not_come_is_named_with_reason_and_hint() -> None:
    async def no_agent() -> bool:
        raise AgentUnavailable("The guest's agent did not answer.")

    passed = Passed()
    probes = [Probe(PROCESS, yes), Probe(KERNEL, yes), Probe(AGENT, no_agent), Probe(SSH, yes)]
    with pytest.raises(NotReady) as caught:
        await watch(probes, passed, 0.3, guest="web")
    error = caught.value
    assert passed.names == error.detail["passed"] == ["process", "kernel"]
    assert error.detail["check"] == "agent"
    assert "agent did not answer" in error.message and "'web'" in error.message
    assert "guest logs web" in error.hint


async def test_an_event_wakes_at_once() -> None:
    """The pauses alone would take an hour."""
    happened = asyncio.Event()
    asked = 0

    async def ask() -> bool:
        nonlocal asked
        asked += 1
        return happened.is_set()

    async def event() -> None:
        await happened.wait()

    async def later() -> None:
        await asyncio.sleep(0.2)
        happened.set()

    teller = asyncio.create_task(later())
    await watch([Probe(AGENT, ask, event, slowest=3600)], Passed(), 60, guest="web")
    await teller
    assert asked < 10


async def test_without_events_it_asks_again_but_not_busily() -> None:
    asked = 0

    async def third() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3

    await watch([Probe(NETWORK, third)], Passed(), 60, guest="web")
    asked = -1000
    with pytest.raises(NotReady):
        await watch([Probe(NETWORK, third, slowest=0.1)], Passed(), 0.5, guest="web")
    assert -1000 < asked < -980


async def test_a_probe_that_hangs_does_not_outlast_the_deadline() -> None:
    async def hangs() -> bool:
        await asyncio.Event().wait()
        return True

    with pytest.raises(NotReady) as caught:
        await watch([Probe(SSH, hangs)], Passed(), 0.2, guest="web")
    assert caught.value.detail["check"] == "ssh"


async def test_other_errors_end_the_watch() -> None:
    async def gone() -> bool:
        raise NotFound("The guest has ended.")

    with pytest.raises(NotFound):
        await watch([Probe(PROCESS, gone)], Passed(), 60, guest="web")


def test_covers() -> None:
    one, two = "52:67:68:00:00:01", "52:67:68:00:00:0a"
    addresses = [Address(one, "10.0.2.15", 24, False), Address(two, "fe80::1", 64, True)]
    assert covers(addresses, [one])
    assert not covers(addresses, [one, two.upper()])
    assert covers([*addresses, Address(two, "fec0::1", 64, False)], [one, two.upper()])
    assert covers([], [])
