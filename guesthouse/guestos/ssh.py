"""Commands and shells inside a guest, by ssh over its virtio-serial port `house.guest.ssh.0`.

No network is needed. The port's unix socket carries one client at a time, so there is one ssh
connection, opened on demand, shared by any number of commands, and opened anew when it breaks.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from guesthouse.errors import AgentUnavailable, DeadlineExceeded, GuesthouseError
from guesthouse.guestos.ssh_command import command_text, explain, kill_text
from guesthouse.guestos.ssh_process import Output, RemoteExit, RemoteProcess
from guesthouse.model.reports import Tty

if TYPE_CHECKING:
    import asyncssh

    from guesthouse.guestos.ssh_session import Session

__all__ = ["GuestSsh", "Output", "RemoteExit", "RemoteProcess", "Tty"]

PORT_NAME = "house.guest.ssh.0"

CONNECT_TIMEOUT = 60.0
"""Seconds for a connection, all attempts together. An emulated guest takes several to log in."""

ATTEMPT_TIMEOUT = 30.0
"""Seconds for one attempt: one that fell upon the remains of an earlier connection never ends."""

CHANNEL_TIMEOUT = 20.0
"""Seconds for sshd to open one more channel; a guest that was reset behind it never does."""

DECLINED_LIMIT, DECLINED_PAUSE = 4, 0.05
"""How often, and seconds after which, a command is offered again that sshd did not take: dropbear
2022.83 closes a channel that has just been opened when another one ends at that moment."""

START_TIMEOUT = 30.0
"""Seconds from a connection to a command's first sign of life."""

IDLE = 300.0
"""Seconds without a command after which the connection is closed."""

_NO_ANSWER_HINT = (
    "The guest may still be starting, or its image has no ssh port (images that Guesthouse did not "
    "build). Its console works without: guest console NAME"
)


