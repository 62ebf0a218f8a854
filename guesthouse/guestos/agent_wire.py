"""The wire of the QEMU guest agent: one connection, one command at a time, an untrusted peer.

Facts: qemu/docs/interop/qemu-ga-ref (guest-sync-delimited), qga/main.c. The channel keeps no
borders between connections: bytes of an earlier one may come first. So every connection begins
with 0xFF (the agent drops a half-read command) and guest-sync-delimited, whose answer carries 0xFF
in front and the random id behind; everything before it is stale.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import msgspec

from guesthouse.errors import AgentUnavailable, AgentUnsupported, EngineError

ANSWER_LIMIT = 4 << 20
"""Bytes of one answer unless a command is known to have longer ones."""

_SENTINEL = b"\xff"
_MAX_ID = (1 << 53) - 1
_UNSUPPORTED = "this feature or command is not currently supported"
"""QERR_UNSUPPORTED: the command is there, but not what it needs in the guest (GenericError)."""

_SKIP_LIMIT = 64 << 20
"""Bytes of stale answers that are skipped at most: the longest that an agent could still owe."""


class AgentWire:
    """One open connection. Any error leaves it unusable: close it and open another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._buffer = bytearray()

    @classmethod
    async def open(cls, path: Path) -> AgentWire:
        """:raise AgentUnavailable: there is no such socket: the guest does not run."""
        try:
            return cls(*await asyncio.open_unix_connection(path))
        except OSError as error:
            raise AgentUnavailable(
                f"The guest's agent port is not there: {error.strerror}.",
                hint="Is the guest running? See: guest info NAME",
            ) from error

    async def synchronise(self) -> None:
        """Skip what an earlier connection left.

        :raise AgentUnavailable: the connection broke, or the peer is no agent.
        """
        token = random.randint(1, _MAX_ID)  # noqa: S311  (tells answers apart; guards nothing)
        await self._send("guest-sync-delimited", {"id": token}, prefix=_SENTINEL)
        skipped = 0
        while True:
            skipped += await self._skip_to_sentinel(_SKIP_LIMIT - skipped)
            # A sentinel of an earlier sync may be followed by one of ours, in garbage even by none.
            line = await self._line(ANSWER_LIMIT)
            try:
                answer = msgspec.json.decode(line.rpartition(_SENTINEL)[2])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            if isinstance(answer, dict) and answer.get("return") == token:
                return

    async def execute(
        self, command: str, arguments: dict[str, object] | None, limit: int = ANSWER_LIMIT
    ) -> Any:
        """Send a command and answer what it returns.

        :raise AgentUnsupported: this agent does not know it, or has it switched off.
        :raise EngineError: it was refused. :raise AgentUnavailable: no sensible answer came.
        """
        await self._send(command, arguments)
        line = await self._line(limit)
        try:
            answer = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._nonsense(f"its answer to {command} is not JSON") from error
        if not isinstance(answer, dict):
            raise self._nonsense(f"its answer to {command} is no object")
        if "return" in answer:
            return answer["return"]
        failure = answer.get("error")
        if not isinstance(failure, dict):
            raise self._nonsense(f"its answer to {command} says neither return nor error")
        said = str(failure.get("desc", ""))[:500]
        if failure.get("class") == "CommandNotFound" or said == _UNSUPPORTED:
            raise AgentUnsupported(
                f"The guest's agent does not offer {command}: {said}",
                hint="Another version or setting of qemu-guest-agent in the guest may.",
                command=command,
            )
        raise EngineError(f"The guest's agent refused {command}: {said}", command=command)

    def close(self) -> None:
        self._writer.close()

    async def _send(
        self, command: str, arguments: dict[str, object] | None, prefix: bytes = b""
    ) -> None:
        message: dict[str, object] = {"execute": command}
        if arguments is not None:
            message["arguments"] = arguments
        try:
            self._writer.write(prefix + msgspec.json.encode(message) + b"\n")
            await self._writer.drain()
        except OSError as error:
            raise self._broken() from error

    async def _more(self) -> None:
        try:
            data = await self._reader.read(65536)
        except OSError as error:
            raise self._broken() from error
        if not data:
            raise self._broken()
        self._buffer += data

    async def _skip_to_sentinel(self, limit: int) -> int:
        skipped = 0
        while (at := self._buffer.find(_SENTINEL)) < 0:
            skipped += len(self._buffer)
            if skipped > limit:
                raise self._nonsense("it sends without end")
            self._buffer.clear()
            await self._more()
        del self._buffer[: at + 1]
        return skipped + at

    async def _line(self, limit: int) -> bytes:
        searched = 0
        while (at := self._buffer.find(b"\n", searched)) < 0:
            if len(self._buffer) > limit:
                raise self._nonsense(f"an answer of it is longer than {limit} bytes")
            searched = len(self._buffer)
            await self._more()
        line = bytes(self._buffer[:at])
        del self._buffer[: at + 1]
        if len(line) > limit:
            raise self._nonsense(f"an answer of it is longer than {limit} bytes")
        return line

    def _broken(self) -> AgentUnavailable:
        return AgentUnavailable(
            "The guest's agent port closed.", hint="Is the guest running? See: guest info NAME"
        )

    def _nonsense(self, why: str) -> AgentUnavailable:
        return AgentUnavailable(
            f"What answers on the guest's agent port is no QEMU guest agent: {why}.",
            hint="Look inside: guest console NAME",
        )
