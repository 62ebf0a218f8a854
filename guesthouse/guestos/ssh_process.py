"""A command that runs in a guest, as its user holds it: flow-controlled output, input, the end.

Nothing here imports asyncssh: `ssh_session` joins this to a channel.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple, Protocol

from guesthouse.errors import AgentUnavailable, DeadlineExceeded, NotFound
from guesthouse.guestos.ssh_command import check_signal

STDOUT, STDERR = 1, 2

HIGH_WATER = 256 << 10
"""Bytes of unread output at which the guest is held back."""

LINGER = 1.0
"""Seconds of silence after the command's exit until we ask whether more will come. A process that
it left behind may hold its output open for ever."""

CHUNK = 64 << 10
"""Bytes of input handed to the channel at once."""

GRACE = 2.0
"""Seconds between TERM and KILL when a running command is closed."""


class Output(NamedTuple):
    """A piece of output. :ivar stream: 1 standard output, 2 standard error."""

    stream: int
    data: bytes


class RemoteExit(NamedTuple):
    """How a command ended: its exit code, or the name (without SIG) of the signal it died of."""

    code: int | None
    signal: str | None


class Channel(Protocol):
    """What a `RemoteProcess` needs of its connection."""

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def write(self, data: bytes) -> None: ...
    def write_eof(self) -> None: ...
    def resize(self, columns: int, rows: int) -> None: ...
    def close(self) -> None: ...


SendSignal = Callable[[str, int], Awaitable[None]]
"""(name, pid in the guest): by way of another channel."""

Settle = Callable[[], Awaitable[None]]
"""Runs something trivial in the guest. When it answers, the guest's sshd has been round its loop,
so whatever an ended command had written before has been sent."""


class RemoteProcess:
    """One command. One task reads; any may write, signal, wait. Close it when done.

    On a terminal all output comes as stream 1.
    """

    def __init__(self, channel: Channel, send_signal: SendSignal, settle: Settle) -> None:
        self.pid = 0
        """In the guest; known once it has started."""
        self._channel = channel
        self._send_signal = send_signal
        self._settle = settle
        self._output: deque[Output] = deque()
        self._buffered = 0
        self._held_back = False
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._exited = asyncio.Event()
        self._ended = asyncio.Event()
        self._exit: RemoteExit | None = None
        self._failure: AgentUnavailable | None = None
        self._linger: asyncio.Task[None] | None = None
        self._arrived = 0
        self._input_closed = False

    # What its user calls

    async def read(self) -> Output | None:
        """The next piece of output, in the order of arrival; None after the last.

        :raise AgentUnavailable: the connection to the guest broke.
        """
        while not self._output:
            if self._ended.is_set():
                if self._failure:
                    raise self._failure
                return None
            self._readable.clear()
            await self._readable.wait()
        piece = self._output.popleft()
        self._buffered -= len(piece.data)
        if self._held_back and self._buffered <= HIGH_WATER // 2:
            self._held_back = False
            self._channel.resume_reading()
        return piece

    async def output(self) -> AsyncIterator[Output]:
        """All output, as by `read`."""
        while (piece := await self.read()) is not None:
            yield piece

    async def write(self, data: bytes) -> None:
        """Send to the command's input; waits while the guest takes no more. Input after the
        command's end, or after `write_eof`, is dropped, as a broken pipe would.

        :raise AgentUnavailable: the connection broke.
        """
        for start in range(0, len(data), CHUNK):
            await self._writable.wait()
            if self._failure:
                raise self._failure
            if self._exited.is_set() or self._input_closed:
                return
            self._channel.write(data[start : start + CHUNK])
        await self._writable.wait()

    async def write_eof(self) -> None:
        """End the command's input."""
        if not self._ended.is_set() and not self._input_closed:
            self._input_closed = True
            self._channel.write_eof()

    def resize(self, columns: int, rows: int) -> None:
        """Tell the terminal's new size in characters; nothing happens without a terminal."""
        if not self._ended.is_set():
            self._channel.resize(columns, rows)

    async def signal(self, name: str) -> None:
        """Signal the command and its descendants, by name: INT, TERM, KILL….

        :raise InvalidInput: not a signal's name. :raise NotFound: the command has ended.
        :raise AgentUnavailable: the guest cannot be reached.
        """
        check_signal(name)
        if self._exited.is_set() or self._ended.is_set():
            raise NotFound("The command has ended.")
        await self._send_signal(name, self.pid)

    async def wait(self, timeout: float | None = None) -> RemoteExit:
        """Wait for the end. The output must be read meanwhile: an unread command stands still.

        :param timeout: seconds, after which the command is killed.
        :raise DeadlineExceeded: it was killed for that. :raise AgentUnavailable: the connection
            broke, so that the end of the command is unknown.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._exited.wait()
        except TimeoutError:
            await self.close()
            raise DeadlineExceeded(
                f"The command did not end within {timeout:g} seconds and was killed.",
                hint="Give it more time.",
            ) from None
        if self._exit is None:
            assert self._failure is not None
            raise self._failure
        return self._exit

    async def close(self) -> None:
        """End the command if it runs (TERM, two seconds later KILL, for all its descendants that
        can still be found) and let its channel go. Never raises for a guest out of reach.
        """
        if not self._exited.is_set() and not self._ended.is_set():
            await self._end()
        self._channel.close()
        self._drop_output()

    async def _end(self) -> None:
        # A command that is held back because nobody reads could not even die of a broken pipe.
        self._drop_output()
        for name in ("TERM", "KILL"):
            try:
                await self._send_signal(name, self.pid)
                async with asyncio.timeout(GRACE):
                    await self._exited.wait()
                return
            except TimeoutError:
                continue
            except AgentUnavailable:
                return

    def _drop_output(self) -> None:
        self._output.clear()
        self._buffered = 0
        if self._held_back and not self._ended.is_set():
            self._held_back = False
            self._channel.resume_reading()

    # What its channel calls

    def take_output(self, stream: int, data: bytes) -> None:
        self._output.append(Output(stream, data))
        self._buffered += len(data)
        self._arrived += len(data)
        self._readable.set()
        if self._buffered >= HIGH_WATER and not self._held_back:
            self._held_back = True
            self._channel.pause_reading()

    def take_write_limit(self, full: bool) -> None:
        if full:
            self._writable.clear()
        else:
            self._writable.set()

    def take_exit(self, code: int | None, signal: str | None) -> None:
        self._exit = RemoteExit(code, signal)
        self._exited.set()
        self._writable.set()
        if self._linger is None:
            self._linger = asyncio.get_running_loop().create_task(self._outlast())

    def take_end(self, failure: AgentUnavailable | None) -> None:
        """The channel is closed; `failure` if that was because the connection broke."""
        if self._linger is not None:
            self._linger.cancel()
        self._failure = failure
        if self._exit is None and failure is None:
            self._failure = AgentUnavailable(
                "The guest closed the command without saying how it ended.",
                hint="It may be shutting down.",
            )
        self._exited.set()
        self._ended.set()
        self._readable.set()
        self._writable.set()

    async def _outlast(self) -> None:
        """After the exit: close the channel once no more output can come."""
        while True:
            seen = self._arrived
            await asyncio.sleep(LINGER)
            if self._held_back or self._arrived != seen:
                continue
            try:
                await self._settle()
            except AgentUnavailable:
                return  # the connection broke, which ends this process too
            if not self._held_back and self._arrived == seen:
                self._channel.close()
                return
