"""A stream connection to a unix socket on which a guest's process listens."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from .loop import READ, WRITE, Loop, Timer, note

_CHUNK = 64 << 10
# Retries double from 10 ms to 250 ms and end after 10 s: a restarted keeper may meet a QEMU that
# has not yet noticed the loss of its old client, nothing takes longer.
_FIRST_RETRY = 0.01
_LONGEST_RETRY = 0.25
_GIVE_UP = 10.0
# What a dead process can have left in a socket is bounded by the kernel's buffers.
_DRAIN = 4 << 20
_MAX_PATH = 100


def connect_unix(connection: socket.socket, path: str) -> None:
    """Connect to `path` even where it is longer than a socket address can be (107 bytes)."""
    if len(os.fsencode(path)) <= _MAX_PATH:
        connection.connect(path)
        return
    folder = os.open(Path(path).parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{Path(path).name}")
    finally:
        os.close(folder)


class Link:
    """Connects, retries for a while, reads into `on_data`, sends what `send` was given.

    `on_up` is called at each connection, `on_room` when nothing is queued any more.
    """

    def __init__(
        self,
        loop: Loop,
        path: str,
        *,
        on_data: Callable[[bytes], None],
        on_up: Callable[[], None] = lambda: None,
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop, self._path = loop, path
        self._on_data, self._on_up, self._on_room = on_data, on_up, on_room
        self._socket: socket.socket | None = None
        self._out = bytearray()
        self._timer: Timer | None = None
        self._delay = _FIRST_RETRY
        self._since = self._connected_at = time.monotonic()
        self._connect()

    @property
    def connected(self) -> bool:
        return self._socket is not None

    @property
    def queued(self) -> int:
        """Bytes not yet taken by the other end."""
        return len(self._out)

    def send(self, data: bytes) -> None:
        self._out += data
        self._flush()

    def drain(self) -> None:
        """Read what is left without waiting: the process at the other end is dead."""
        taken = 0
        while self._socket is not None and taken < _DRAIN:
            size = self._read()
            if not size:
                return
            taken += size

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            connect_unix(connection, self._path)
        except OSError as error:
            connection.close()
            self._retry(str(error))
            return
        self._socket = connection
        self._connected_at = time.monotonic()
        self._watch()
        self._on_up()
        self._flush()

    def _retry(self, why: str) -> None:
        if time.monotonic() - self._since > _GIVE_UP:
            note(f"gave up connecting to {self._path}: {why}")
            return
        self._timer = self._loop.later(self._delay, self._connect)
        self._delay = min(_LONGEST_RETRY, self._delay * 2)

    def _lost(self, why: str) -> None:
        """The other end hung up while its process lives: try again, as at the start."""
        self.close()
        self._out.clear()
        # One that is accepted and hung up at once, over and over, uses up the time of one try.
        if time.monotonic() - self._connected_at > _GIVE_UP:
            self._since = time.monotonic()
            self._delay = _FIRST_RETRY
        self._retry(why)
        self._on_room()

    def _watch(self) -> None:
        if self._socket is not None:
            self._loop.watch(self._socket.fileno(), READ | (WRITE if self._out else 0), self._ready)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & READ:
            self._read()

    def _read(self) -> int:
        """One chunk; 0 when there is nothing (more) to read."""
        if self._socket is None:
            return 0
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._lost(str(error))
            return 0
        if not data:
            self._lost("hung up")
            return 0
        self._on_data(data)
        return len(data)

    def _flush(self) -> None:
        if self._socket is None or not self._out:
            return
        try:
            sent = self._socket.send(self._out)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lost(str(error))
            return
        del self._out[:sent]
        self._watch()
        if sent and not self._out:
            self._on_room()
