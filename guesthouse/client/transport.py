"""HTTP/1.1 over a unix socket, synchronous, on the standard library alone.

It speaks what our own server sends: Content-Length, chunked and close-delimited bodies, and bodies
that arrive piece by piece (server-sent events, followed logs). One connection serves one request:
on a unix socket a new one costs a tenth of a millisecond and never finds the server gone.
See docs/design/0001 for why this is not a library.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from typing import Any, NamedTuple

from guesthouse import __version__
from guesthouse.client.problems import from_problem
from guesthouse.errors import DaemonUnreachable, Forbidden, Internal

USER_AGENT = f"guest/{__version__}"
CONNECT_TIMEOUT = 10
"""Seconds. A unix socket answers at once or its queue is full."""
REPLY_TIMEOUT = 120.0
"""Seconds within which an answer must begin; writes answer when the job is durable."""
STREAM_TIMEOUT = 60.0
"""Seconds of silence after which a stream is broken; the server sends a heartbeat every 15."""

_LINE = 64 << 10
_HEADERS = 200
_BODY = 64 << 20
_PIECE = 64 << 10
_JSON = "Content-Type: application/json\r\nContent-Length: "
_BYTES = "Content-Type: application/octet-stream\r\nContent-Length: "
_CONNECT_TIMEVAL = struct.pack("@ll", CONNECT_TIMEOUT, 0)


class Response(NamedTuple):
    """:ivar headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """:raise Internal: the body is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise Internal(
                f"The daemon answered something that is not JSON: {error}.",
                hint="Restart it so that it is of one version with this program: "
                "guest daemon restart",
            ) from None


class Stream:
    """An answer whose body is read while it comes. Made by `Transport.stream`."""

    def __init__(self, status: int, headers: Mapping[str, str], reader: BufferedReader) -> None:
        self.status = status
        self.headers = headers
        self._pieces = _body(headers, reader)

    def __iter__(self) -> Iterator[bytes]:
        """Pieces as they come. :raise DaemonUnreachable: the connection broke, or fell silent."""
        try:
            yield from self._pieces
        except OSError as error:
            raise _broken(error) from error

    def lines(self) -> Iterator[str]:
        """Whole lines without their ends, as UTF-8; a line over 1 MiB is cut. Raises as above."""
        rest = b""
        for piece in self:
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line.removesuffix(b"\r").decode(errors="replace")
            if len(rest) > 1 << 20:
                yield rest.decode(errors="replace")
                rest = b""
        if rest:
            yield rest.decode(errors="replace")

    def read(self, limit: int = _BODY) -> bytes:
        """The whole body. :raise DaemonUnreachable: it broke. :raise Internal: over `limit`."""
        parts: list[bytes] = []
        size = 0
        for piece in self:
            size += len(piece)
            if size > limit:
                raise Internal(f"The daemon's answer is larger than {limit} bytes.")
            parts.append(piece)
        return b"".join(parts)


class Transport:
    """Requests to the daemon that listens at `path`.

    :ivar owners: user ids that the daemon may have; None trusts whoever listens there.
    """

    def __init__(self, path: str, *, owners: frozenset[int] | None = None) -> None:
        self.path = path
        self.owners = owners

    def connect(self) -> socket.socket:
        """A connection of its own. Raises as the function `connect`."""
        return connect(self.path, owners=self.owners)

    def request(
        self, method: str, target: str, body: bytes | None = None, *, timeout: float = REPLY_TIMEOUT
    ) -> Response:
        """Send a request and return its whole answer.

        :param timeout: seconds of silence that end the wait.
        :raise DaemonUnreachable: no daemon, or the connection broke before the answer was whole.
        :raise GuesthouseError: the error that the daemon answered, of its own class.
        """
        with self.stream(method, target, body, timeout=timeout) as stream:
            return Response(stream.status, stream.headers, stream.read())

    def send(
        self,
        method: str,
        target: str,
        pieces: Iterable[bytes],
        length: int,
        *,
        timeout: float = REPLY_TIMEOUT,
    ) -> Response:
        """Send bytes of which there are too many for memory, and return the answer.

        :param length: of all `pieces` together. :param timeout: seconds of silence that end it.
        :raise DaemonUnreachable: :raise GuesthouseError: as `request`.
        """
        head = _head(method, target, "*/*", f"{_BYTES}{length}\r\n")
        with self._asked(head, pieces, timeout) as stream:
            return Response(stream.status, stream.headers, stream.read())

    @contextmanager
    def stream(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        *,
        accept: str = "*/*",
        timeout: float | None = STREAM_TIMEOUT,
    ) -> Iterator[Stream]:
        """As `request`, with the body left to be read.

        :param timeout: seconds of silence after which it is broken; None waits for ever.
        """
        about = "" if body is None else f"{_JSON}{len(body)}\r\n"
        head = _head(method, target, accept, about)
        with self._asked(head, (body or b"",), timeout) as stream:
            yield stream

    @contextmanager
    def _asked(
        self, head: bytes, pieces: Iterable[bytes], timeout: float | None
    ) -> Iterator[Stream]:
        """The answer to a request, as `stream`; `pieces` are its body."""
        with self.connect() as sock:
            sock.settimeout(timeout)
            try:
                _send_all(sock, head, pieces)
                reader = sock.makefile("rb")
                status, headers = read_head(reader)
            except OSError as error:
                raise _broken(error) from error
            with reader:
                stream = Stream(status, headers, reader)
                if status >= 400:
                    raise from_problem(stream.read(), status)
                yield stream


def _head(method: str, target: str, accept: str, about: str) -> bytes:
    """:param about: lines about the body."""
    return (
        f"{method} {target} HTTP/1.1\r\nHost: guesthouse\r\nUser-Agent: {USER_AGENT}\r\n"
        f"Accept: {accept}\r\nConnection: close\r\n{about}\r\n"
    ).encode("ascii")


def _send_all(sock: socket.socket, head: bytes, pieces: Iterable[bytes]) -> None:
    """A server that has heard enough answers early and closes: its answer says why."""
    with suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(head)
        for piece in pieces:
            sock.sendall(piece)


def connect(path: str, *, owners: frozenset[int] | None = None) -> socket.socket:
    """:raise DaemonUnreachable: nobody listens at `path`, or the caller may not open it.

    :raise Forbidden: the process that listens belongs to none of `owners`: the socket may lie in
        a folder below /tmp, where anybody can set a trap before its user comes.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A blocking connect waits while the server's queue is full; one with Python's own timeout
        # fails at once with EAGAIN (unix(7)). SO_SNDTIMEO bounds the blocking one.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _CONNECT_TIMEVAL)
        sock.connect(path)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 0))
        peer = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    except OSError as error:
        sock.close()
        raise DaemonUnreachable(
            f"No daemon answers at {path}: {error.strerror or 'no answer in time'}.",
            hint="Start it with: guest daemon start",
            socket=path,
            errno=error.errno,
        ) from error
    if owners is not None and peer not in owners:
        sock.close()
        raise Forbidden(
            f"The daemon at {path} belongs to user {peer}, whom this program does not trust.",
            hint="Set GUESTHOUSE_SOCKET to that path if you mean that daemon.",
            socket=path,
        )
    return sock


