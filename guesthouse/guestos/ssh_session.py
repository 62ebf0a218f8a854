"""The ssh protocol by asyncssh: the one place that imports it (15 MiB and a fifth of a second)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh

from guesthouse.errors import AgentUnavailable, EngineError
from guesthouse.guestos.ssh_command import Announcement, AnnouncementFinder
from guesthouse.guestos.ssh_process import STDERR, STDOUT, RemoteProcess, SendSignal, Settle

WINDOW = 1 << 20
"""Bytes that the guest may send ahead on a channel."""

WRITE_BUFFER = 256 << 10
"""Bytes of input on their way at which a writer waits."""

_GREETING = b"SSH-2.0-"
"""RFC 4253, section 4.2."""

KEEPALIVE = 20.0
KEEPALIVE_COUNT = 6
"""Two minutes without an answer: a guest that hangs. The end of its process closes the socket, so
this need not be quick, and must outlast a snapshot or a starved emulated guest."""

# Fastest first in guests without AES instructions (qemu64 under TCG), MiB/s through `cat` and back:
# dropbear 2022.83 (micro): chacha20 10, aes128-ctr 6, no GCM; OpenSSH 9.2 (Debian 12, a busy host):
# chacha20 3.4, aes128-gcm 3.4, aes128-ctr 2.6.
CIPHERS = (
    "chacha20-poly1305@openssh.com",
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes256-ctr",
)
KEY_EXCHANGES = "^curve25519-sha256,curve25519-sha256@libssh.org"


async def open_connection(
    path: Path,
    private_key: bytes,
    user: str,
    *,
    timeout: float,
    on_lost: Callable[[asyncssh.SSHClientConnection], None],
) -> asyncssh.SSHClientConnection:
    """Connect and log in within `timeout` seconds; `on_lost` is called when it ends.

    :raise OSError: the socket, :raise asyncssh.Error: the protocol or the login failed.
    :raise TimeoutError:
    """

    class Client(asyncssh.SSHClient):
        def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
            self.connection = conn

        def connection_lost(self, exc: Exception | None) -> None:
            on_lost(self.connection)

    async with asyncio.timeout(timeout):
        return await asyncssh.connect(
            "guest",  # a name for logs; the port is the way
            tunnel=_Port(path),
            client_factory=Client,
            username=user,
            client_keys=[asyncssh.import_private_key(private_key)],
            # The socket is the house's own and leads into this guest alone; its host key is new at
            # every first boot, so that there is nothing to compare it with.
            known_hosts=None,
            config=None,
            agent_path=None,
            preferred_auth="publickey",
            compression_algs=None,
            encryption_algs=list(CIPHERS),
            kex_algs=KEY_EXCHANGES,
            keepalive_interval=KEEPALIVE,
            keepalive_count_max=KEEPALIVE_COUNT,
            # Our own deadline is the one that counts: an emulated guest takes its time.
            login_timeout=0,
            connect_timeout=None,
        )


class _Port:
    """The way in, in the shape that asyncssh wants."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def create_connection(
        self, session_factory: Callable[[], Any], remote_host: str, remote_port: int
    ) -> tuple[Any, Any]:
        transport, reader = await asyncio.get_running_loop().create_unix_connection(
            lambda: _AfterRemains(session_factory()), str(self._path)
        )
        return transport, reader.connection

    def close(self) -> None:
        """Nothing is held beside the connection."""

    async def wait_closed(self) -> None:
        """Nothing is held beside the connection."""


