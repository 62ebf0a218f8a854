"""The protocol itself, spoken by hand: versions, rubbish, clients that do not listen."""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from guesthouse.errors import InvalidInput, KeeperUnavailable
from guesthouse.host.keeper_channel import Channel
from guesthouse.host.keeper_client import KeeperClient

from .keeper_house import DEADLINE, House, keeper_house, until


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with keeper_house(tmp_path) as made:
        yield made


class Raw:
    """A client without manners. The keeper is another process, so blocking here is no harm."""

    def __init__(self, house: House) -> None:
        self.end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.end.settimeout(DEADLINE)
        self.end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
        self.end.connect(str(house.socket))

    def ask(self, body: object, fds: tuple[int, ...] = ()) -> dict[str, Any]:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.end.sendmsg([data], rights)
        return json.loads(self.end.recv(1 << 20))

    def refusal(self, body: object, fds: tuple[int, ...] = ()) -> str:
        return self.ask(body, fds)["error"]["code"]

    def hello(self) -> Raw:
        assert self.ask({"id": 1, "op": "hello", "protocol": 1})["protocol"] == 1
        return self


async def test_hello_says_who_it_is(house: House) -> None:
    answer = Raw(house).ask({"id": "any", "op": "hello", "protocol": 1})
    assert answer["id"] == "any"
    assert answer["pid"] == house.client.pid
    assert answer["started"] == house.client.started


async def test_a_newer_protocol_is_refused_and_an_older_may_follow(house: House) -> None:
    raw = Raw(house)
    answer = raw.ask({"id": 1, "op": "hello", "protocol": 2})
    assert answer["error"]["code"] == "protocol"
    assert "speaks protocol 1" in answer["error"]["message"]
    for wrong in (0, -1, "1", None, True, 1.0):
        assert raw.refusal({"id": 1, "op": "hello", "protocol": wrong}) == "protocol", wrong
    raw.hello()


async def test_nothing_before_hello(house: House) -> None:
    assert Raw(house).refusal({"id": 1, "op": "list"}) == "protocol"


async def test_what_is_not_understood_is_answered(house: House) -> None:
    raw = Raw(house).hello()
    assert raw.refusal({"id": 2, "op": "dance"}) == "unknown-op"
    assert raw.refusal({"id": 2, "op": ["list"]}) == "unknown-op"
    assert raw.refusal({"id": 2}) == "unknown-op"
    for rubbish in (b"{", b"\xff", b"[]", b"7", b"null", b"[" * 200_000):
        assert raw.refusal(rubbish) == "bad-request"
    assert raw.refusal({"id": 3, "op": "list", "after": 7}) == "bad-request"
    assert raw.ask({"id": 4, "op": "list"}) == {"id": 4, "processes": [], "next": None}


async def test_a_message_too_long_is_refused(house: House) -> None:
    raw = Raw(house).hello()
    raw.end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
    body = json.dumps({"id": 2, "op": "list", "x": "y" * ((1 << 20) + 10)}).encode()
    try:
        code = raw.refusal(body)
    except OSError:
        return  # The kernel would not carry it: refused even earlier.
    assert code == "bad-request"


async def test_descriptors_nobody_asked_for_are_closed(house: House) -> None:
    raw = Raw(house).hello()
    before = house.fd_count()
    for _ in range(20):
        raw.ask({"id": 1, "op": "list"}, (0, 1, 2))
        raw.refusal({"id": 1, "op": "dance"}, (0, 1, 2))
        raw.refusal(b"{", (0, 1, 2))
        raw.refusal({"id": 1, "op": "put_fd", "name": "two"}, (0, 1))
    assert raw.refusal({"id": 1, "op": "put_fd", "name": "none"}) == "bad-request"
    assert raw.refusal({"id": 1, "op": "list", "after": 1}, tuple([0] * 253)) == "bad-request"
    await until(lambda: house.fd_count() == before)


async def test_a_client_that_does_not_listen_is_dropped(house: House) -> None:
    before = house.fd_count()
    deaf = Raw(house).hello()
    # Never reads an answer again.
    deaf.end.setblocking(False)
    sent = 0
    request = json.dumps({"id": "x" * 1000, "op": "list"}).encode()
    for _ in range(20_000):
        try:
            deaf.end.send(request)
            sent += 1
        except BlockingIOError:
            await asyncio.sleep(0.001)
        except OSError:
            break
    else:
        pytest.fail(f"still connected after {sent} requests")
    assert (await house.client.processes()) == []
    await until(lambda: house.fd_count() == before)
    deaf.end.close()


async def test_clients_come_and_go(house: House) -> None:
    before = house.fd_count()
    for number in range(50):
        raw = Raw(house)
        if number % 2:
            raw.hello()
            raw.end.send(json.dumps({"id": 1, "op": "get_fd", "name": "x"}).encode())
        raw.end.close()
    assert (await house.client.processes()) == []
    await until(lambda: house.fd_count() == before)


async def test_cancelled_requests_leave_no_descriptor_behind(house: House) -> None:
    await house.client.put_fd("null", 0)
    before = len(os.listdir("/proc/self/fd"))
    for turns in range(30):
        task = asyncio.create_task(house.client.get_fd("null"))
        for _ in range(turns % 6):
            await asyncio.sleep(0)
        task.cancel()
        try:
            os.close(await task)
        except asyncio.CancelledError:
            pass
    # An answer to a later request comes after all those to the cancelled ones.
    await house.client.fds()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_requests_under_way_fail_when_the_keeper_dies(house: House) -> None:
    tasks = [asyncio.create_task(house.client.fds()) for _ in range(5)]
    await asyncio.sleep(0)
    os.kill(house.client.pid, 19)  # SIGSTOP, so that none is answered
    more = [asyncio.create_task(house.client.fds()) for _ in range(5)]
    await asyncio.sleep(0.05)
    os.kill(house.client.pid, 9)
    results = await asyncio.wait_for(
        asyncio.gather(*tasks, *more, return_exceptions=True), DEADLINE
    )
    assert all(isinstance(result, KeeperUnavailable) for result in results[5:])


async def test_a_keeper_of_another_protocol_is_not_taken_for_dead(tmp_path: Path) -> None:
    def serve() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
            server.bind(str(tmp_path / "keeper.sock"))
            server.listen(1)
            served.set()
            connection, _ = server.accept()
            with connection:
                body = json.loads(connection.recv(1000))
                error = {"code": "protocol", "message": "this keeper speaks protocol 7"}
                connection.send(json.dumps({"id": body["id"], "error": error}).encode())
                connection.recv(1000)

    served = threading.Event()
    server = asyncio.create_task(asyncio.to_thread(serve))
    await asyncio.to_thread(served.wait, DEADLINE)
    with pytest.raises(KeeperUnavailable, match="protocol 7"):
        await KeeperClient.connect(tmp_path / "keeper.sock", state=tmp_path / "state")
    assert not (tmp_path / "state").exists(), "no second keeper was started"
    await server


async def test_descriptors_that_are_not_open_are_refused_here(house: House) -> None:
    channel = house.client._channel
    assert isinstance(channel, Channel)
    with pytest.raises(InvalidInput):
        await channel.request({"op": "put_fd", "name": "bad"}, [9999])
    assert await house.client.fds() == []
