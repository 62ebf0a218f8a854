"""Commands over a WebSocket: bytes, ends, signals, and backpressure from end to end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from guesthouse.errors import AgentUnavailable
from guesthouse.guestos.ssh_process import HIGH_WATER
from tests.api.api_house import ApiHouse, guest_document
from tests.api.conftest import Served
from tests.api.documented import Documented

DEADLINE = 120
PIECE = 60 << 10


@pytest.fixture(autouse=True)
async def web(house: ApiHouse) -> None:
    await house.guest("web")
    await house.add(guest_document("off"))


@asynccontextmanager
async def command(served: Served, *argv: str, ref: str = "web", **rest: Any) -> AsyncIterator[Any]:
    """The stream after its first message."""
    async with asyncio.timeout(DEADLINE):
        async with served.socket(f"/v1/guests/{ref}/exec") as stream:
            await stream.send(json.dumps({"argv": argv, **rest}))
            yield stream


async def outcome(stream: ClientConnection) -> tuple[dict[int, bytes], list[Any]]:
    """(bytes by channel, text messages decoded) until the server closes."""
    output: dict[int, bytes] = {1: b"", 2: b""}
    texts = []
    try:
        while True:
            frame = await stream.recv()
            if isinstance(frame, bytes):
                assert len(frame) <= 1 << 16
                output[frame[0]] += frame[1:]
            else:
                texts.append(json.loads(frame))
    except ConnectionClosed as closed:
        assert closed.rcvd is not None, "the connection was cut off"
        assert closed.rcvd.code == 1000
    return output, texts


async def test_output_and_exit_code(served: Served, documented: Documented) -> None:
    async with command(served, "sh", "-c", "echo out; echo err >&2; exit 7") as stream:
        output, texts = await outcome(stream)
    assert output == {1: b"out\n", 2: b"err\n"}
    assert texts == [{"started": True}, {"exit": {"code": 7, "signal": None}}]
    documented.schema("ExecStarted", texts[0])
    documented.schema("ExecExit", texts[1])


async def test_input_until_its_end(served: Served) -> None:
    async with command(served, "cat") as stream:
        await stream.send(b"\x00hello ")
        await stream.send(b"\x00")
        await stream.send(b"\x00world")
        await stream.send(json.dumps({"eof": True}))
        output, texts = await outcome(stream)
    assert output[1] == b"hello world"
    assert texts[-1] == {"exit": {"code": 0, "signal": None}}


async def test_commands_go_to_the_guest_by_ssh(served: Served, house: ApiHouse) -> None:
    house.by_ssh = True  # the fake guest sends back what it gets
    async with command(served, "anything", user="guest") as stream:
        await stream.send(b"\x00" + b"hello" * 1000)
        await stream.send('{"eof":true}')
        output, texts = await outcome(stream)
    assert output[1] == b"hello" * 1000
    assert texts == [{"started": True}, {"exit": {"code": 0, "signal": None}}]


async def test_without_input_it_ends_at_once(served: Served) -> None:
    async with command(served, "cat", stdin=False) as stream:
        assert (await outcome(stream))[1][-1] == {"exit": {"code": 0, "signal": None}}


async def test_environment_and_folder(served: Served) -> None:
    argv = ("sh", "-c", "echo $GREETING; pwd")
    async with command(served, *argv, env={"GREETING": "hi"}, cwd="/usr") as stream:
        assert (await outcome(stream))[0][1] == b"hi\n/usr\n"


async def test_signals_and_sizes(served: Served, house: ApiHouse) -> None:
    script = "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.05; done"
    async with command(served, "sh", "-c", script) as stream:
        frames = [await stream.recv(), await stream.recv()]
        assert frames[1] == b"\x01ready\n"
        await stream.send(json.dumps({"resize": [132, 43]}))
        await stream.send(json.dumps({"signal": "INT"}))
        output, texts = await outcome(stream)
    assert output[1] == b"caught\n"
    assert texts == [{"exit": {"code": 3, "signal": None}}]
    assert house.commands[0].sizes == [(132, 43)]


async def test_death_by_a_signal(served: Served) -> None:
    async with command(served, "sh", "-c", "kill -9 $$") as stream:
        assert (await outcome(stream))[1][-1] == {"exit": {"code": None, "signal": "KILL"}}


async def test_a_timeout_kills_and_says_so(
    served: Served, house: ApiHouse, documented: Documented
) -> None:
    async with command(served, "sleep", "1000", timeout=0.2) as stream:
        _, texts = await outcome(stream)
    problem = texts[-1]["problem"]
    documented.schema("ExecProblem", texts[-1])
    assert (problem["code"], problem["status"]) == ("deadline-exceeded", 504)
    await house.commands[0].gone.wait()


async def test_a_guest_lost_meanwhile(served: Served, house: ApiHouse) -> None:
    async with command(served, "sleep", "1000") as stream:
        assert json.loads(await stream.recv()) == {"started": True}
        house.commands[0].process.take_end(AgentUnavailable("The guest is gone."))
        _, texts = await outcome(stream)
    assert texts[-1]["problem"]["code"] == "agent-unavailable"


@pytest.mark.parametrize(
    ("ref", "first", "code"),
    [
        ("nobody", {"argv": ["true"]}, "not-found"),
        ("off", {"argv": ["true"]}, "invalid-state"),
        ("web", {"argv": "true"}, "invalid-input"),
        ("web", {"argv": ["true"], "shell": True}, "unknown-field"),
        ("web", {"argv": ["true"], "tty": {"columns": 0}}, "invalid-input"),
        ("web", {"argv": ["true"], "user": "nobody-here"}, "invalid-input"),
        ("web", "no object", "invalid-input"),
    ],
)
async def test_what_cannot_run_is_a_problem(
    served: Served, documented: Documented, ref: str, first: object, code: str
) -> None:
    async with asyncio.timeout(DEADLINE), served.socket(f"/v1/guests/{ref}/exec") as stream:
        await stream.send(json.dumps(first))
        _, texts = await outcome(stream)
    documented.schema("ExecProblem", texts[0])
    assert [text["problem"]["code"] for text in texts] == [code]
    assert texts[0]["problem"]["instance"] == f"/v1/guests/{ref}/exec"


@pytest.mark.parametrize(
    "frame",
    [b"\x01not yours", b"", '{"eof": 1}', '{"stop": true}', '{"resize": [0, 1]}', "nothing"],
)
async def test_a_frame_that_is_none_ends_the_command(
    served: Served, house: ApiHouse, frame: bytes | str
) -> None:
    async with command(served, "sleep", "1000") as stream:
        await stream.recv()
        await stream.send(frame)
        _, texts = await outcome(stream)
        assert texts[-1]["problem"]["status"] == 400
        await house.commands[0].gone.wait()


async def test_parameters_of_the_query_are_refused(served: Served) -> None:
    async with asyncio.timeout(DEADLINE), served.socket("/v1/guests/web/exec?tty=1") as stream:
        assert (await outcome(stream))[1][0]["problem"]["code"] == "unknown-field"


async def test_a_client_that_goes_away_ends_the_command(served: Served, house: ApiHouse) -> None:
    async with command(served, "sleep", "1000") as stream:
        await stream.recv()
    async with asyncio.timeout(DEADLINE):
        await house.commands[0].gone.wait()


async def test_a_client_lost_while_the_command_takes_no_input(
    served: Served, house: ApiHouse
) -> None:
    async with command(served, "sleep", "1000") as stream:
        await stream.recv()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):  # until every buffer on the way is full
                while True:
                    await stream.send(bytes(PIECE))
        assert not house.commands[0].gone.is_set()
        stream.transport.abort()
        async with asyncio.timeout(DEADLINE):
            await house.commands[0].gone.wait()


def _different(value: Callable[[], int]) -> Iterator[int]:
    """Values for as long as they differ from the ones before."""
    last = -1
    while last != (last := value()):
        yield last


async def test_a_client_that_reads_nothing_holds_the_command_back(
    served: Served, house: ApiHouse
) -> None:
    async with command(served, "cat", "/dev/zero") as stream:
        await stream.recv()
        running = house.commands[0]
        for _ in _different(lambda: running.produced):
            await asyncio.sleep(1)  # until nothing moves any more
        assert running.produced < 4 * HIGH_WATER + (8 << 20)
        stream.transport.abort()


async def test_a_client_that_pauses_loses_nothing(served: Served) -> None:
    async with command(served, "sh", "-c", "head -c 20000000 /dev/zero; echo end") as stream:
        await stream.recv()
        await asyncio.sleep(1)
        output, texts = await outcome(stream)
    assert len(output[1]) == 20_000_004
    assert output[1].endswith(b"end\n")
    assert texts[-1] == {"exit": {"code": 0, "signal": None}}


async def _flow(served: Served, size: int) -> int:
    """Send `size` bytes through `cat` and check what comes back; the most memory used, bytes."""
    process = psutil.Process()
    before = process.memory_info().rss
    most = 0
    piece = os.urandom(PIECE)
    count = size // PIECE
    sent = hashlib.blake2b()
    for _ in range(count):
        sent.update(piece)
    got, length = hashlib.blake2b(), 0
    async with command(served, "cat") as stream:

        async def send() -> None:
            for _ in range(count):
                await stream.send(b"\x00" + piece)
            await stream.send('{"eof":true}')

        sending = asyncio.ensure_future(send())
        sampled = 0
        async for frame in stream:
            if isinstance(frame, bytes):
                got.update(memoryview(frame)[1:])
                length += len(frame) - 1
                if length - sampled > 1 << 20:
                    sampled = length
                    most = max(most, process.memory_info().rss)
        await sending
    assert length == count * PIECE
    assert got.digest() == sent.digest()
    return most - before


async def test_much_flows_both_ways_in_little_memory(served: Served) -> None:
    await _flow(served, 8 << 20)  # what is allocated once
    assert await _flow(served, 128 << 20) < 32 << 20


@pytest.mark.full
async def test_a_gibibyte_flows_both_ways_in_little_memory(served: Served) -> None:
    await _flow(served, 8 << 20)
    assert await _flow(served, 1 << 30) < 32 << 20


async def test_many_at_once(served: Served) -> None:
    async def one(number: int) -> None:
        async with command(served, sys.executable, "-c", f"print({number})") as stream:
            output, _ = await outcome(stream)
        assert output[1] == b"%d\n" % number

    await asyncio.gather(*(one(number) for number in range(20)))


async def test_the_daemon_s_stop_ends_commands(served: Served, house: ApiHouse) -> None:
    async with command(served, "sleep", "1000") as stream:
        await stream.recv()
        stopping = asyncio.ensure_future(served.server.stop())
        _, texts = await outcome(stream)
        await stopping
    assert texts[-1]["problem"]["code"] == "unavailable"
    await house.commands[0].gone.wait()


async def test_pages_of_other_sites_get_no_stream(served: Served, house: ApiHouse) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with served.socket("/v1/guests/web/exec", origin="http://evil.example"):
            pass
    assert refused.value.response.status_code == 403
    async with served.socket("/v1/guests/web/exec", origin="http://house") as stream:
        await stream.send('{"argv":["true"]}')
        assert (await outcome(stream))[1][-1] == {"exit": {"code": 0, "signal": None}}
    assert len(house.commands) == 1
