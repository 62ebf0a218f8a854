"""The HTTP server: uvicorn on a socket that somebody else bound."""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from litestar import Litestar
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from guesthouse.api.app import answering_cut, answering_head, build_app
from guesthouse.api.decoding import Peer
from guesthouse.api.facade import House

_PEERCRED = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid
_LARGEST_MESSAGE = 1 << 20  # bytes of a WebSocket message: a command with many arguments
_KEEP_ALIVE = 75  # seconds that an idle connection stays open
_PATIENCE = 1.0  # seconds


def _peer(transport: asyncio.BaseTransport) -> Peer:
    connection: socket.socket = transport.get_extra_info("socket")
    uid = None
    if connection.family == socket.AF_UNIX:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
        _, uid, _ = _PEERCRED.unpack(raw)
    return Peer(uid, asyncio.Event())


class _HangUp:
    """Notices that the client hung up while nobody reads from its connection.

    asyncio sees that only when it reads, and reading is paused while a guest takes no more input.
    What the client sent before is given `_PATIENCE` to be read.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._epoll = select.epoll()
        # No event is asked for: EPOLLHUP and EPOLLERR always come.
        self._epoll.register(transport.get_extra_info("socket").fileno(), 0)
        self._loop.add_reader(self._epoll.fileno(), self._hung_up)

    def _hung_up(self) -> None:
        self._unwatch()
        self._timer = self._loop.call_later(_PATIENCE, self._transport.abort)

    def close(self) -> None:
        self._unwatch()
        if self._timer is not None:
            self._timer.cancel()

    def _unwatch(self) -> None:
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()


class _Http(H11Protocol):
    """Tells the application who asks."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        # Copied into the scope of each request, and handed to `_WebSocket` on an upgrade.
        self.peer = _peer(transport)
        self.app_state = {**self.app_state, "peer": self.peer}

    def connection_lost(self, exc: Exception | None) -> None:
        self.peer.gone.set()
        super().connection_lost(exc)


class _WebSocket(WebSocketsSansIOProtocol):
    """Notices hang-ups, and lets a conversation say why it ends when the server stops."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.hang_up = _HangUp(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.hang_up.close()
        peer: Peer = self.app_state["peer"]
        peer.gone.set()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        # A conversation under way hears of the stop by itself, tells its client and closes.
        if not self.handshake_complete or self.close_sent:
            super().shutdown()


class _Server(uvicorn.Server):
    """Sleeps until it is told to end, where uvicorn would wake ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self.ending = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        await self.ending.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the daemon's


class ApiServer:
    """Serves the API of one house on one socket."""

    def __init__(self, house: House, listener: socket.socket, *, grace: float = 5.0) -> None:
        """:param listener: bound and listening, or bound only; closed by `stop`.

        :param grace: seconds that running requests have to end once the server stops.
        """
        self._stopping = asyncio.Event()
        self.app: Litestar = build_app(house, self._stopping)
        self._listener = listener
        self._server = _Server(_config(self.app, grace))
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Answers from now on. :raise OSError: the socket cannot be listened on."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        listening = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait({self._serving, listening}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if self._serving.done():
            self._serving.result()

    async def stop(self) -> None:
        """End streams and waits, let running requests finish, and close every connection."""
        if self._serving is None:
            return
        self._stopping.set()
        self._server.ending.set()
        await self._serving
        self._serving = None


def _config(app: Litestar, grace: float) -> uvicorn.Config:
    # Its INFO lines are an access log of the WebSockets.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return uvicorn.Config(
        answering_cut(answering_head(app)),
        http=_Http,
        ws=_WebSocket,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        date_header=False,
        ws_max_size=_LARGEST_MESSAGE,
        # A client that takes no output for a while is slow, not dead; unix sockets tell death.
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(grace)),
    )