def _broken(error: OSError) -> DaemonUnreachable:
    why = "it fell silent" if isinstance(error, TimeoutError) else error.strerror or str(error)
    return DaemonUnreachable(
        f"The connection to the daemon broke: {why}.",
        hint="Look how it is with: guest daemon status",
        broken=True,
    )


def read_head(reader: BufferedReader) -> tuple[int, dict[str, str]]:
    """Status and headers of the final answer; informational ones but 101 are skipped.

    :raise OSError: the connection broke. :raise DaemonUnreachable: what answers is not HTTP.
    """
    while True:
        line = reader.readline(_LINE)
        if not line:
            raise ConnectionResetError(None, "it was closed without an answer")
        version, _, rest = line.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise DaemonUnreachable(
                "What answers at the socket does not speak HTTP.",
                hint="Check GUESTHOUSE_SOCKET, or start the daemon with: guest daemon start",
            )
        headers: dict[str, str] = {}
        for _ in range(_HEADERS):
            line = reader.readline(_LINE)
            if line in {b"\r\n", b"\n"}:
                break
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon:
                raise ConnectionResetError(None, "the headers of the answer are broken")
            headers[name.strip().lower()] = value.strip()
        else:
            raise ConnectionResetError(None, "the answer has too many headers")
        status = int(rest[:3])
        if status == 101 or status >= 200:
            return status, headers


def _body(headers: Mapping[str, str], reader: BufferedReader) -> Iterator[bytes]:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return _chunks(reader)
    length = headers.get("content-length")
    return _counted(reader, int(length)) if length and length.isdigit() else _until_close(reader)


def _chunks(reader: BufferedReader) -> Iterator[bytes]:
    while True:
        line = reader.readline(_LINE)
        try:
            size = int(line.split(b";")[0], 16)
        except ValueError:
            raise ConnectionResetError(None, "it ended in the middle of the answer") from None
        if size == 0:
            while reader.readline(_LINE).strip():  # trailers
                pass
            return
        yield from _counted(reader, size)
        reader.readline(_LINE)


def _counted(reader: BufferedReader, left: int) -> Iterator[bytes]:
    while left:
        piece = _some(reader, min(left, _PIECE))
        if not piece:
            raise ConnectionResetError(None, "it ended in the middle of the answer")
        left -= len(piece)
        yield piece


def _until_close(reader: BufferedReader) -> Iterator[bytes]:
    while piece := _some(reader, _PIECE):
        yield piece


def _some(reader: BufferedReader, limit: int) -> bytes:
    """What is there, at most `limit`; waits only while nothing is."""
    return reader.read1(limit)
