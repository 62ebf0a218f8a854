"""A WebSocket (RFC 6455) over the daemon's unix socket that sends and receives at once.

Framing and masking are the `websockets` package's, used without its own input and output: its
synchronous connection holds one lock while it sends, and needs the same lock to receive. A command
that echoes what it reads (`cat`) then stops for ever: we cannot send because the daemon waits until
we receive, and cannot receive because we are sending. Here the lock of the protocol's state is
never held across a system call, so each direction waits for its own peer alone.
"""

from __future__ import annotations

import base64
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from io import BufferedReader

from websockets.exceptions import InvalidState
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, Protocol
from websockets.utils import accept_key

from guesthouse.client.problems import from_problem
from guesthouse.client.transport import REPLY_TIMEOUT, USER_AGENT, Stream, Transport, read_head
from guesthouse.errors import DaemonUnreachable, Internal

LARGEST_MESSAGE = 1 << 20
"""Bytes. The daemon sends frames of at most 64 KiB; more is a defect, not a reason to swallow."""

_RECEIVE = 256 << 10


class WebSocket:
    """One thread may send, or several, while one receives. Made by `open_websocket`."""

    def __init__(self, sock: socket.socket, reader: BufferedReader) -> None:
        self._socket = sock
        self._reader = reader
        self._protocol = Protocol(CLIENT, max_size=LARGEST_MESSAGE)
        self._state = threading.Lock()
        self._writing = threading.Lock()
        self._replies: deque[bytes] = deque()
        self._inbox: deque[bytes | str] = deque()
        self._parts: list[bytes] = []
        self._text = False

    def send(self, message: bytes | str) -> None:
        """Send one message; waits while the daemon does not read.

        :raise DaemonUnreachable: the connection is closed or broke.
        """
        if isinstance(message, str):
            data = message.encode()
            self._send(lambda: self._protocol.send_text(data))
        else:
            self._send(lambda: self._protocol.send_binary(message))

    def receive(self) -> bytes | str | None:
        """The next message, or None when the daemon has closed the stream as it should.

        :raise DaemonUnreachable: the connection broke, or the daemon closed it for a reason.
        """
        while not self._inbox:
            if self._protocol.close_rcvd is not None:
                # Not until the end of the connection: a daemon that closes it with something of
                # ours unread resets it (unix(7) has no lingering).
                self._check_end()
                return None
            try:
                data = self._reader.read1(_RECEIVE)
            except (OSError, ValueError) as error:  # ValueError: closed by another thread
                raise _closed(str(error)) from error
            if not data:
                self._check_end()
                return None
            with self._state:
                self._protocol.receive_data(data)
                events = self._protocol.events_received()
                self._replies.extend(self._protocol.data_to_send())
                failure = self._protocol.parser_exc
            self._flush_replies()
            if failure is not None and not isinstance(failure, EOFError):
                raise Internal(f"The daemon's stream cannot be understood: {failure}.")
            for event in events:
                if isinstance(event, Frame):
                    self._take(event)
        return self._inbox.popleft()

    def close(self) -> None:
        """Say goodbye if that is possible without waiting, and close. For the receiving thread."""
        if self._writing.acquire(blocking=False):
            try:
                with self._state:
                    self._protocol.send_close(1000)
                    out = b"".join(self._protocol.data_to_send())
                self._send_now(out)
            except InvalidState:
                pass
            finally:
                self._writing.release()
        self.abort()
        self._reader.close()
        self._socket.close()

    def abort(self) -> None:
        """Cut the connection; threads that wait for it wake up. Safe in a signal handler."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _send(self, frame: Callable[[], None]) -> None:
        try:
            with self._writing:
                with self._state:
                    frame()
                    out = self._protocol.data_to_send()
                while self._replies:  # one of them may be half sent: it comes first
                    self._socket.sendall(self._replies.popleft())
                self._socket.sendall(b"".join(out))
        except InvalidState as error:
            raise _closed(str(error)) from error
        except OSError as error:
            raise _closed(error.strerror or str(error)) from error
        self._flush_replies()

    def _flush_replies(self) -> None:
        """Send pongs and the like as far as that goes without waiting.

        The receiver must wait neither for a sender (who does this when it is through) nor for a
        full socket (see above); what is left goes out before the next message or with the next
        flush.
        """
        while self._replies and self._writing.acquire(blocking=False):
            try:
                while self._replies:
                    data = self._replies.popleft()
                    sent = self._send_now(data)
                    if sent < len(data):
                        self._replies.appendleft(data[sent:])
                        return
            finally:
                self._writing.release()

    def _send_now(self, data: bytes) -> int:
        """Bytes sent. A broken connection swallows them: the reading side reports how it ended."""
        try:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)

    def _take(self, frame: Frame) -> None:
        if frame.opcode in {Opcode.TEXT, Opcode.BINARY}:
            self._text, self._parts = frame.opcode is Opcode.TEXT, []
        elif frame.opcode is not Opcode.CONT:
            return
        self._parts.append(bytes(frame.data))
        if frame.fin:
            whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts = []
            self._inbox.append(whole.decode(errors="replace") if self._text else whole)

    def _check_end(self) -> None:
        """:raise DaemonUnreachable: the daemon did not close the stream as it should."""
        close = self._protocol.close_rcvd
        if close is None:
            raise _closed("it ended in the middle of the stream")
        if close.code not in {1000, 1005}:
            raise _closed(f"the daemon closed it ({close.code} {close.reason})".replace(" )", ")"))


def open_websocket(transport: Transport, target: str) -> WebSocket:
    """:raise DaemonUnreachable: :raise GuesthouseError: what the daemon refused it with."""
    sock = transport.connect()
    try:
        sock.settimeout(REPLY_TIMEOUT)
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET {target} HTTP/1.1\r\nHost: guesthouse\r\nUser-Agent: {USER_AGENT}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n\r\n"
        )
        sock.sendall(request.encode("ascii"))
        reader = sock.makefile("rb")
        status, headers = read_head(reader)
        if status != 101:
            raise from_problem(Stream(status, headers, reader).read(), status)
        if headers.get("sec-websocket-accept") != accept_key(key):
            raise Internal("What answers at the daemon's socket does not speak WebSocket.")
        sock.settimeout(None)
        return WebSocket(sock, reader)
    except OSError as error:
        sock.close()
        raise _closed(error.strerror or str(error)) from error
    except BaseException:
        sock.close()
        raise


def _closed(why: str) -> DaemonUnreachable:
    return DaemonUnreachable(
        f"The stream to the daemon broke: {why}.".replace("..", "."),
        hint="Look how it is with: guest daemon status",
        broken=True,
    )
