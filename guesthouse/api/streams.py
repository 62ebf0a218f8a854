"""WebSockets: byte streams between a client and a guest, with backpressure from end to end.

Nothing is collected here: each side is read only when the other has taken the piece before. Every
conversation ends when either side does, when the client's connection is lost (which is noticed even
while nobody reads from it), or when the daemon stops.
"""

from __future__ import annotations

import asyncio
import socket as sockets
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from litestar import WebSocket
from litestar.exceptions import WebSocketDisconnect

from guesthouse.api.decoding import Peer, Services, check_origin, peer_of
from guesthouse.api.problems import encode_problem, problem_details, understand
from guesthouse.api.racing import first
from guesthouse.errors import Forbidden, InvalidInput, NotFound, Unavailable
from guesthouse.guestos.ssh_process import RemoteExit, RemoteProcess
from guesthouse.model.document import Noun, decode_strict, encode
from guesthouse.model.reports import ExecControl, ExecExit, ExecRequest, ExecStarted, Exit

FRAME = 1 << 16
"""Largest binary frame that we send, in bytes."""

STDIN = 0

N = TypeVar("N", bound=Noun)


class _Gone(Exception):
    """The client is no longer there: nobody to tell anything."""


class Link:
    """The client's side of a conversation."""

    def __init__(self, socket: WebSocket[Any, Any, Any]) -> None:
        self._socket = socket

    async def receive(self) -> bytes | str:
        """The next frame. :raise _Gone: there will be none."""
        try:
            message = cast("dict[str, Any]", await self._socket.receive())
        except WebSocketDisconnect:
            raise _Gone from None
        if message["type"] != "websocket.receive":
            raise _Gone
        data: bytes | None = message.get("bytes")
        text: str | None = message.get("text")
        return data if data is not None else text or ""

    async def request(self, kind: type[N]) -> N:
        """The first message. :raise InvalidInput: it is not right."""
        frame = await self.receive()
        return decode_strict(frame.encode() if isinstance(frame, str) else frame, kind)

    async def send(self, data: bytes) -> None:
        """A binary frame; waits while the client takes no more. :raise _Gone:"""
        await self._send({"type": "websocket.send", "bytes": data, "text": None})

    async def tell(self, value: Noun) -> None:
        """A text frame. :raise _Gone:"""
        await self._tell(encode(value))

    async def end(self, problem: bytes | None = None) -> None:
        """Close, after saying what went wrong where something did."""
        try:
            if problem is not None:
                await self._tell(b'{"problem":%b}' % problem)
            await self._send({"type": "websocket.close", "code": 1000, "reason": ""})
        except _Gone:
            pass

    async def _tell(self, text: bytes) -> None:
        await self._send({"type": "websocket.send", "bytes": None, "text": text.decode()})

    async def _send(self, message: Any) -> None:
        try:
            await self._socket.send(message)
        except (WebSocketDisconnect, OSError):
            raise _Gone from None


async def converse(
    socket: WebSocket[Any, Any, Any],
    talk: Callable[[Link], Awaitable[None]],
    *,
    subprotocol: str | None = None,
) -> None:
    """Accept the client and run `talk`; what it raises is told to the client.

    :param subprotocol: accepted when the client offers it.
    """
    services: Services = socket.app.state.services
    try:
        check_origin(socket.scope)
    except Forbidden:
        # Before it is accepted, this answers the handshake with 403.
        await socket.close()
        return
    offered = socket.scope["subprotocols"]
    await socket.accept(subprotocols=subprotocol if subprotocol in offered else None)
    link = Link(socket)
    try:
        await first(_run(talk, link), _lost(peer_of(socket.scope)), _stopped(services))
    except _Gone:
        return
    except Exception as error:
        path = socket.scope["path"]
        problem = problem_details(understand(error, where=path), instance=path)
        await link.end(encode_problem(problem))
    else:
        await link.end()


async def _run(talk: Callable[[Link], Awaitable[None]], link: Link) -> None:
    await talk(link)


async def _lost(peer: Peer) -> None:
    await peer.gone.wait()
    raise _Gone


async def _stopped(services: Services) -> None:
    await services.stopping.wait()
    raise Unavailable(
        "The daemon stops; this stream ends with it.", hint="The guest lives on: connect again."
    )


async def join_socket(link: Link, stream: sockets.socket) -> None:
    """Join the client to a non-blocking stream socket until either ends; closes the socket."""
    loop = asyncio.get_running_loop()

    async def outward() -> None:
        while data := await loop.sock_recv(stream, FRAME):
            await link.send(data)

    async def inward() -> None:
        while True:
            frame = await link.receive()
            await loop.sock_sendall(stream, frame.encode() if isinstance(frame, str) else frame)

    try:
        await first(outward(), inward())
    except (BrokenPipeError, ConnectionResetError):
        pass  # the guest's side ended while we wrote to it: an end like any other
    finally:
        stream.close()


async def join_process(link: Link, process: RemoteProcess, request: ExecRequest) -> None:
    """Join the client to a command until it ends; closes the process.

    :raise DeadlineExceeded: it took longer than `request.timeout`.
    :raise AgentUnavailable: the guest was lost meanwhile.
    :raise InvalidInput: the client sent what is no frame of this protocol.
    """
    try:
        await link.tell(ExecStarted())
        if not request.stdin:
            await process.write_eof()
        ended = await first(_outcome(link, process, request.timeout), _listen(link, process))
        await link.tell(ExecExit(exit=Exit(code=ended.code, signal=ended.signal)))
    finally:
        await process.close()


async def _outcome(link: Link, process: RemoteProcess, timeout: float | None) -> RemoteExit:
    """The command's end, once all of its output has been passed on."""
    speaking = asyncio.ensure_future(_speak(link, process))
    ending = asyncio.ensure_future(process.wait(timeout))
    try:
        await asyncio.wait({speaking, ending}, return_when=asyncio.FIRST_EXCEPTION)
        for task in (ending, speaking):
            if task.done():
                task.result()
        return ending.result()
    finally:
        speaking.cancel()
        ending.cancel()
        await asyncio.gather(speaking, ending, return_exceptions=True)


async def _speak(link: Link, process: RemoteProcess) -> None:
    while (piece := await process.read()) is not None:
        mark = bytes([piece.stream])
        for start in range(0, len(piece.data), FRAME - 1):
            await link.send(mark + piece.data[start : start + FRAME - 1])


async def _listen(link: Link, process: RemoteProcess) -> RemoteExit:
    """Pass the client's frames on until it goes; never returns."""
    while True:
        frame = await link.receive()
        if isinstance(frame, str):
            await _control(process, decode_strict(frame.encode(), ExecControl))
        elif not frame or frame[0] != STDIN:
            raise InvalidInput(
                "A binary frame names no channel that a client may write.",
                hint="Its first byte is 0, for the command's input.",
            )
        else:
            await process.write(frame[1:])


async def _control(process: RemoteProcess, control: ExecControl) -> None:
    if control.resize is not None:
        process.resize(*control.resize)
    if control.signal is not None:
        try:
            await process.signal(control.signal)
        except NotFound:
            pass  # it ended just now; its exit is on the way
    if control.eof:
        await process.write_eof()
