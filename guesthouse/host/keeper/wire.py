"""The keeper's end of its protocol: SOCK_SEQPACKET, one JSON object a message, fds beside it.

Request ``{"id": 7, "op": "info", "key": …}``; answer ``{"id": 7, …}`` or
``{"id": 7, "error": {"code": …, "message": …, "errno": …}}``; to subscribers also
``{"event": …}``. Sending never blocks: a client that does not read is dropped.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .loop import READ, WRITE, Loop, note

PROTOCOL = 1
# Arguments of a guest may reach 150 KiB, JSON escapes add to that; the kernel grants what it may.
BUFFER = 1 << 20
PAGE = 96 << 10
_MAX_QUEUED_BYTES = 1 << 20
_MAX_QUEUED = 512
_MAX_FDS = 253  # SCM_MAX_FD of the kernel

Body = dict[str, Any]


class Refused(Exception):
    """A request that the keeper answers with an error; `number` is an errno where there is one."""

    def __init__(self, code: str, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.number = code, message, number


def encode(body: Body) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def page(items: Iterable[Body], after: str) -> tuple[list[Body], str | None]:
    """The items whose "key" is beyond `after`, as many as fit in one message, and where to go on.

    `items` come sorted by key. The second value is None when nothing is left.
    """
    chosen: list[Body] = []
    size = 0
    for item in items:
        if item["key"] <= after:
            continue
        size += len(encode(item))
        if chosen and size > PAGE:
            return chosen, chosen[-1]["key"]
        chosen.append(item)
    return chosen, None


def peer_uid(connection: socket.socket) -> int:
    """The uid of the process at the other end of a unix socket (SO_PEERCRED)."""
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    return int(uid)


class Request:
    """One request as it came; takes care of its fds until somebody takes them over."""

    def __init__(self, peer: Peer, body: Body, fds: list[int]) -> None:
        self.peer, self.body, self.fds = peer, body, fds
        self.id = body.get("id")

    def take_fds(self) -> list[int]:
        taken, self.fds = self.fds, []
        return taken

    def close_fds(self) -> None:
        for fd in self.take_fds():
            os.close(fd)

    def answer(self, body: Body, fds: Sequence[int] = ()) -> None:
        """Answer, giving away `fds` (closed here once they are sent)."""
        self.peer.send({"id": self.id, **body}, fds)

    def refuse(self, why: Refused) -> None:
        self.close_fds()
        error: Body = {"code": why.code, "message": why.message}
        if why.number is not None:
            error["errno"] = why.number
        self.peer.send({"id": self.id, "error": error})


class Peer:
    """A connected client."""

    def __init__(
        self,
        loop: Loop,
        connection: socket.socket,
        on_request: Callable[[Request], None],
        on_gone: Callable[[Peer], None],
    ) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self.subscribed = False
        self.greeted = False
        self._loop, self._socket = loop, connection
        self._on_request, self._on_gone = on_request, on_gone
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._queued = 0
        self._open = True
        self._watch()

    def send(self, body: Body, fds: Sequence[int] = ()) -> None:
        """Queue a message and send what the socket takes now; owns `fds` from here on."""
        if not self._open:
            for fd in fds:
                os.close(fd)
            return
        data = encode(body)
        self._queue.append((data, list(fds)))
        self._queued += len(data)
        self._flush()
        if self._queued > _MAX_QUEUED_BYTES or len(self._queue) > _MAX_QUEUED:
            note("dropped a client that does not read its messages")
            self.close()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._loop.forget(self._socket.fileno())
        self._socket.close()
        for _data, fds in self._queue:
            for fd in fds:
                os.close(fd)
        self._queue.clear()
        self._on_gone(self)

    def _watch(self) -> None:
        self._loop.watch(self._socket.fileno(), READ | (WRITE if self._queue else 0), self._ready)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & READ and self._open:
            self._receive()

    def _flush(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                self._socket.sendmsg([data], rights)
            except BlockingIOError:
                break
            except OSError as error:
                note(f"dropped a client: {error}")
                self.close()
                return
            self._queue.popleft()
            self._queued -= len(data)
            for fd in fds:
                os.close(fd)
        self._watch()

    def _receive(self) -> None:
        try:
            data, ancillary, flags, _address = self._socket.recvmsg(
                BUFFER, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        fds = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        if not data:
            for fd in fds:
                os.close(fd)
            self.close()
            return
        self._dispatch(data, fds.tolist(), flags)

    def _dispatch(self, data: bytes, fds: list[int], flags: int) -> None:
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            body = None
        request = Request(self, body if isinstance(body, dict) else {}, fds)
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise Refused("bad-request", "the message or its descriptors were cut off")
            if not isinstance(body, dict):
                raise Refused("bad-request", "a message is one JSON object")
            self._on_request(request)
        except Refused as why:
            request.refuse(why)
        except Exception as defect:
            sys.__excepthook__(type(defect), defect, defect.__traceback__)
            request.refuse(Refused("internal", f"{type(defect).__name__}: {defect}"))
        finally:
            request.close_fds()