class GuestSsh:
    """ssh into one guest.

    :param socket: of the port. :param private_key: OpenSSH format. :param user: of the login.
    """

    def __init__(self, socket: Path, private_key: bytes, *, user: str = "root") -> None:
        self._socket = socket
        self._private_key = private_key
        self._user = user
        self._connection: asyncssh.SSHClientConnection | None = None
        self._connecting = asyncio.Lock()
        self._sessions: set[Session] = set()
        self._idle: asyncio.TimerHandle | None = None
        self._closed = False
        self._abandoned: set[asyncio.Task[None]] = set()

    async def start(
        self,
        argv: Sequence[str],
        *,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        tty: Tty | None = None,
        cwd: str | None = None,
        timeout: float = CONNECT_TIMEOUT,
    ) -> RemoteProcess:
        """Start a command; returns once it runs.

        :param argv: empty runs `user`'s login shell. :param cwd: None is `user`'s home.
        :param timeout: seconds to get hold of the guest, not for the command.
        :raise InvalidInput: no such user or folder in the guest, or what cannot be passed.
        :raise AgentUnavailable: the guest does not answer. :raise EngineError: its shell does not
            run commands.
        """
        token = secrets.token_hex(8)
        text = command_text(argv, token=token, user=user, env=env, cwd=cwd, shell_user=self._user)
        session = await self._open(text, token, tty, timeout)
        try:
            # Not awaited directly: a cancellation would cancel the future that `_abandon` needs.
            await asyncio.wait([session.started], timeout=START_TIMEOUT)
        except asyncio.CancelledError:
            self._abandon(session)
            raise
        if not session.started.done():
            self._abandon(session)
            raise AgentUnavailable(
                f"The guest took the command but did not start it within {START_TIMEOUT:g} s.",
                hint="It may be overloaded: try again, or see: guest console NAME",
            )
        announcement = session.started.result()
        problem = explain(announcement, user=user, cwd=cwd)
        if problem:
            session.close()
            raise problem
        return session.process

    async def run(
        self,
        argv: Sequence[str],
        *,
        user: str = "root",
        data: bytes = b"",
        timeout: float = 60.0,
        limit: int = 1 << 20,
    ) -> tuple[RemoteExit, bytes, bytes]:
        """Run a short command with `data` as its input; answers its end, output and errors.

        :param limit: bytes kept of each stream; the rest is dropped. Raises as `start`, and
        :raise DeadlineExceeded: it did not end within `timeout` seconds and was killed.
        """
        process = await self.start(argv, user=user, timeout=timeout)
        kept = {1: bytearray(), 2: bytearray()}
        feeder = asyncio.create_task(_feed(process, data))
        try:
            async with asyncio.timeout(timeout):
                async for stream, piece in process.output():
                    kept[stream] += piece[: limit - len(kept[stream])]
                ended = await process.wait()
        except TimeoutError:
            raise DeadlineExceeded(
                f"The command {argv[0] if argv else 'shell'!r} did not end within {timeout:g} "
                "seconds and was killed."
            ) from None
        finally:
            feeder.cancel()
            await process.close()
        return ended, bytes(kept[1]), bytes(kept[2])

    async def answers(self, *, timeout: float) -> None:
        """Make sure that the guest runs commands, within `timeout` seconds. Raises as `run`."""
        await self.run(["true"], timeout=timeout)

    def drop(self) -> None:
        """Give up the connection at once: the guest was reset, or closed its end of the port.

        Running commands lose it; the next one connects anew.
        """
        self._stop_idle()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    async def close(self) -> None:
        """Let the connection go for good; running commands lose it."""
        self._closed = True
        connection = self._connection
        self.drop()
        if connection is not None:
            await connection.wait_closed()

    async def _open(self, text: str, token: str, tty: Tty | None, timeout: float) -> Session:
        """A channel on which `text` has been started. A silent old connection is replaced, unless
        other commands still hope for it.
        """
        from guesthouse.guestos import ssh_session

        deadline, declined = time.monotonic() + timeout, 0
        while True:
            reused = self._connection is not None
            connection = await self._connected(deadline)
            session = ssh_session.Session(
                token, self._send_signal, self._settle, self._ended, terminal=tty is not None
            )
            self._stop_idle()
            self._sessions.add(session)
            connection.set_keepalive(ssh_session.KEEPALIVE)
            begun = asyncio.create_task(_begin(connection, session, text, tty))
            left = max(0.0, deadline - time.monotonic())
            try:
                await asyncio.wait([begun], timeout=min(CHANNEL_TIMEOUT, left))
            except asyncio.CancelledError:
                self._abandon(session, begun)
                raise
            error = _failure(begun)
            if error is None:
                return session
            self._ended(session)
            if _declined(error) and self._connection is connection and declined < DECLINED_LIMIT:
                declined += 1
                await asyncio.sleep(DECLINED_PAUSE)
                continue
            if _refused(error):
                raise AgentUnavailable(
                    f"The guest's sshd refuses another command: {error}.",
                    hint="Wait until one of the running ones has ended.",
                ) from error
            if self._sessions:
                raise _unavailable(error) from error
            if self._connection is connection:
                self.drop()
            # Never twice what may have been started once: only a channel that did not even open.
            if not reused or session.opened:
                raise _unavailable(error) from error

    async def _connected(self, deadline: float) -> asyncssh.SSHClientConnection:
        """The connection, opened if need be, with growing pauses until `deadline` (monotonic).

        Bytes of an earlier connection may still be on their way in either direction and spoil an
        attempt; the next one is clean.
        """
        import asyncssh

        from guesthouse.guestos import ssh_session

        async with self._connecting:
            pause = 0.1
            while self._connection is None:
                if self._closed:
                    raise AgentUnavailable("The connection to the guest has been closed.")
                try:
                    remaining = max(0.0, deadline - time.monotonic())
                    self._connection = await ssh_session.open_connection(
                        self._socket,
                        self._private_key,
                        self._user,
                        timeout=min(ATTEMPT_TIMEOUT, remaining),
                        on_lost=self._lost,
                    )
                except (FileNotFoundError, ConnectionRefusedError) as error:
                    raise AgentUnavailable(
                        "The guest's ssh port is not there.",
                        hint="Is the guest running? See: guest info NAME",
                    ) from error
                except (OSError, asyncssh.Error, TimeoutError) as error:
                    if time.monotonic() + pause >= deadline:
                        raise _unavailable(error) from error
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, 2.0)
            return self._connection

    def _lost(self, connection: asyncssh.SSHClientConnection) -> None:
        if self._connection is connection:
            self._connection = None

    def _ended(self, session: Session) -> None:
        self._sessions.discard(session)
        self._stop_idle()
        if not self._sessions and self._connection is not None:
            self._connection.set_keepalive(0)  # a guest that has nothing to do is not woken
            self._idle = asyncio.get_running_loop().call_later(IDLE, self.drop)

    def _stop_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _abandon(self, session: Session, begun: asyncio.Task[None] | None = None) -> None:
        """End a command whose starter has gone, as soon as it is known what to end."""

        async def end() -> None:
            try:
                async with asyncio.timeout(START_TIMEOUT):
                    if begun is not None:
                        await begun
                    await session.started
                await session.process.close()
            except (GuesthouseError, asyncssh.Error, OSError, TimeoutError):
                session.close()
            finally:
                self._ended(session)

        import asyncssh

        task = asyncio.create_task(end())
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)

    async def _send_signal(self, name: str, pid: int) -> None:
        await self._aside(kill_text(name, pid))

    async def _settle(self) -> None:
        await self._aside(":")

    async def _aside(self, text: str) -> None:
        """Run a short text beside the commands, if the connection is there.

        :raise AgentUnavailable:
        """
        import asyncssh

        connection = self._connection
        if connection is None:
            raise AgentUnavailable("The connection to the guest broke.")
        for attempt in range(DECLINED_LIMIT + 1):
            try:
                async with asyncio.timeout(CHANNEL_TIMEOUT):
                    await connection.run(text, encoding=None, stdin=asyncssh.DEVNULL)
                return
            except (OSError, asyncssh.Error, TimeoutError) as error:
                if not _declined(error) or attempt == DECLINED_LIMIT:
                    raise _unavailable(error) from error
            await asyncio.sleep(DECLINED_PAUSE)


