"""How long the API takes to list guests: `python -m benchmarks.api_list [GUESTS]`.

Claim: under 10 ms of server time for 1,000 guests. Server time is from the request's arrival at the
application to the last byte that it hands to the server; the whole exchange over the socket, with
a client in another process, is told beside it. Every guest has a launch record, as running ones do.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil

from guesthouse.api.server import ApiServer
from guesthouse.model.device import Disk
from guesthouse.model.guest import BootPath, Guest, GuestStatus, LaunchRecord
from guesthouse.model.ids import new_id
from guesthouse.model.states import GuestState
from guesthouse.store.documents import GUESTS
from tests.api.api_house import ApiHouse, guest_document, open_house

ROUNDS = 50
CLIENT = """
import socket, sys, time
times = []
for _ in range(int(sys.argv[2])):
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    began = time.perf_counter()
    s.sendall(b"GET /v1/guests HTTP/1.1\\r\\nHost: house\\r\\nConnection: close\\r\\n\\r\\n")
    while s.recv(1 << 20):
        pass
    times.append(time.perf_counter() - began)
print(*times)
"""


def running_guest(number: int) -> Guest:
    """As large as a real one: a disk, a card, an argv of 120 words."""
    disk = Disk(name="root", volume=new_id(), size=20 << 30, serial="root")
    guest = guest_document(f"guest-{number}", GuestState.RUNNING, disks=(disk,))
    launch = LaunchRecord(
        incarnation=1,
        argv=tuple(f"-device virtio-thing-pci,id=d{n},bus=pcie.{n}" for n in range(120)),
        machine="pc-q35-7.2",
        cpu="max",
        accelerator="tcg",
        engine="7.2.0",
        boot=BootPath.DISK,
        spec=guest.spec,
        pid=4000 + number,
        pid_start=1,
        boot_id="b",
        launched_at=time.time(),
    )
    status = GuestStatus(state=GuestState.RUNNING, since=time.time(), pid=4000 + number)
    return msgspec.structs.replace(guest, launch=launch, status=status)


async def fill(house: ApiHouse, count: int) -> None:
    store = house.rooms.documents.store
    guests = [running_guest(number) for number in range(count)]
    for start in range(0, count, 100):
        await store.commit([GUESTS.put_op(guest) for guest in guests[start : start + 100]])
    await house.view.wait_for(store.revision)


async def server_times(server: ApiServer) -> tuple[list[float], int]:
    """Seconds of each round, and bytes of the answer."""
    times, size = [], 0
    for _ in range(ROUNDS):
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        scope: Any = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "path": "/v1/guests",
            "raw_path": b"/v1/guests",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"house")],
            "state": {},
            "client": None,
            "server": None,
            "scheme": "http",
        }
        began = time.perf_counter()
        await server.app(scope, receive, send)
        times.append(time.perf_counter() - began)
        size = len(sent[1]["body"])
    return times, size


class Measured(NamedTuple):
    """Seconds of each round. :ivar size: bytes of the answer. :ivar memory: MiB of this process."""

    server: list[float]
    exchange: list[float]
    size: int
    memory: int


async def measure(count: int) -> Measured:
    folder = Path(tempfile.mkdtemp(prefix="gh-"))
    try:
        house = await open_house(folder)
        await fill(house, count)
        path = folder / "socket"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        server = ApiServer(house, listener)
        await server.start()
        times, size = await server_times(server)
        client = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-I", "-c", CLIENT, str(path), str(ROUNDS)],
            check=True,
            capture_output=True,
            text=True,
        )
        memory = psutil.Process().memory_info().rss >> 20
        await server.stop()
        await house.close()
    finally:
        shutil.rmtree(folder)
    return Measured(times, [float(word) for word in client.stdout.split()], size, memory)


def told(name: str, times: list[float]) -> None:
    middle, best = statistics.median(times) * 1000, min(times) * 1000
    print(f"{name}: median {middle:.2f} ms, best {best:.2f} ms of {len(times)}")


def main(count: int) -> None:
    measured = asyncio.run(measure(count))
    print(f"{count} guests, {measured.size / 1e6:.2f} MB of JSON")
    told("server time", measured.server)
    told("whole exchange", measured.exchange)
    print(f"memory of this process: {measured.memory} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
