"""The screen by VNC: a socket of ours, whose connections are handed to QEMU one by one.

QEMU itself listens nowhere (`-vnc none`): it gets each accepted connection as a descriptor
(`getfd`, `add_client`). So no path and no port is given to it, and a daemon that was restarted
opens the door again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable
from pathlib import Path

from guesthouse.drivers.qemu.opening import listen
from guesthouse.drivers.qemu.session import Session
from guesthouse.errors import GuesthouseError

log = logging.getLogger(__name__)


class VncDoor:
    """Listens at `path` until it is closed. `session` gives the monitor of the moment."""

    def __init__(self, path: Path, session: Callable[[], Session]) -> None:
        self._path = path
        self._session = session
        self._numbers = itertools.count()
        self._listener = listen(path)
        self._listener.setblocking(False)
        self._task = asyncio.create_task(self._serve(), name="vnc door")

    async def close(self) -> None:
        """Let nobody in any more; those inside stay."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _address = await loop.sock_accept(self._listener)
            with connection:
                try:
                    await self._admit(connection)
                except GuesthouseError as error:
                    log.warning("a screen's connection was not taken over: %s", error)

    async def _admit(self, connection: socket.socket) -> None:
        session = self._session()
        name = f"vnc{next(self._numbers)}"
        await session.pass_fd(connection.fileno(), "getfd", {"fdname": name})
        # The socket's folder is private: whoever reaches it may see the screen.
        client = {"protocol": "vnc", "fdname": name, "skipauth": True}
        await session.execute("add_client", client)