async def _begin(
    connection: asyncssh.SSHClientConnection, session: Session, text: str, tty: Tty | None
) -> None:
    from guesthouse.guestos.ssh_session import WINDOW

    await connection.create_session(
        lambda: session,
        text,
        request_pty=tty is not None,
        term_type=tty.term if tty else None,
        term_size=(tty.columns, tty.rows) if tty else (),
        encoding=None,
        window=WINDOW,
    )


async def _feed(process: RemoteProcess, data: bytes) -> None:
    await process.write(data)
    await process.write_eof()


def _failure(begun: asyncio.Task[None]) -> Exception | None:
    """Why a channel did not open; None when it did. Errors that are defects pass through."""
    import asyncssh

    if not begun.done():
        begun.cancel()
        return TimeoutError()
    try:
        begun.result()
    except (OSError, asyncssh.Error) as error:
        return error
    return None


def _declined(error: Exception) -> bool:
    """Whether sshd closed the channel instead of starting the command."""
    import asyncssh

    return (
        isinstance(error, asyncssh.ChannelOpenError)
        and error.code == asyncssh.OPEN_REQUEST_SESSION_FAILED
    )


def _refused(error: Exception) -> bool:
    """Whether a live connection declined one more channel, as opposed to a broken one."""
    import asyncssh

    return isinstance(error, asyncssh.ChannelOpenError) and error.code in {
        asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED,
        asyncssh.OPEN_RESOURCE_SHORTAGE,
        asyncssh.OPEN_REQUEST_PTY_FAILED,
        asyncssh.OPEN_REQUEST_SESSION_FAILED,
    }


def _unavailable(error: Exception) -> AgentUnavailable:
    import asyncssh

    if isinstance(error, asyncssh.PermissionDenied):
        return AgentUnavailable(
            "The guest's sshd does not accept the house's key.",
            hint="Was /root/.ssh/authorized_keys changed inside? The key comes back at the next "
            "boot; until then: guest console NAME",
        )
    if isinstance(error, TimeoutError):
        return AgentUnavailable("Nothing answers on the guest's ssh port.", hint=_NO_ANSWER_HINT)
    return AgentUnavailable(
        f"The ssh connection to the guest failed: {error}.", hint=_NO_ANSWER_HINT
    )
