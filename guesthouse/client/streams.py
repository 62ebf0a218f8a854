"""Commands and consoles of guests as streams.

An exec stream carries binary frames whose first byte names the channel, and text frames with JSON
for everything else; a console stream carries the serial port's bytes and nothing more. See the API
reference, "Streams".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from guesthouse.client.house import guest_path
from guesthouse.client.problems import error_from
from guesthouse.client.transport import Transport
from guesthouse.client.websocket import WebSocket, open_websocket
from guesthouse.errors import DaemonUnreachable, Internal
from guesthouse.model.document import encode
from guesthouse.model.reports import ExecRequest, Exit

STDIN, STDOUT, STDERR = 0, 1, 2
PIECE = 60 << 10
"""Bytes of a piece that we send: below the 64 KiB of a frame, and whole pages."""

_STDIN = bytes([STDIN])


class Command:
    """A command that runs in a guest. Made by `open_command`; use as a context manager.

    One thread reads `output`, others may write at the same time.
    """

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self.exit: Exit | None = None

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def output(self) -> Iterator[tuple[int, bytes]]:
        """(STDOUT or STDERR, bytes) until the command has ended; then `exit` is set.

        :raise DaemonUnreachable: the stream broke. :raise GuesthouseError: why the command could
            not be run, or was ended.
        """
        while True:
            message = self._socket.receive()
            if message is None:
                raise DaemonUnreachable(
                    "The daemon closed the stream without saying how the command ended.",
                    hint="Look how the guest is with: guest ls",
                    broken=True,
                )
            if isinstance(message, bytes):
                if message[:1] in {b"\x01", b"\x02"}:
                    yield message[0], message[1:]
                continue
            self.exit = _ending(message)
            if self.exit is not None:
                return

    def write(self, data: bytes) -> None:
        """Bytes for its standard input; waits while the command does not read.

        :raise DaemonUnreachable: the stream is closed, perhaps because the command ended.
        """
        for start in range(0, len(data), PIECE):
            self._socket.send(_STDIN + data[start : start + PIECE])

    def end_input(self) -> None:
        self._control({"eof": True})

    def resize(self, columns: int, rows: int) -> None:
        self._control({"resize": [columns, rows]})

    def signal(self, name: str) -> None:
        """:param name: without SIG: `INT`."""
        self._control({"signal": name})

    def close(self) -> None:
        """End the stream; a command that still runs is killed by the daemon."""
        self._socket.close()

    def abort(self) -> None:
        """As `close`, from any thread or signal handler; `output` raises."""
        self._socket.abort()

    def _control(self, message: dict[str, Any]) -> None:
        self._socket.send(json.dumps(message))


def open_command(transport: Transport, ref: str, request: ExecRequest) -> Command:
    """Run a command in the guest `ref`.

    :raise GuesthouseError: the daemon is away or refuses; later errors come from `output`.
    """
    socket = open_websocket(transport, guest_path(ref, "exec"))
    socket.send(encode(request).decode())
    return Command(socket)


class Console:
    """A guest's serial port. Made by `open_console`."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    def output(self) -> Iterator[bytes]:
        """What the guest writes, until it or the daemon ends the stream.

        :raise DaemonUnreachable: it broke. :raise GuesthouseError: why there is no console.
        """
        while True:
            message = self._socket.receive()
            if message is None:
                return
            if isinstance(message, bytes):
                yield message
            else:
                _ending(message)

    def write(self, data: bytes) -> None:
        """:raise DaemonUnreachable: the stream is closed."""
        for start in range(0, len(data), PIECE):
            self._socket.send(data[start : start + PIECE])

    def close(self) -> None:
        self._socket.close()

    def abort(self) -> None:
        """As `close`, from any thread or signal handler; `output` raises."""
        self._socket.abort()


def open_console(transport: Transport, ref: str, *, replay: int = 4096) -> Console:
    """:param replay: bytes of the serial log that come first. Raises as `open_command`."""
    return Console(open_websocket(transport, f"{guest_path(ref, 'console')}?replay={replay}"))


def _ending(message: str) -> Exit | None:
    """How the command ended, if the control message says so. :raise GuesthouseError: a problem."""
    try:
        control = json.loads(message)
    except ValueError:
        control = None
    if not isinstance(control, dict):
        raise Internal("The daemon sent a control message that is not a JSON object.")
    if isinstance(control.get("problem"), dict):
        raise error_from(control["problem"])
    if isinstance(control.get("exit"), dict):
        ended = control["exit"]
        return Exit(code=ended.get("code"), signal=ended.get("signal"))
    return None  # started, or something that a newer daemon tells
