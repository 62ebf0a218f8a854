"""A guest that understands what `shares.inside` says, and its virtio-serial ports."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import NamedTuple

from guesthouse.errors import AgentUnavailable, EngineError, QmpFailed


class End(NamedTuple):
    code: int | None


class FakeGuest:
    """Understands what `inside` says by the name that each command gives itself ($0)."""

    def __init__(self) -> None:
        self.mounted: set[str] = set()
        self.busy: set[str] = set()
        self.broken: set[str] = set()
        self.users = {"guest": (1000, 1000)}
        self.away = False
        self.able = True
        self.seen_as = ""
        self.ports: dict[str, socket.socket] = {}
        self.log: list[str] = []
        self.file_systems = ("fuse",)
        self.no_folders = self.risk = ""
        self.no_folder_fits = self.keeps_folders = False

    async def run(
        self, argv: Sequence[str], *, data: bytes = b"", timeout: float = 60.0
    ) -> tuple[End, bytes, bytes]:
        if self.away:
            raise AgentUnavailable("away")
        if len(argv) == 3:
            systems = "".join(f"fs {one}\n" for one in self.file_systems)
            return End(0), f"{systems}sshfs\nport\n".encode() if self.able else b"", b""
        what, *words = argv[3:]
        self.log.append(f"{what} {words[0]}")
        if what == "ids":
            uid, gid = self.users.get(words[0], (None, None))
            return (End(77), b"", b"") if uid is None else (End(0), f"{uid}\n{gid}\n".encode(), b"")
        if what == "mounted":
            return End(0 if words[1] in self.mounted else 1), b"", b""
        if what == "mount-virtiofs":
            assert words[-1] in self.ports
            self.mounted.add(words[0])
            return End(0), b"", b""
        if what == "mount":
            if words[1] in self.broken:
                return End(75), b"", b"sshfs: broken\n"
            assert f"share.{words[0]}" in self.ports
            assert words[-1] == self.seen_as
            self.mounted.add(words[1])
            return End(0), b"", b""
        assert what == "unmount"
        if words[0] in self.busy:
            return End(76), b"process 7 vim\n", b""
        self.mounted.discard(words[0])
        return End(0), b"", b""

    async def plug_port(self, name: str, connection: int, *, seen_as: str) -> None:
        await self.unplug_port(name)
        self.seen_as = seen_as
        self.ports[name] = socket.socket(fileno=os.dup(connection))

    async def unplug_port(self, name: str) -> None:
        if name in self.ports:
            self.ports.pop(name).close()

    async def folders_lack(self) -> tuple[str, str]:
        return self.no_folders, self.risk

    async def plug_folder(self, name: str, connection: int) -> None:
        if self.no_folder_fits:
            raise QmpFailed("it does not fit")
        self.ports[name] = socket.socket(fileno=os.dup(connection))

    async def unplug_folder(self, name: str) -> None:
        if self.keeps_folders:
            raise EngineError("The guest does not give it back.")
        await self.unplug_port(name)

    def close(self) -> None:
        for port in self.ports.values():
            port.close()
