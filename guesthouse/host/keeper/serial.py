"""A guest's serial port: everything it prints goes to a capped log and to attached consoles."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from .link import Link
from .logfile import RotatingLog
from .loop import READ, WRITE, Loop
from .wire import Body

_CHUNK = 64 << 10
# A console that does not read loses its oldest bytes; the guest and the log never wait for it.
MAX_BEHIND = 1 << 20
# Typed bytes the guest has not taken: beyond this the consoles' writers wait.
_MAX_TYPED = 64 << 10
MAX_REPLAY = 256 << 10


class Console:
    """One attached console: our end of a socket pair whose other end the client holds."""

    def __init__(
        self,
        loop: Loop,
        end: socket.socket,
        *,
        on_typed: Callable[[bytes], None],
        on_closed: Callable[[Console], None],
    ) -> None:
        end.setblocking(False)
        self.dropped = 0
        self._loop, self._socket = loop, end
        self._on_typed, self._on_closed = on_typed, on_closed
        self._out = bytearray()
        self._reads = True
        self._finishing = False
        self._watch()

    def write(self, data: bytes) -> None:
        self._out += data
        excess = len(self._out) - MAX_BEHIND
        if excess > 0:
            del self._out[:excess]
            self.dropped += excess
        self._flush()

    def listen(self, reads: bool) -> None:
        """Whether to take what is typed."""
        if reads != self._reads:
            self._reads = reads
            self._watch()

    def finish(self) -> None:
        """The guest is gone: hand over what is left, then close."""
        self._finishing = True
        self._flush()

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._on_closed(self)

    def _watch(self) -> None:
        if self._socket.fileno() < 0:
            return
        # While finishing, reading goes on only to notice that the client has closed its end.
        events = (READ if self._reads or self._finishing else 0) | (WRITE if self._out else 0)
        self._loop.watch(self._socket.fileno(), events, self._ready)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & READ and self._socket.fileno() >= 0:
            self._read()

    def _read(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
        elif not self._finishing:
            self._on_typed(data)

    def _flush(self) -> None:
        try:
            while self._out:
                del self._out[: self._socket.send(self._out[:_CHUNK])]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._finishing and not self._out:
            self.close()
        else:
            self._watch()


class SerialPort:
    def __init__(self, loop: Loop, path: str, log: Path, max_bytes: int, keep: int) -> None:
        self._loop = loop
        self._log = RotatingLog(log, max_bytes, keep)
        self._consoles: list[Console] = []
        self._link = Link(loop, path, on_data=self._printed, on_room=self._room)

    def attach(self, replay: int) -> int:
        """A new console; returns the client's end. `replay`: so many last bytes of the log."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        console = Console(self._loop, ours, on_typed=self._typed, on_closed=self._consoles.remove)
        self._consoles.append(console)
        if replay:
            console.write(self._log.tail(min(replay, MAX_REPLAY)))
        return theirs.detach()

    def facts(self) -> Body:
        return {
            "serial_connected": self._link.connected,
            "consoles": len(self._consoles),
            "log_lost": self._log.lost,
        }

    def finish(self) -> None:
        """The process is dead: take what it printed last, then close everything."""
        self._link.drain()
        self._link.close()
        self._log.close()
        for console in list(self._consoles):
            console.finish()

    def _printed(self, data: bytes) -> None:
        self._log.append(data)
        for console in list(self._consoles):
            console.write(data)

    def _typed(self, data: bytes) -> None:
        self._link.send(data)
        if self._link.queued > _MAX_TYPED:
            for console in self._consoles:
                console.listen(False)

    def _room(self) -> None:
        for console in self._consoles:
            console.listen(True)