class _AfterRemains(asyncio.Protocol):
    """Drops what comes before sshd's first words.

    The port keeps no borders between connections: the end of an earlier one, encrypted, may come
    first, and asyncssh would take it and the first words for one line and wait for ever.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._held: bytes | None = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.connection.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._held is None:
            self.connection.data_received(data)
            return
        self._held += data
        begin = self._held.find(_GREETING)
        if begin < 0:
            self._held = self._held[1 - len(_GREETING) :]
            return
        data, self._held = self._held[begin:], None
        self.connection.data_received(data)

    def eof_received(self) -> bool | None:
        self.connection.eof_received()
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self.connection.pause_writing()

    def resume_writing(self) -> None:
        self.connection.resume_writing()


class Session(asyncssh.SSHClientSession[bytes]):
    """Joins a channel to a `RemoteProcess`; holds it until the announcement has come."""

    def __init__(
        self,
        token: str,
        send_signal: SendSignal,
        settle: Settle,
        on_end: Callable[[Session], None],
        *,
        terminal: bool,
    ) -> None:
        self.process = RemoteProcess(self, send_signal, settle)
        self.started: asyncio.Future[Announcement] = asyncio.get_running_loop().create_future()
        self._finder: AnnouncementFinder | None = AnnouncementFinder(token)
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._early = bytearray()
        self.opened = False
        """Whether the guest opened the channel, after which it may have got the command."""
        self._terminal = terminal
        self._on_end = on_end

    # What asyncssh calls

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan
        self.opened = True
        chan.set_write_buffer_limits(WRITE_BUFFER)

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        stream = STDERR if datatype == asyncssh.EXTENDED_DATA_STDERR else STDOUT
        if self._finder is None:
            self.process.take_output(stream, data)
        elif stream == STDOUT and not self._terminal:
            # Of a start-up file, or of the command: it may overtake the other stream.
            self._early += data
            self._check_limit(len(self._early), WINDOW)
        else:
            self._search(self._finder, stream, data)

    def exit_status_received(self, status: int) -> None:
        self.process.take_exit(status, None)

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self.process.take_exit(None, signal)

    def connection_lost(self, exc: Exception | None) -> None:
        failure = None
        if exc is not None:
            failure = AgentUnavailable(
                "The connection to the guest broke.",
                hint="The guest may have stopped or hang: guest info NAME",
                cause=str(exc),
            )
        if not self.started.done():
            self.started.set_exception(failure or self._never_started())
            self.started.exception()  # marked as seen: the starter may be gone
        self.process.take_end(failure)
        self._channel = None
        self._on_end(self)

    def pause_writing(self) -> None:
        self.process.take_write_limit(True)

    def resume_writing(self) -> None:
        self.process.take_write_limit(False)

    def eof_received(self) -> bool:
        return True  # the end of output is not the end of input

    # What RemoteProcess calls

    def pause_reading(self) -> None:
        if self._channel is not None:
            self._channel.pause_reading()

    def resume_reading(self) -> None:
        if self._channel is not None:
            self._channel.resume_reading()

    def write(self, data: bytes) -> None:
        if self._channel is not None and not self._channel.is_closing():
            self._channel.write(data)

    def write_eof(self) -> None:
        if self._channel is not None and not self._channel.is_closing():
            self._channel.write_eof()

    def resize(self, columns: int, rows: int) -> None:
        if self._channel is not None and self._terminal:
            self._channel.change_terminal_size(columns, rows)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()

    def _search(self, finder: AnnouncementFinder, stream: int, data: bytes) -> None:
        found = finder.feed(data)
        if found is None:
            self._check_limit(len(finder.held), finder.LIMIT)
            return
        announcement, rest = found
        self._finder = None
        if self._early:
            self.process.take_output(STDOUT, bytes(self._early))
        if rest:
            self.process.take_output(stream, rest)
        self.process.pid = announcement.pid
        if not self.started.done():
            self.started.set_result(announcement)

    def _check_limit(self, length: int, limit: int) -> None:
        if length > limit and not self.started.done():
            self.started.set_exception(self._never_started())
            self.close()

    def _never_started(self) -> EngineError:
        said = bytes(self._early) + (self._finder.held if self._finder else b"")
        text = said[-500:].decode(errors="replace").strip()
        return EngineError(
            f"The guest did not run the command: {text or 'its shell said nothing'}.",
            hint="Is root's login shell usable in the guest? See: guest console NAME",
        )
