"""What answers inside a fake guest: its agent, and an ssh in which every command succeeds."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import asyncssh

from guesthouse.drivers.base import AGENT_SOCKET, SSH_SOCKET
from guesthouse.drivers.fake_cards import FakeCards
from guesthouse.drivers.qemu.opening import listen
from guesthouse.model.guest import Guest

# The line by which the house's wrapper says that a command has begun (guestos/ssh_command.py).
_ANNOUNCEMENT = re.compile(r"036(?P<token>[A-Za-z0-9]+) started")
_PID = 100

_ANSWERS: Mapping[str, object] = {
    "guest-ping": {},
    "guest-set-time": {},
    "guest-info": {"version": "7.2.0", "supported_commands": []},
    "guest-get-osinfo": {"id": "fake", "pretty-name": "Fake 1", "version-id": "1"},
    "guest-fsfreeze-status": "thawed",
    "guest-fsfreeze-freeze": 1,
    "guest-fsfreeze-thaw": 1,
}


class FakeGuest:
    """:param end: called with the reason when the guest is told from inside to end.

    :ivar behind: seconds by which its clock is behind the host's.
    """

    def __init__(
        self, guest: Guest, runtime: Path, end: Callable[[str], None], cards: FakeCards
    ) -> None:
        self._guest, self._runtime, self._end = guest, runtime, end
        self._cards = cards
        self.behind = 0.0
        self._agent: asyncio.Server | None = None
        self._ssh: asyncssh.SSHAcceptor | None = None
        self._clients: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._unlink()
        self._agent = await asyncio.start_unix_server(
            self._serve_agent, self._runtime / AGENT_SOCKET
        )
        key = await asyncio.to_thread(asyncssh.generate_private_key, "ssh-ed25519")
        self._ssh = await asyncssh.listen(
            sock=listen(self._runtime / SSH_SOCKET),
            server_factory=_Server,
            server_host_keys=[key],
            process_factory=_obey,
            encoding=None,
        )

    async def close(self) -> None:
        if self._agent is not None:
            self._agent.close()
        for writer in tuple(self._clients):
            writer.close()
        if self._ssh is not None:
            self._ssh.close()
        self._unlink()

    def _unlink(self) -> None:
        for name in (AGENT_SOCKET, SSH_SOCKET):
            (self._runtime / name).unlink(missing_ok=True)

    async def _serve_agent(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._clients.add(writer)
        try:
            while line := await reader.readline():
                request = json.loads(line.lstrip(b"\xff"))
                answer = self._answer(request["execute"], request.get("arguments", {}))
                if answer is None:
                    continue
                start = b"\xff" if request["execute"] == "guest-sync-delimited" else b""
                writer.write(start + json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError, KeyError):
            pass  # a client that is gone, or that speaks nonsense
        finally:
            self._clients.discard(writer)
            writer.close()

    def _answer(self, command: str, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
        if command == "guest-shutdown":
            self._end("guest-reset" if arguments.get("mode") == "reboot" else "guest-shutdown")
            return None  # as the real one: it is gone before it could answer
        if command in {"guest-sync-delimited", "guest-sync"}:
            return {"return": arguments["id"]}
        if command == "guest-set-time":
            self.behind = 0.0
        known = {
            **_ANSWERS,
            "guest-network-get-interfaces": self._cards.interfaces(),
            "guest-get-time": time.time_ns() - int(self.behind * 1e9),
            "guest-get-host-name": {"host-name": self._guest.name},
        }
        if command in known:
            return {"return": known[command]}
        text = f"The command {command} has not been found"
        return {"error": {"class": "CommandNotFound", "desc": text}}


class _Server(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False  # whoever reaches the socket may come in, as at the real port


async def _obey(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Every command begins, sends its input back, and succeeds."""
    found = _ANNOUNCEMENT.search(process.command or "")
    if found:
        process.stderr.write(f"\x1e{found['token']} started {_PID}\n".encode())
    while data := await process.stdin.read(64 << 10):
        process.stdout.write(data)
        await process.stdout.drain()
    process.exit(0)
