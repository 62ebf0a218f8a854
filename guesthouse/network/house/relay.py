"""A relay: takes what comes to a port of the host and carries it to another port of it.

For what slirp4netns cannot do: it listens on no IPv6 address, and answers no UDP that comes from
loopback. The other port is one of 127.0.0.1 that it listens on.
It runs with the standard library alone, inherits its listening socket, has no right but to connect,
and ends with the process that it is told of.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

_CHUNK = 256 << 10
_IDLE_SECONDS = 60.0
"""After which a UDP conversation is over, as in libslirp's."""
_MOST_CONVERSATIONS = 1024
_LOCAL = "127.0.0.1"
_SOMEWHERE = ("198.51.100.1", 9)  # TEST-NET-2 (RFC 5737)
_Sender = tuple[Any, ...]


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction; its end is passed on, and the other direction goes on."""
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _tcp(listening: socket.socket, port: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(_LOCAL, port)
            try:
                await asyncio.gather(_carry(reader, far_writer), _carry(far_reader, writer))
            finally:
                far_writer.close()
        writer.close()

    server = await asyncio.start_server(serve, sock=listening)
    await server.serve_forever()


class _Near:
    """The published port. Each sender gets a socket of its own to the other side."""

    def __init__(self, near: socket.socket, port: int) -> None:
        self._socket, self._port = near, port
        self._far: dict[_Sender, _Far] = {}

    def received(self) -> None:
        with suppress(OSError):
            data, sender = self._socket.recvfrom(_CHUNK)
            far = self._far.get(sender)
            if far is None:
                if len(self._far) >= _MOST_CONVERSATIONS:
                    return
                far = self._far[sender] = _Far(self, sender, self._port)
            far.send(data)

    def answer(self, data: bytes, sender: _Sender) -> None:
        with suppress(OSError):
            self._socket.sendto(data, sender)

    def forget(self, sender: _Sender) -> None:
        self._far.pop(sender, None)


def _not_loopback() -> str:
    """An address of this host to which slirp4netns answers. Nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(_SOMEWHERE)
        return str(probe.getsockname()[0])


class _Far:
    def __init__(self, near: _Near, sender: _Sender, port: int) -> None:
        self._near, self._sender = near, sender
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        with suppress(OSError):
            self._socket.bind((_not_loopback(), 0))
        self._socket.connect((_LOCAL, port))
        self._loop.add_reader(self._socket, self._answered)
        self._end = self._loop.call_later(_IDLE_SECONDS, self._over)

    def send(self, data: bytes) -> None:
        self._again()
        with suppress(OSError):
            self._socket.send(data)

    def _answered(self) -> None:
        self._again()
        with suppress(OSError):
            self._near.answer(self._socket.recv(_CHUNK), self._sender)

    def _again(self) -> None:
        self._end.cancel()
        self._end = self._loop.call_later(_IDLE_SECONDS, self._over)

    def _over(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._near.forget(self._sender)


async def _udp(near: socket.socket, port: int) -> None:
    asyncio.get_running_loop().add_reader(near, _Near(near, port).received)
    await asyncio.Event().wait()


async def _relay(kind: str, near: socket.socket, port: int, process: int) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(process, ended.set)
    work = asyncio.ensure_future((_tcp if kind == "tcp" else _udp)(near, port))
    end = asyncio.ensure_future(ended.wait())
    await asyncio.wait({work, end}, return_when=asyncio.FIRST_COMPLETED)


def main(arguments: Sequence[str]) -> int:
    """`arguments`: tcp or udp, descriptor of the socket, the port on 127.0.0.1, the pid of the
    process with which it ends. Returns the exit code.
    """
    kind, number, port, pid = arguments[0], *map(int, arguments[1:4])
    os.chdir("/")
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0
    near = socket.socket(fileno=number)
    near.setblocking(False)
    asyncio.run(_relay(kind, near, port, process))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
