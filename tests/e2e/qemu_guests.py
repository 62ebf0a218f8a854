"""Guests of the micro image under the QEMU driver, without a daemon."""

from __future__ import annotations

import asyncio
import struct
import time
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from guesthouse.drivers.base import (
    DriverEvent,
    Exit,
    Running,
)
from guesthouse.model.guest import BootPath, Guest
from tests.contract.driver_house import (
    MEBIBYTE,
    DriverHouse,
    make_guest,
)

from .micro_image import micro_boot_files

SECONDS = 120.0


def micro_guest(**spec: Any) -> Guest:
    return make_guest(boot=BootPath.KERNEL, **{"memory": 128 * MEBIBYTE, **spec})


async def launch(
    house: DriverHouse, guest: Guest, *, incarnation: int = 1, paused: bool = False
) -> Running:
    files = await micro_boot_files()
    resources = house.resources(guest, boot=BootPath.KERNEL, boot_files=files)
    return await house.driver.launch(guest, resources, incarnation=incarnation, paused=paused)


async def until(events: AsyncIterator[DriverEvent], kind: str) -> DriverEvent:
    seen: list[str] = []
    async with asyncio.timeout(SECONDS):
        async for event in events:
            seen.append(event.kind)
            if event.kind == kind:
                return event
    raise AssertionError(f"the events ended before {kind!r}: {seen}")


async def up(house: DriverHouse, guest: Guest, **named: Any) -> Running:
    """A micro guest whose agent has opened its port."""
    running = await launch(house, guest, paused=True, **named)
    events = running.events()
    await running.resume()
    await until(events, "ssh-open")
    return running


async def ended(running: Running) -> Exit:
    return await asyncio.wait_for(running.wait_exit(), SECONDS)


async def within(condition: Callable[[], object]) -> None:
    """Wait for something that nothing tells of."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def type_in(house: DriverHouse, running: Running, line: str) -> None:
    """Type a line at the guest's serial console, where a root shell waits."""
    assert house.keeper is not None
    client = await house.keeper.client()
    key = next(p.key for p in await client.processes() if p.pid == running.record.pid)
    console = await client.console(key, replay=0)
    with console:
        await asyncio.get_running_loop().sock_sendall(console, line.encode() + b"\n")
        await asyncio.sleep(0.5)


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def lit(png: bytes) -> bool:
    """Some pixel is not black."""
    data, at = b"", 8
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    return any(byte > 4 for byte in zlib.decompress(data))
