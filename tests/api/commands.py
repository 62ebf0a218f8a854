"""Real commands on this host, held as commands in a guest are."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from typing import Any, cast

from guesthouse.errors import NotFound
from guesthouse.guestos.ssh_process import RemoteProcess


class Command(asyncio.SubprocessProtocol):
    """The channel of a `RemoteProcess` whose command is a process of this host."""

    def __init__(self) -> None:
        self.transport: asyncio.SubprocessTransport
        self.process: RemoteProcess
        self.sizes: list[tuple[int, int]] = []
        self.produced = 0
        self.gone = asyncio.Event()

    @classmethod
    async def start(
        cls, argv: Sequence[str], *, env: dict[str, str] | None = None, cwd: str | None = None
    ) -> Command:
        loop = asyncio.get_running_loop()
        transport, command = await loop.subprocess_exec(
            cls, *argv, env={**os.environ, **(env or {})}, cwd=cwd, start_new_session=True
        )
        command.process.pid = transport.get_pid()
        return command

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.SubprocessTransport", transport)
        self.process = RemoteProcess(self, self._signal, _settle)

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        assert isinstance(data, bytes)
        self.produced += len(data)
        self.process.take_output(fd, data)

    def pause_writing(self) -> None:
        self.process.take_write_limit(True)

    def resume_writing(self) -> None:
        self.process.take_write_limit(False)

    def process_exited(self) -> None:
        code = self.transport.get_returncode()
        assert code is not None
        if code < 0:
            self.process.take_exit(None, signal.Signals(-code).name.removeprefix("SIG"))
        else:
            self.process.take_exit(code, None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        self.process.take_end(None)

    # What the process calls

    def pause_reading(self) -> None:
        for pipe in self._outputs():
            pipe.pause_reading()

    def resume_reading(self) -> None:
        for pipe in self._outputs():
            pipe.resume_reading()

    def write(self, data: bytes) -> None:
        self._pipe(0).write(data)

    def write_eof(self) -> None:
        self._pipe(0).close()

    def resize(self, columns: int, rows: int) -> None:
        self.sizes.append((columns, rows))

    def close(self) -> None:
        self.transport.close()

    def _pipe(self, fd: int) -> Any:
        return self.transport.get_pipe_transport(fd)

    def _outputs(self) -> list[Any]:
        return [pipe for pipe in map(self._pipe, (1, 2)) if not pipe.is_closing()]

    async def _signal(self, name: str, pid: int) -> None:
        try:
            os.killpg(pid, signal.Signals[f"SIG{name}"])
        except ProcessLookupError:
            raise NotFound("The command has ended.") from None


async def _settle() -> None:
    """Pipes of this host are read before their end is: nothing is on the way."""
