"""An sshd for tests on a unix socket: runs commands on this host, as sshd -i does in a guest."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncssh


class _Login(asyncssh.SSHServer):
    def __init__(self, house: SshHouse) -> None:
        self.house = house

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.house.connections.append(conn)

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return key == self.house.key.convert_to_public()


class SshHouse:
    """`mute` makes it accept commands without running them."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "ssh"
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.connections: list[asyncssh.SSHServerConnection] = []
        self.mute = False
        self._children: list[asyncio.subprocess.Process] = []

    @property
    def private_key(self) -> bytes:
        return self.key.export_private_key()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[SshHouse]:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(self.socket))
        server = await asyncssh.create_server(
            lambda: _Login(self),
            sock=sock,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            process_factory=self._run,
            encoding=None,
        )
        try:
            yield self
        finally:
            server.close()
            for connection in self.connections:
                connection.abort()
            for child in self._children:
                if child.returncode is None:
                    with suppress(ProcessLookupError):  # it has ended this moment
                        os.killpg(child.pid, signal.SIGKILL)
                await asyncio.wait_for(child.wait(), 30)
            await server.wait_closed()
            self.socket.unlink()

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        if self.mute:
            await asyncio.Event().wait()
        if process.get_terminal_type():
            await self._run_on_terminal(process)
            return
        child = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", process.command or "exec sh -l",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._children.append(child)
        assert child.stdin and child.stdout and child.stderr
        feeding = asyncio.create_task(_feed(process.stdin, child.stdin))
        pumps = [
            asyncio.create_task(_pump(child.stdout, process.stdout)),
            asyncio.create_task(_pump(child.stderr, process.stderr)),
        ]
        # As OpenSSH does: the exit is told at once, the channel stays until the output ends.
        code = await _exit_code(child)
        if any(not pump.done() for pump in pumps):
            await asyncio.wait(pumps, timeout=0.1)
        channel = process.channel
        if any(not pump.done() for pump in pumps) and code >= 0:
            channel._send_request(b"exit-status", asyncssh.packet.UInt32(code))
            await asyncio.wait(pumps)
            feeding.cancel()
            process.close()
            return
        feeding.cancel()
        self._report(process, code)

    async def _run_on_terminal(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        master, slave = os.openpty()
        columns, rows, _, _ = process.get_terminal_size()
        _resize(master, columns, rows)
        child = await asyncio.create_subprocess_exec(
            "setsid", "-c", "/bin/sh", "-c", process.command or "exec sh -l",
            stdin=slave, stdout=slave, stderr=slave,
            env={**os.environ, "TERM": process.get_terminal_type() or ""},
        )  # fmt: skip
        os.close(slave)
        loop = asyncio.get_running_loop()
        drained = asyncio.Event()

        def readable() -> None:
            try:
                data = os.read(master, 65536)
            except OSError:
                data = b""
            if data:
                process.stdout.write(data)
            else:
                loop.remove_reader(master)
                drained.set()

        loop.add_reader(master, readable)

        async def pump() -> None:
            while True:
                try:
                    if not (data := await process.stdin.read(65536)):
                        return
                    os.write(master, data)
                except asyncssh.TerminalSizeChanged as change:
                    _resize(master, change.width, change.height)

        pumping = asyncio.create_task(pump())
        code = await child.wait()
        await drained.wait()
        pumping.cancel()
        os.close(master)
        self._report(process, code)

    @staticmethod
    def _report(process: asyncssh.SSHServerProcess[bytes], code: int) -> None:
        if code < 0:
            process.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))
        else:
            process.exit(code)


async def _exit_code(child: asyncio.subprocess.Process) -> int:
    """Without waiting for the end of its output, as Process.wait() does in some versions."""
    while child.returncode is None:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    return child.returncode


async def _pump(source: asyncio.StreamReader, target: asyncssh.SSHWriter[bytes]) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    except (OSError, asyncssh.Error):
        return  # the client is gone


async def _feed(source: asyncssh.SSHReader[bytes], target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
        target.close()
    except (OSError, asyncssh.Error):
        return  # the command is gone, or the client


def _resize(fd: int, columns: int, rows: int) -> None:
    import termios

    termios.tcsetwinsize(fd, (rows, columns))
