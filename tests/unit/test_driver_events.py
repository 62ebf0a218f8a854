"""Events reach every listener, in order, and a slow one costs a bounded amount."""

from __future__ import annotations

import asyncio
import gc

from guesthouse.drivers.base import DriverEvent
from guesthouse.drivers.events import Fanout, Listener


async def collect(listener: Listener) -> list[DriverEvent]:
    return [event async for event in listener]


async def test_listeners_hear_from_their_call_on() -> None:
    fan = Fanout()
    first = fan.listen()
    fan.send(DriverEvent("one"))
    second = fan.listen()
    fan.send(DriverEvent("two"))
    fan.send(DriverEvent("exit"))
    assert [e.kind for e in await collect(first)] == ["one", "two", "exit"]
    assert [e.kind for e in await collect(second)] == ["two", "exit"]


async def test_after_the_end_only_the_end_is_told() -> None:
    fan = Fanout()
    fan.send(DriverEvent("exit", {"reason": "killed"}))
    fan.send(DriverEvent("late"))
    heard = await collect(fan.listen())
    assert heard == [DriverEvent("exit", {"reason": "killed"})]


async def test_a_waiting_listener_is_woken() -> None:
    fan = Fanout()
    waiting = asyncio.create_task(anext(fan.listen()))
    await asyncio.sleep(0)
    fan.send(DriverEvent("one"))
    assert (await asyncio.wait_for(waiting, 10)).kind == "one"


async def test_a_slow_listener_loses_the_oldest_and_is_told() -> None:
    fan = Fanout(capacity=3)
    slow = fan.listen()
    for number in range(10):
        fan.send(DriverEvent(str(number), {"n": number}))
    fan.send(DriverEvent("exit"))
    heard = await collect(slow)
    assert [e.kind for e in heard] == ["8", "9", "exit"]
    assert heard[0].detail == {"n": 8, "dropped": 8}
    assert "dropped" not in heard[1].detail


async def test_detached_listeners_end() -> None:
    fan = Fanout()
    listener = fan.listen()
    fan.send(DriverEvent("one"))
    fan.detach()
    assert [e.kind for e in await collect(listener)] == ["one"]


async def test_a_dropped_listener_holds_nothing() -> None:
    fan = Fanout()
    listener = fan.listen()
    closed = fan.listen()
    closed.close()
    fan.send(DriverEvent("one"))
    assert await collect(closed) == []
    del listener
    gc.collect()
    assert not list(fan._listeners)
