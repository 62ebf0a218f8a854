"""asyncssh's SFTP client on a bare socket, without any ssh around it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncssh.logging
import asyncssh.sftp

from guesthouse.model.share import Share
from guesthouse.shares.serving import FileServer

GUEST = (1234, 1235)


class _Writer:
    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer, self.channel, self._closed = writer, self, asyncio.Event()

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def write_eof(self) -> None:
        self.close()

    def close(self) -> None:
        self._writer.close()
        self._closed.set()

    def is_closing(self) -> bool:
        return self._writer.is_closing()

    async def wait_closed(self) -> None:
        await self._closed.wait()


class _Reader:
    logger = asyncssh.logging.logger

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.readexactly = reader.readexactly

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        # So that it takes OpenSSH's order for SYMLINK, which everybody does.
        return "OpenSSH" if name == "server_version" else default


async def client(connection: socket.socket) -> asyncssh.SFTPClient:
    reader, writer = await asyncio.open_connection(sock=connection)
    loop = asyncio.get_running_loop()
    handler = asyncssh.sftp.SFTPClientHandler(
        loop,
        "strict",
        _Reader(reader),
        _Writer(writer),
        3,  # type: ignore[arg-type]  # ours do what theirs do
    )
    await handler.start()
    made = asyncssh.SFTPClient(handler, "utf-8", "surrogateescape")
    made.task = loop.create_task(handler.recv_packets())  # type: ignore[attr-defined]  # held
    await handler.request_limits()
    return made


def share_of(source: Path, *, read_only: bool = False, uid: int | None = None) -> Share:
    return Share(
        name="s1",
        source=str(source),
        target="/mnt/s",
        read_only=read_only,
        host_uid=os.getuid() if uid is None else uid,
        host_gid=os.getgid() if uid is None else uid,
    )


@contextlib.asynccontextmanager
async def served(
    share: Share, place: Path
) -> AsyncIterator[tuple[asyncssh.SFTPClient, FileServer]]:
    """A client of a server of its own for `share`; both have ended afterwards."""
    ours, theirs = socket.socketpair()
    with theirs:
        server = await FileServer.start(share, theirs.fileno(), guest=GUEST, place=place)
    sftp = await client(ours)
    try:
        yield sftp, server
    finally:
        sftp.exit()
        await server.wait(20)
        await server.stop()
