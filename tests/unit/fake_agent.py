"""A guest agent for tests, on a port like QEMU's: one client at a time, bytes without borders."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Reply = bytes | None
Handler = Callable[[dict[str, Any]], Awaitable[Reply] | Reply]


class FakeAgent:
    """Answers each command by a handler, or as a good agent would.

    `before_sync` is what comes ahead of the answer to a sync. The parser behaves as the real one:
    0xFF drops what was half read.
    """

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.handlers: dict[str, Handler] = {}
        self.before_sync = b""
        self.piece = 0  # bytes per write; 0 writes all at once
        self.commands: list[str] = []
        self.connections = 0
        self.open = 0
        self._turn = asyncio.Lock()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> FakeAgent:
        self._server = await asyncio.start_unix_server(self._serve, self.socket, limit=1 << 24)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._turn:  # a second client waits in the backlog, unanswered
            self.connections += 1
            self.open += 1
            try:
                while line := await reader.readline():
                    await self._answer(json.loads(line.rpartition(b"\xff")[2]), writer)
            except (ConnectionError, ValueError):
                pass
            finally:
                self.open -= 1
                writer.close()

    async def _answer(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        command = request["execute"]
        self.commands.append(command)
        if command in self.handlers:
            reply = self.handlers[command](request.get("arguments", {}))
            data = await reply if isinstance(reply, Awaitable) else reply
        elif command == "guest-sync-delimited":
            said = {"return": request["arguments"]["id"]}
            data = self.before_sync + b"\xff" + json.dumps(said).encode() + b"\n"
        else:
            data = returns({})
        if data is None:
            return
        step = self.piece or len(data)
        for start in range(0, len(data), step):
            writer.write(data[start : start + step])
            await writer.drain()
            if self.piece:
                await asyncio.sleep(0)


def returns(value: object) -> bytes:
    return json.dumps({"return": value}).encode() + b"\n"


def refuses(kind: str, text: str) -> bytes:
    return json.dumps({"error": {"class": kind, "desc": text}}).encode() + b"\n"
