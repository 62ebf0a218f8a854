"""HTTP over a unix socket, against a server that sends what the test wants, byte by byte."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from guesthouse.client.sse import events
from guesthouse.client.transport import Transport
from guesthouse.errors import (
    DaemonUnreachable,
    Forbidden,
    GuesthouseError,
    Internal,
    PortTaken,
)

Scripted = Callable[..., Transport]


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Scripted]:
    """A function that makes a server which answers these pieces and closes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    threads: list[threading.Thread] = []

    def make(*pieces: bytes, requests: list[bytes] | None = None) -> Transport:
        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                got = _request(connection)
                if requests is not None:
                    requests.append(got)
                with suppress(BrokenPipeError):  # a client may leave in the middle
                    for piece in pieces:
                        connection.sendall(piece)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        threads.append(thread)
        return Transport(str(tmp_path / "s"))

    yield make
    listener.close()
    for thread in threads:
        thread.join(10)


def _request(connection: socket.socket) -> bytes:
    """Head and body, in however many pieces they come."""
    got = connection.recv(65536)
    while b"\r\n\r\n" not in got:
        got += connection.recv(65536)
    head, _, body = got.partition(b"\r\n\r\n")
    counted = re.search(rb"Content-Length: (\d+)", head)
    while counted and len(body) < int(counted[1]):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def test_counted_body_in_small_pieces(scripted: Scripted) -> None:
    asked: list[bytes] = []
    pieces = [b"HTTP/1.1 200 OK\r\nContent-", b'Length: 10\r\nX-A:  b \r\n\r\n{"a"', b":  1} "]
    response = scripted(*pieces, requests=asked).request("POST", "/v1/x", b"{}")
    assert (response.status, response.headers["x-a"], response.json()) == (200, "b", {"a": 1})
    head, _, body = asked[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/x HTTP/1.1\r\n")
    assert b"\r\nUser-Agent: guest/" in head
    assert b"\r\nContent-Length: 2" in head
    assert body == b"{}"


def test_chunked_body_with_extension_and_trailer(scripted: Scripted) -> None:
    transport = scripted(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nab",
        b"c\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n",
    )
    assert transport.request("GET", "/").body == b"abc0123456789"


def test_body_until_close_after_informational_answers(scripted: Scripted) -> None:
    transport = scripted(b"HTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\nall", b" of it")
    assert transport.request("GET", "/").body == b"all of it"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n",
    ],
)
def test_cut_or_broken_answers_are_no_answers(scripted: Scripted, answer: bytes) -> None:
    with pytest.raises(DaemonUnreachable) as caught:
        scripted(answer).request("GET", "/")
    assert caught.value.detail["broken"]


def test_something_else_than_http(scripted: Scripted) -> None:
    with pytest.raises(DaemonUnreachable, match="does not speak HTTP"):
        scripted(b"SSH-2.0-OpenSSH\r\n").request("GET", "/")


def test_silence_is_noticed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(DaemonUnreachable, match="silent"):
            Transport(str(tmp_path / "s")).request("GET", "/", timeout=0.05)


def _problem(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def test_problem_becomes_its_class(scripted: Scripted) -> None:
    body = json.dumps(
        {"code": "port-taken", "detail": "8080 is taken.", "hint": "Use 8081.", "status": 409,
         "context": {"holder": "nginx"}}
    ).encode()  # fmt: skip
    with pytest.raises(PortTaken) as caught:
        scripted(_problem(409, body)).request("GET", "/")
    error = caught.value
    assert (error.message, error.hint, error.detail) == (
        "8080 is taken.",
        "Use 8081.",
        {"holder": "nginx"},
    )


def test_problem_of_a_newer_daemon_keeps_its_words(scripted: Scripted) -> None:
    body = json.dumps({"code": "moon-phase", "detail": "Not tonight.", "status": 409}).encode()
    with pytest.raises(GuesthouseError, match="Not tonight") as caught:
        scripted(_problem(409, body)).request("GET", "/")
    assert type(caught.value) is GuesthouseError


@pytest.mark.parametrize("body", [b"oops <html>", b'["list"]', b"{}", b"\xff\xfe"])
def test_error_without_problem_is_internal(scripted: Scripted, body: bytes) -> None:
    with pytest.raises(Internal, match="500"):
        scripted(_problem(500, body)).request("GET", "/")


def test_answer_that_is_not_json(scripted: Scripted) -> None:
    with pytest.raises(Internal, match="not JSON"):
        scripted(_problem(200, b"<html>")).request("GET", "/").json()


@pytest.mark.parametrize("kind", ["missing", "stale", "not a socket"])
def test_nobody_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "stale":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    elif kind == "not a socket":
        path.write_text("")
    with pytest.raises(DaemonUnreachable) as caught:
        Transport(str(path)).request("GET", "/")
    assert str(path) in caught.value.message
    assert "guest daemon start" in caught.value.hint


def test_a_strangers_daemon_is_refused(scripted: Scripted, tmp_path: Path) -> None:
    scripted(b"")
    path = str(tmp_path / "s")
    with pytest.raises(Forbidden, match="does not trust"):
        Transport(path, owners=frozenset({os.geteuid() + 1})).request("GET", "/")
    Transport(path, owners=frozenset({os.geteuid()})).connect().close()


def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    """With a non-blocking connect, the sixth of these clients would fail at once."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen(1)
    answers: list[int] = []

    def ask() -> None:
        answers.append(Transport(str(tmp_path / "s")).request("GET", "/").status)

    clients = [threading.Thread(target=ask) for _ in range(8)]
    for client in clients:
        client.start()
    for _ in clients:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    for client in clients:
        client.join(30)
    listener.close()
    assert answers == [200] * 8


def test_lines_across_pieces(scripted: Scripted) -> None:
    transport = scripted(b"HTTP/1.1 200 OK\r\n\r\none\r\ntw", b"o\n\nthr", "ée".encode())
    with transport.stream("GET", "/") as stream:
        assert list(stream.lines()) == ["one", "two", "", "thrée"]


def test_events_follow_the_specification() -> None:
    lines = [": hi", "", "event: a", "data: 1", "data:2", "", "data: plain", "", "id: 7", "",
             "event: lost", "data: no end"]  # fmt: skip
    assert list(events(lines)) == [("a", "1\n2"), ("message", "plain")]
