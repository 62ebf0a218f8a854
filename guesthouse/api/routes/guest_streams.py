"""WebSockets of a guest: commands, the serial console, the screen."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import WebSocket, websocket
from msgspec import Meta

from guesthouse.api.decoding import Services, parse_query, ref_of
from guesthouse.api.described import DescribedSocket
from guesthouse.api.streams import Link, converse, join_process, join_socket
from guesthouse.model.document import Noun
from guesthouse.model.reports import (
    ExecControl,
    ExecExit,
    ExecProblem,
    ExecRequest,
    ExecStarted,
)


class ConsoleQuery(Noun, kw_only=True, frozen=True):
    replay: Annotated[
        int, Meta(ge=0, le=1 << 20, description="How many bytes of the past to send first.")
    ] = 4096


class NoQuery(Noun, kw_only=True, frozen=True):
    """No parameters."""


@websocket(
    "/v1/guests/{ref:str}/exec",
    opt={
        "socket": DescribedSocket(
            query=NoQuery,
            client=(ExecRequest, ExecControl),
            server=(ExecStarted, ExecExit, ExecProblem),
        )
    },
)
async def exec_in_guest(socket: WebSocket[Any, Any, Any]) -> None:
    """Run a command in the guest.

    The client's first message is an `ExecRequest`. Then binary frames carry bytes, the first of
    which is the channel: 0 standard input (from the client), 1 standard output, 2 standard error.
    Text frames are control: `ExecControl` from the client; from the server `ExecStarted`, and
    last `ExecExit` or `ExecProblem`. Frames hold at most 64 KiB. A client that closes ends the
    command. Control frames stay in order with input: they wait while the command takes none.
    """
    services: Services = socket.app.state.services

    async def talk(link: Link) -> None:
        parse_query(socket.scope["query_string"], NoQuery)
        request = await link.request(ExecRequest)
        await join_process(link, await services.house.open_exec(ref_of(socket), request), request)

    await converse(socket, talk)


@websocket(
    "/v1/guests/{ref:str}/console",
    opt={"socket": DescribedSocket(query=ConsoleQuery, server=(ExecProblem,))},
)
async def serial_console(socket: WebSocket[Any, Any, Any]) -> None:
    """The guest's serial console: binary frames both ways are its bytes.

    Several clients at once see the same console. A text frame from the server is an
    `ExecProblem` and the last one.
    """
    services: Services = socket.app.state.services

    async def talk(link: Link) -> None:
        replay = parse_query(socket.scope["query_string"], ConsoleQuery).replay
        await join_socket(link, await services.house.open_console(ref_of(socket), replay))

    await converse(socket, talk)


@websocket(
    "/v1/guests/{ref:str}/vnc",
    opt={"socket": DescribedSocket(query=NoQuery, server=(ExecProblem,))},
)
async def screen(socket: WebSocket[Any, Any, Any]) -> None:
    """The guest's screen: binary frames both ways are RFB (VNC).

    The subprotocol `binary` is accepted when it is offered. A text frame from the server is an
    `ExecProblem` and the last one.
    """
    services: Services = socket.app.state.services

    async def talk(link: Link) -> None:
        parse_query(socket.scope["query_string"], NoQuery)
        await join_socket(link, await services.house.open_vnc(ref_of(socket)))

    await converse(socket, talk, subprotocol="binary")


STREAM_ROUTES = [exec_in_guest, serial_console, screen]
