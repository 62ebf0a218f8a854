"""The short way of `guest ls`: one request, one table, on sockets and `json` alone."""

from __future__ import annotations

# Not `socket`: what that adds (enums, selectors, file objects) is not needed here and costs 2 ms.
import _socket
import json
import os
import sys

from guesthouse.cli.rows import guest_table, sorted_guests
from guesthouse.cli.table import colourful, terminal_width
from guesthouse.errors import GuesthouseError
from guesthouse.model.folders import socket_candidates

TIMEOUT = 10.0
"""Seconds after which the full program may find out what is wrong."""

_REQUEST = (
    b"GET /v1/guests HTTP/1.1\r\nHost: guesthouse\r\nUser-Agent: guest\r\nConnection: close\r\n\r\n"
)


def list_guests(options: list[str]) -> bool:
    """Print the guests. False when anything is not plain, with nothing printed then."""
    chosen = set(options)
    if len(options) > 1 or not chosen <= {"--json", "-q", "--quiet"}:
        return False
    body = _fetch()
    if body is None:
        return False
    if "--json" in chosen and not sys.stdout.isatty():
        text = body.decode() + "\n"
    else:
        guests = json.loads(body)
        if "--json" in chosen:
            text = json.dumps(guests, indent=2, ensure_ascii=False) + "\n"
        elif chosen:
            text = "".join(f"{name}\n" for name in sorted(guest["name"] for guest in guests))
        elif guests:
            text = guest_table(sorted_guests(guests), width=terminal_width(), colour=colourful())
        else:
            return False
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # `guest ls | head -1`: whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError:
        return False
    return True


def _fetch() -> bytes | None:
    """The JSON list, or None when no daemon of ours answers it plainly."""
    try:
        for path in socket_candidates(os.environ, uid=os.geteuid()):
            sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
            sock.settimeout(TIMEOUT)
            try:
                sock.connect(path)
            except (FileNotFoundError, ConnectionRefusedError, PermissionError):
                continue
            if not os.environ.get("GUESTHOUSE_SOCKET") and not _ours(sock):
                return None
            sock.sendall(_REQUEST)
            return _answer(sock)
    except (OSError, GuesthouseError):
        pass
    return None


def _ours(sock: _socket.socket) -> bool:
    """Whether the daemon runs as this user or as root (see `client.transport.connect`)."""
    credentials = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], sys.byteorder) in {0, os.geteuid()}


def _answer(sock: _socket.socket) -> bytes | None:
    parts = []
    while piece := sock.recv(1 << 18):
        parts.append(piece)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    status, *lines = head.lower().split(b"\r\n")
    if not status.startswith(b"http/1.1 200 "):
        return None
    for line in lines:
        name, _, value = line.partition(b":")
        # `guesthouse-notice`: something is to be said that only the full program knows how to say.
        if name in {b"transfer-encoding", b"guesthouse-notice"}:
            return None
        if name == b"content-length" and value.strip() != str(len(body)).encode():
            return None
    return body
