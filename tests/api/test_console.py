"""The serial console and the screen: bytes both ways."""

from __future__ import annotations

import asyncio
import json

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.api.api_house import ApiHouse, guest_document
from tests.api.conftest import Served
from tests.api.documented import Documented

DEADLINE = 60


@pytest.fixture(autouse=True)
async def web(house: ApiHouse) -> None:
    await house.guest("web")
    await house.guest("blind", display=False)
    await house.add(guest_document("off"))


async def test_the_past_comes_first_then_both_ways(served: Served, house: ApiHouse) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(DEADLINE), served.socket("/v1/guests/web/console") as stream:
        assert await stream.recv() == house.past[-4096:]
        guest = house.consoles[0]
        await stream.send(b"root\r")
        assert await loop.sock_recv(guest, 100) == b"root\r"
        await stream.send("also as text\r")
        assert await loop.sock_recv(guest, 100) == b"also as text\r"
        await loop.sock_sendall(guest, b"login: \xff\x00")
        assert await stream.recv() == b"login: \xff\x00"


@pytest.mark.parametrize("replay", [0, 9])
async def test_how_much_of_the_past(served: Served, house: ApiHouse, replay: int) -> None:
    target = f"/v1/guests/web/console?replay={replay}"
    async with asyncio.timeout(DEADLINE), served.socket(target) as stream:
        await house.console_opened.wait()
        await asyncio.get_running_loop().sock_sendall(house.consoles[0], b"!")
        heard = b""
        while not heard.endswith(b"!"):
            frame = await stream.recv()
            assert isinstance(frame, bytes)
            heard += frame
        assert heard == (house.past[-replay:] if replay else b"") + b"!"


async def test_the_guest_s_end_closes_the_stream(served: Served, house: ApiHouse) -> None:
    async with asyncio.timeout(DEADLINE), served.socket("/v1/guests/web/console") as stream:
        await stream.recv()
        house.consoles[0].close()
        with pytest.raises(ConnectionClosed) as closed:
            await stream.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1000


async def test_the_client_s_end_closes_the_console(served: Served, house: ApiHouse) -> None:
    async with asyncio.timeout(DEADLINE):
        async with served.socket("/v1/guests/web/console?replay=0") as stream:
            await stream.send(b"x")
            await house.console_opened.wait()
        loop = asyncio.get_running_loop()
        assert await loop.sock_recv(house.consoles[0], 10) == b"x"
        assert await loop.sock_recv(house.consoles[0], 10) == b""


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("/v1/guests/nobody/console", "not-found"),
        ("/v1/guests/off/console", "invalid-state"),
        ("/v1/guests/web/console?replay=-1", "invalid-input"),
        ("/v1/guests/web/console?past=1", "unknown-field"),
        ("/v1/guests/off/vnc", "invalid-state"),
        ("/v1/guests/blind/vnc", "invalid-input"),
        ("/v1/guests/web/vnc", "not-found"),
    ],
)
async def test_what_cannot_be_opened_is_a_problem(
    served: Served, documented: Documented, target: str, code: str
) -> None:
    async with asyncio.timeout(DEADLINE), served.socket(target) as stream:
        problem = json.loads(await stream.recv())
        documented.schema("ExecProblem", problem)
        assert problem["problem"]["code"] == code
        with pytest.raises(ConnectionClosed):
            await stream.recv()


@pytest.mark.parametrize("offered", [["binary"], None, ["other", "binary"]])
async def test_the_screen_speaks_rfb(
    served: Served, house: ApiHouse, offered: list[str] | None
) -> None:
    await house.serve_screen("web")
    async with (
        asyncio.timeout(DEADLINE),
        served.socket("/v1/guests/web/vnc", subprotocols=offered) as stream,
    ):
        assert stream.subprotocol == ("binary" if offered else None)
        assert await stream.recv() == b"RFB 003.008\n"
        await stream.send(b"RFB 003.008\n")
        assert await asyncio.get_running_loop().sock_recv(house.consoles[0], 100)


async def test_a_slow_viewer_holds_the_screen_back(served: Served, house: ApiHouse) -> None:
    await house.serve_screen("web")
    async with asyncio.timeout(DEADLINE), served.socket("/v1/guests/web/vnc") as stream:
        await stream.recv()
        sent = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                while True:
                    await asyncio.get_running_loop().sock_sendall(house.consoles[0], bytes(1 << 16))
                    sent += 1 << 16
        assert sent < 16 << 20
        stream.transport.abort()


async def test_unknown_streams_are_refused(served: Served) -> None:
    for target in ("/v1/guests/web/audio", "/v1/guests"):
        with pytest.raises(InvalidStatus) as refused:
            async with asyncio.timeout(DEADLINE), served.socket(target):
                pass
        assert refused.value.response.status_code == 403


async def test_the_daemon_s_stop_ends_consoles(served: Served) -> None:
    async with asyncio.timeout(DEADLINE), served.socket("/v1/guests/web/console") as stream:
        await stream.recv()
        stopping = asyncio.ensure_future(served.server.stop())
        problem = json.loads(await stream.recv())["problem"]
        assert problem["code"] == "unavailable"
        await stopping
