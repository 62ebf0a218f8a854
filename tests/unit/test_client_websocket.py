"""The WebSocket that sends and receives at once, and the streams on it."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.frames import Opcode
from websockets.utils import accept_key

from guesthouse.client.streams import STDERR, STDOUT, open_command, open_console
from guesthouse.client.transport import Transport
from guesthouse.client.websocket import open_websocket
from guesthouse.errors import DaemonUnreachable, GuesthouseError, Internal, NotFound
from guesthouse.model.reports import ExecRequest, Exit

from .fake_house import FakeHouse, fake_house
from .fake_streams import ServerLink

Serving = Callable[[Callable[[ServerLink], None]], Transport]


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    threads = []

    def make(serve: Callable[[ServerLink], None]) -> Transport:
        def run() -> None:
            connection, _ = listener.accept()
            # A reader of its own would swallow frames; the request comes in one piece.
            request = connection.recv(65536).decode()
            fields = dict(line.split(": ", 1) for line in request.split("\r\n")[1:] if line)
            key = accept_key(fields["Sec-WebSocket-Key"])
            connection.sendall(
                b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Accept: %b\r\n\r\n" % key.encode()
            )
            with connection, suppress(BrokenPipeError):  # a client may leave in the middle
                serve(ServerLink(connection))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        threads.append(thread)
        return Transport(str(tmp_path / "s"))

    yield make
    listener.close()
    for thread in threads:
        thread.join(20)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[FakeHouse]:
    with fake_house(tmp_path) as made:
        made.add("web")
        yield made


def test_echo_with_backpressure_both_ways_does_not_stop(serving: Serving) -> None:
    """The server answers each message before it reads the next, as `cat` does: unless our two
    directions are free of each other, both sides wait for ever once the buffers are full."""
    size, piece = 64 << 20, bytes(range(256)) * 240

    def echo(link: ServerLink) -> None:
        for message in link.messages():
            link.send(message)

    link = open_websocket(serving(echo), "/x")

    def send() -> None:
        for _ in range(size // len(piece)):
            link.send(piece)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    # Let the buffers fill while nobody receives.
    sender.join(1)
    got = 0
    while got < size // len(piece) * len(piece):
        message = link.receive()
        assert isinstance(message, bytes)
        got += len(message)
    sender.join(30)
    assert not sender.is_alive()
    link.close()


def test_pings_are_answered_while_a_sender_waits(serving: Serving) -> None:
    pong = threading.Event()

    def serve(link: ServerLink) -> None:
        link.ping()
        link.send("begin")
        pings_seen.wait(20)
        for frame in link.frames():
            if frame.opcode is Opcode.PONG:
                pong.set()
                return

    pings_seen = threading.Event()
    link = open_websocket(serving(serve), "/x")
    stopped = threading.Event()

    def send() -> None:
        try:
            while not stopped.is_set():
                link.send(bytes(60_000))
        except DaemonUnreachable:
            pass

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    sender.join(0.5)  # by now it waits: the server does not read
    assert link.receive() == "begin"
    pings_seen.set()
    assert pong.wait(20)
    stopped.set()
    link.abort()
    sender.join(20)


def test_text_binary_fragments_and_a_proper_end(serving: Serving) -> None:
    def serve(link: ServerLink) -> None:
        link.send("täxt")
        link.send(b"\x00\xff")
        link.protocol.send_text(b"in ", fin=False)
        link.protocol.send_continuation(b"parts", fin=True)
        link.socket.sendall(b"".join(link.protocol.data_to_send()))
        link.close()

    link = open_websocket(serving(serve), "/x")
    assert [link.receive() for _ in range(4)] == ["täxt", b"\x00\xff", "in parts", None]
    link.close()


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (lambda link: link.close(1011, "out of order"), "1011 out of order"),
        (lambda link: link.socket.shutdown(socket.SHUT_RDWR), "ended in the middle"),
    ],
)
def test_other_ends_are_errors(
    serving: Serving, end: Callable[[ServerLink], None], says: str
) -> None:
    link = open_websocket(serving(end), "/x")
    with pytest.raises(DaemonUnreachable, match=says):
        link.receive()
    with pytest.raises(DaemonUnreachable):
        for _ in range(1000):
            link.send(bytes(60_000))


def test_garbage_is_an_error(serving: Serving) -> None:
    link = open_websocket(serving(lambda link: link.socket.sendall(b"\xff\xff" * 100)), "/x")
    with pytest.raises((Internal, DaemonUnreachable)):
        link.receive()


def test_a_message_too_large_is_refused(serving: Serving) -> None:
    def serve(link: ServerLink) -> None:
        link.send(bytes(2 << 20))

    with pytest.raises((Internal, DaemonUnreachable)):
        open_websocket(serving(serve), "/x").receive()


def test_refused_handshake_is_the_daemons_error(house: FakeHouse) -> None:
    with pytest.raises(NotFound):
        open_websocket(Transport(str(house.path)), "/v1/nothing/here")


def test_not_a_websocket_at_all(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as reader:
                reader.readline()
                while reader.readline() != b"\r\n":
                    pass
                connection.sendall(b"HTTP/1.1 101 Yes\r\nSec-WebSocket-Accept: wrong\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(Internal, match="WebSocket"):
            open_websocket(Transport(str(tmp_path / "s")), "/x")


def _run(house: FakeHouse, *argv: str, **options: object) -> tuple[Exit | None, bytes, bytes]:
    request = ExecRequest(argv=argv, **{"stdin": False, **options})  # type: ignore[arg-type]  # options are the request's own
    out, err = bytearray(), bytearray()
    with open_command(Transport(str(house.path)), "web", request) as running:
        for channel, data in running.output():
            (out if channel == STDOUT else err).extend(data)
            assert channel in {STDOUT, STDERR}
        return running.exit, bytes(out), bytes(err)


def test_command_output_and_exit(house: FakeHouse) -> None:
    ended = _run(house, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert ended == (Exit(code=7, signal=None), b"out\n", b"err\n")
    assert _run(house, "sh", "-c", "kill -KILL $$")[0] == Exit(code=None, signal="KILL")
    assert house.commands[0]["argv"] == ["sh", "-c", "echo out; echo err >&2; exit 7"]


def test_command_that_cannot_run(house: FakeHouse) -> None:
    with pytest.raises(GuesthouseError, match="no such command"):
        _run(house, "no-such-command")


def test_command_both_ways(house: FakeHouse) -> None:
    data = os.urandom(5 << 20)
    with open_command(Transport(str(house.path)), "web", ExecRequest(argv=("cat",))) as running:

        def write() -> None:
            running.write(data)
            running.end_input()

        threading.Thread(target=write, daemon=True).start()
        got = hashlib.sha256()
        for _, piece in running.output():
            got.update(piece)
    assert got.digest() == hashlib.sha256(data).digest()


def test_stream_that_ends_without_a_word(serving: Serving) -> None:
    def serve(link: ServerLink) -> None:
        next(link.messages())
        link.send(json.dumps({"started": True}))
        link.close()

    with open_command(serving(serve), "web", ExecRequest(argv=("x",))) as running:
        with pytest.raises(DaemonUnreachable, match="without saying how"):
            list(running.output())


def test_console_both_ways(house: FakeHouse) -> None:
    link = open_console(Transport(str(house.path)), "web", replay=10)
    output = link.output()
    assert next(output) == b"login: "
    link.write(b"root\n")
    assert next(output) == b"<root\n>"
    link.write(b"die")
    assert list(output) == []
    link.close()
    assert ("GET", "/v1/guests/web/console?replay=10", None) in house.seen
