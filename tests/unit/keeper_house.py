"""A keeper of its own for a test, and small programs for it to keep."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from guesthouse.host.keeper_client import (
    ExitRecord,
    KeeperClient,
    MonitorChannel,
    ProcessInfo,
    SerialChannel,
    Spawned,
    SpawnRequest,
)
from guesthouse.host.launcher import FdTable
from guesthouse.host.process import ProcessHandle, is_alive

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
DEADLINE = 60.0


class House:
    """A keeper with its folder; `client` is the test's connection to it."""

    def __init__(self, folder: Path, client: KeeperClient) -> None:
        self.folder, self.client = folder, client
        self.key_number = 0
        self.pids: list[tuple[int, int]] = []

    @property
    def socket(self) -> Path:
        return self.folder / "keeper.sock"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def errors(self) -> Path:
        return self.folder / "stderr"

    async def spawn(
        self,
        *argv: str,
        key: str | None = None,
        fds: FdTable | None = None,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        serial: SerialChannel | None = None,
        monitor: MonitorChannel | None = None,
    ) -> tuple[str, Spawned]:
        self.key_number += 1
        key = key or f"guest.{self.key_number}"
        request = SpawnRequest(
            key=key,
            argv=argv,
            env=env or {"PATH": PATH},
            stderr=self.errors,
            cwd=cwd,
            serial=serial,
            monitor=monitor,
        )
        spawned = await self.client.spawn(request, fds)
        self.pids.append((spawned.pid, spawned.start_ticks))
        return key, spawned

    async def record(self, key: str) -> ExitRecord:
        """The exit record of `key`, once there is one."""
        async with asyncio.timeout(DEADLINE):
            async for record in self.client.exits():
                if record.key == key:
                    return record
        raise AssertionError("the stream of exits ended")

    async def info_when(self, key: str, condition: Callable[[ProcessInfo], object]) -> ProcessInfo:
        """What the keeper says of `key` once `condition` holds; nothing announces it."""
        end = time.monotonic() + DEADLINE
        while not condition(info := await self.client.info(key)):
            assert time.monotonic() < end, f"it did not happen: {info}"
            await asyncio.sleep(0.01)
        return info

    async def run(self, *argv: str, **options: object) -> ExitRecord:
        key, _ = await self.spawn(*argv, **options)  # type: ignore[arg-type]  # options are spawn's own
        return await self.record(key)

    def fd_count(self) -> int:
        return len(list(Path(f"/proc/{self.client.pid}/fd").iterdir()))

    async def kill_keeper(self) -> None:
        with ProcessHandle.open(self.client.pid) as keeper:
            keeper.send_signal(signal.SIGKILL)
            await keeper.wait(DEADLINE)
        await asyncio.wait_for(self.client.closed.wait(), DEADLINE)


@asynccontextmanager
async def keeper_house(folder: Path) -> AsyncIterator[House]:
    client = await KeeperClient.connect(folder / "keeper.sock", state=folder / "state")
    house = House(folder, client)
    try:
        yield house
    finally:
        for pid, ticks in house.pids:
            if is_alive(pid, ticks):
                os.kill(pid, signal.SIGKILL)
        house.client.close()
        if is_alive(house.client.pid):
            os.kill(house.client.pid, signal.SIGKILL)


def listener(path: Path) -> socket.socket:
    """A listening socket, as the daemon binds it to pass it to QEMU."""
    end = socket.socket(socket.AF_UNIX)
    end.bind(str(path))
    end.listen(4)
    return end


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code, *arguments]


async def until(condition: Callable[[], object]) -> None:
    """Wait until something holds; what is waited for here sends no event."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.01)


async def read_exactly(stream: socket.socket, count: int) -> bytes:
    """`count` bytes, or fewer when the stream ends before."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    async with asyncio.timeout(DEADLINE):
        while len(data) < count:
            more = await loop.sock_recv(stream, min(65536, count - len(data)))
            if not more:
                break
            data += more
    return bytes(data)
