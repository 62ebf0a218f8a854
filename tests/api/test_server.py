"""The server itself: connections, who is at their other end, many at once, an orderly end."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import stat
import subprocess

import httpx
import pytest

from guesthouse.api.server import ApiServer
from tests.api.api_house import ApiHouse, guest_document
from tests.api.conftest import Served

DEADLINE = 60

ASK = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b"POST /v1/storage/collect HTTP/1.1\\r\\nHost: house\\r\\nConnection: close\\r\\n\\r\\n")
while s.recv(65536):
    pass
"""


async def test_the_requester_is_who_the_kernel_says(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    job = (await api.post("/v1/storage/collect")).json()
    assert job["requester"] == f"uid:{os.getuid()}"


@pytest.mark.root
async def test_another_user_is_told_apart(
    api: httpx.AsyncClient, served: Served, house: ApiHouse
) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    served.path.parent.chmod(0o711)
    served.path.chmod(0o666)
    ask = ["/usr/bin/python3", "-I", "-c", ASK, served.path]
    await asyncio.to_thread(subprocess.run, ask, user=nobody, cwd="/", check=True)
    jobs = (await api.get("/v1/jobs")).json()
    assert [job["requester"] for job in jobs] == [f"uid:{nobody}"]


async def test_who_comes_by_another_way_is_unknown(house: ApiHouse) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    server = ApiServer(house, listener)
    await server.start()
    port = listener.getsockname()[1]
    async with httpx.AsyncClient() as client:
        job = (await client.post(f"http://127.0.0.1:{port}/v1/storage/collect")).json()
    assert job["requester"] == "unknown"
    await server.stop()


async def test_the_socket_s_mode_is_left_as_it_was_bound(served: Served) -> None:
    mode = stat.S_IMODE(served.path.stat().st_mode)
    served.path.chmod(0o600)
    async with served.socket("/v1/guests/nobody/exec"):
        assert stat.S_IMODE(served.path.stat().st_mode) == 0o600
    assert mode == 0o777 & ~_umask()


def _umask() -> int:
    before = os.umask(0o022)
    os.umask(before)
    return before


async def test_many_requests_at_once(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.add(*(guest_document(f"g{number}") for number in range(20)))
    answers = await asyncio.gather(
        *(api.get(f"/v1/guests/g{number % 20}") for number in range(200))
    )
    assert [answer.json()["name"] for answer in answers] == [f"g{n % 20}" for n in range(200)]


async def test_requests_one_after_the_other_on_one_connection(served: Served) -> None:
    reader, writer = await asyncio.open_unix_connection(str(served.path))
    one = b"GET /v1/jobs HTTP/1.1\r\nHost: house\r\n\r\n"
    last = b"GET /v1/jobs HTTP/1.1\r\nHost: house\r\nConnection: close\r\n\r\n"
    writer.write(one * 3 + last)
    async with asyncio.timeout(DEADLINE):
        heard = await reader.read()
    assert heard.count(b"HTTP/1.1 200 ") == 4
    writer.close()


async def test_a_stopped_server_answers_nobody_and_closes_idle_connections(
    served: Served,
) -> None:
    reader, writer = await asyncio.open_unix_connection(str(served.path))
    writer.write(b"GET /v1/jobs HTTP/1.1\r\nHost: house\r\n\r\n")
    await reader.readuntil(b"[]")
    async with asyncio.timeout(DEADLINE):
        await served.server.stop()
        assert await reader.read() == b""
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_unix_connection(str(served.path))
    await served.server.stop()  # again is fine


async def test_a_running_request_is_answered_before_the_end(
    api: httpx.AsyncClient, served: Served, house: ApiHouse
) -> None:
    asked, release = asyncio.Event(), asyncio.Event()

    async def slow():  # type: ignore[no-untyped-def]  # a stand-in
        asked.set()
        await release.wait()
        return house.facts

    house.reprobe = slow
    async with asyncio.timeout(DEADLINE):
        answer = asyncio.ensure_future(api.post("/v1/host/probe"))
        await asked.wait()
        stopping = asyncio.ensure_future(served.server.stop())
        await asyncio.sleep(0.2)
        assert not stopping.done()
        release.set()
        assert (await answer).status_code == 200
        await stopping


async def test_one_that_hangs_does_not_keep_the_server(
    served: Served, house: ApiHouse, api: httpx.AsyncClient
) -> None:
    async def hanging():  # type: ignore[no-untyped-def]  # a stand-in
        await asyncio.sleep(1000)

    house.reprobe = hanging
    asking = asyncio.ensure_future(api.post("/v1/host/probe"))
    await asyncio.sleep(0.1)
    async with asyncio.timeout(DEADLINE):
        await served.server.stop()
        answer = await asking
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


async def test_an_idle_server_does_nothing(served: Served) -> None:
    await asyncio.sleep(1)  # what the start left behind
    loop = asyncio.get_running_loop()
    turns = 0
    select = loop._selector.select  # type: ignore[attr-defined]  # counts the loop's wake-ups

    def counting(timeout=None):  # type: ignore[no-untyped-def]  # stands for the selector's method
        nonlocal turns
        turns += 1
        return select(timeout)

    loop._selector.select = counting  # type: ignore[attr-defined]  # asyncio has no name for it
    await asyncio.sleep(2)
    loop._selector.select = select  # type: ignore[attr-defined]  # asyncio has no name for it
    assert turns < 10


async def test_connections_leave_nothing_behind(
    api: httpx.AsyncClient, served: Served, house: ApiHouse
) -> None:
    async def once() -> None:
        async with served.socket("/v1/guests/nobody/console") as stream:
            await stream.recv()
        reader, writer = await asyncio.open_unix_connection(str(served.path))
        writer.write(b"GET /v1/jobs HTTP/1.1\r\nHost: house\r\nConnection: close\r\n\r\n")
        await reader.read()
        writer.close()

    def held() -> int:
        return len(os.listdir("/proc/self/fd"))

    for _ in range(3):
        await once()
    await asyncio.sleep(0.5)
    before = held()
    for _ in range(30):
        await once()
    async with asyncio.timeout(DEADLINE):
        for _ in iter(lambda: held() <= before, True):
            await asyncio.sleep(0.05)
