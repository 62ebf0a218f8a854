"""The daemon's end of the keeper's protocol (keeper/wire.py): messages and fds over asyncio."""

from __future__ import annotations

import array
import asyncio
import errno
import itertools
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import msgspec

from guesthouse.errors import (
    Conflict,
    DeadlineExceeded,
    GuesthouseError,
    Internal,
    InUse,
    InvalidInput,
    KeeperUnavailable,
    LaunchFailed,
    NoSpace,
    NotFound,
)
from guesthouse.host.keeper.link import connect_unix
from guesthouse.host.keeper.wire import BUFFER

_MAX_FDS = 253
_REQUEST_TIMEOUT = 30.0

Body = dict[str, Any]
Answer = tuple[Body, list[int]]

_ERRORS: Mapping[str, type[GuesthouseError]] = {
    "launch-failed": LaunchFailed,
    "exists": Conflict,
    "unknown-key": NotFound,
    "gone": NotFound,
    "no-serial": NotFound,
    "alive": InUse,
    "storage": NoSpace,
    "bad-request": InvalidInput,
    "internal": Internal,
}
_PROTOCOL_HINT = "It belongs to another release: stop the guests, end that process, start again."


def _plain(value: object) -> object:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in a message")


_encoder = msgspec.json.Encoder(enc_hook=_plain)


class Channel:
    """One connection. `on_event` gets unsolicited messages, `on_closed` is called once."""

    def __init__(
        self,
        connection: socket.socket,
        on_event: Callable[[Body], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = connection
        self._on_event, self._on_closed = on_event, on_closed
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._sending = asyncio.Lock()
        self._room = asyncio.Event()
        self._loop.add_reader(connection, self._receive)

    @classmethod
    def open(
        cls, path: Path, on_event: Callable[[Body], None], on_closed: Callable[[], None]
    ) -> Channel:
        """Connect; on a unix socket that takes no time. :raise OSError: nobody listens there."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            connect_unix(connection, str(path))
        except OSError:
            connection.close()
            raise
        return cls(connection, on_event, on_closed)

    @property
    def is_open(self) -> bool:
        return self._socket.fileno() >= 0

    async def request(
        self, body: Mapping[str, object], fds: Sequence[int] = (), timeout: float = _REQUEST_TIMEOUT
    ) -> Answer:
        """Send a request with `fds` (which stay ours); returns the answer with its fds (ours too).

        :raise KeeperUnavailable: the connection broke, before or after the request was sent.
        :raise DeadlineExceeded: no answer within `timeout` seconds.
        :raise GuesthouseError: what the keeper refused, by the code of its answer.
        """
        number = next(self._ids)
        data = _encode({"id": number, **body})
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting[number] = answer
        try:
            async with asyncio.timeout(timeout):
                await self._send(data, fds)
                reply, received = await answer
        except TimeoutError:
            message = f"The keeper did not answer {body['op']!r} within {timeout:g} seconds."
            raise DeadlineExceeded(message) from None
        except asyncio.CancelledError:
            # It may have been answered in the very moment of being cancelled.
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                _close(answer.result()[1])
            raise
        finally:
            del self._waiting[number]
        if "error" in reply:
            _close(received)
            raise _error(reply["error"])
        return reply, received

    def close(self) -> None:
        if not self.is_open:
            return
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._room.set()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(_gone())
        self._on_closed()

    async def _send(self, data: bytes, fds: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        async with self._sending:
            while True:
                if not self.is_open:
                    raise _gone()
                try:
                    self._socket.sendmsg([data], rights)
                    return
                except BlockingIOError:
                    await self._writable()
                except OSError as error:
                    if error.errno == errno.EMSGSIZE:
                        raise InvalidInput(
                            f"A request of {len(data)} bytes is too long for the keeper.",
                            hint="Shorten the arguments or the environment.",
                        ) from None
                    if error.errno in (errno.EBADF, errno.EINVAL, errno.ETOOMANYREFS):
                        raise InvalidInput(
                            f"These descriptors cannot be passed: {error}."
                        ) from None
                    self.close()
                    raise _gone() from None

    async def _writable(self) -> None:
        self._room.clear()
        self._loop.add_writer(self._socket, self._room.set)
        try:
            await self._room.wait()
        finally:
            if self.is_open:
                self._loop.remove_writer(self._socket)

    def _receive(self) -> None:
        try:
            data, ancillary, _flags, _address = self._socket.recvmsg(
                BUFFER, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        fds = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        if not data:
            _close(fds)
            self.close()
            return
        body = msgspec.json.decode(data, type=dict[str, Any])
        answer = self._waiting.get(body.get("id", 0))
        if answer is not None and not answer.done():
            answer.set_result((body, fds.tolist()))
            return
        # An answer that nobody waits for any more, or an event.
        _close(fds)
        if "event" in body:
            self._on_event(body)


def _encode(body: Mapping[str, object]) -> bytes:
    try:
        return _encoder.encode(body)
    except UnicodeEncodeError as error:
        raise InvalidInput(f"A text of this request is not valid Unicode: {error}.") from None


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _gone() -> KeeperUnavailable:
    return KeeperUnavailable(
        "The connection to the keeper broke.",
        hint="Guests live on; the daemon starts a new keeper, which adopts them.",
    )


def _error(error: Body) -> GuesthouseError:
    code, message = str(error.get("code")), str(error.get("message"))
    kind, hint = _ERRORS.get(code, KeeperUnavailable), ""
    if code in ("protocol", "unknown-op"):
        kind, hint = KeeperUnavailable, _PROTOCOL_HINT
    return kind(f"The keeper: {message}.", hint=hint, keeper_code=code, errno=error.get("errno"))
