"""WebSockets of the house for tests (see `fake_house`): consoles, and commands on this host."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from fcntl import ioctl
from typing import TYPE_CHECKING, Any, ClassVar

from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER, Protocol

from guesthouse.errors import InvalidInput

if TYPE_CHECKING:
    from .fake_house import FakeHouse


class ServerLink:
    """The server's end of a WebSocket: blocking, each direction at its own pace."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.protocol = Protocol(SERVER, max_size=1 << 20)
        self.lock = threading.Lock()
        self.writing = threading.Lock()
        self.inbox: list[bytes | str] = []

    def send(self, message: bytes | str) -> None:
        with self.writing:
            with self.lock:
                if isinstance(message, str):
                    self.protocol.send_text(message.encode())
                else:
                    self.protocol.send_binary(message)
                out = b"".join(self.protocol.data_to_send())
            self.socket.sendall(out)

    def ping(self) -> None:
        with self.writing:
            with self.lock:
                self.protocol.send_ping(b"alive?")
                out = b"".join(self.protocol.data_to_send())
            self.socket.sendall(out)

    def frames(self) -> Iterator[Frame]:
        while True:
            try:
                data = self.socket.recv(65536)
            except OSError:
                return
            if not data:
                return
            with self.lock:
                self.protocol.receive_data(data)
                events = [e for e in self.protocol.events_received() if isinstance(e, Frame)]
            for event in events:
                if event.opcode is Opcode.CLOSE:
                    return
                yield event

    def messages(self) -> Iterator[bytes | str]:
        for frame in self.frames():
            if frame.opcode is Opcode.TEXT:
                yield bytes(frame.data).decode()
            elif frame.opcode is Opcode.BINARY:
                yield bytes(frame.data)

    def close(self, code: int = 1000, reason: str = "") -> None:
        try:
            with self.writing, self.lock:
                self.protocol.send_close(code, reason)
                self.socket.sendall(b"".join(self.protocol.data_to_send()))
            self.socket.shutdown(socket.SHUT_WR)
        except Exception:
            pass  # closed by the other side already


def serve_console(link: ServerLink, house: FakeHouse) -> None:
    link.send(b"login: ")
    for message in link.messages():
        assert isinstance(message, bytes)
        house.console_received.extend(message)
        if b"die" in message:
            return
        link.send(b"<" + message + b">")


def run_command(link: ServerLink, house: FakeHouse, ref: str) -> None:
    messages = link.messages()
    request = json.loads(next(messages))
    house.commands.append(request)
    house.guest(ref)
    if request["argv"][:1] == ["no-such-command"]:
        raise InvalidInput("The guest has no such command.")
    _Running(link, house, request).serve(messages)


class _Running:
    """A real process in the place of the guest's."""

    environment: ClassVar[dict[str, str]] = {"PATH": os.environ["PATH"], "LC_ALL": "C"}

    def __init__(self, link: ServerLink, house: FakeHouse, request: dict[str, Any]) -> None:
        self.link = link
        self.tty = request["tty"]
        self.master = -1
        argv = request["argv"] or ["/bin/sh"]
        options: dict[str, Any] = {
            "cwd": house.root,
            "env": {**self.environment, **request["env"]},
            "start_new_session": True,
        }
        if self.tty:
            self.master, slave = pty.openpty()
            self.resize(self.tty["columns"], self.tty["rows"])
            options["preexec_fn"] = lambda: ioctl(0, termios.TIOCSCTTY, 0)
            self.process = subprocess.Popen(
                argv, stdin=slave, stdout=slave, stderr=slave, **options
            )
            os.close(slave)
        else:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE if request["stdin"] else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                **options,
            )

    def resize(self, columns: int, rows: int) -> None:
        ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def serve(self, messages: Iterator[bytes | str]) -> None:
        self.link.send('{"started": true}')
        if self.tty:
            sources = [(self.master, 1)]
        else:
            assert self.process.stdout is not None
            assert self.process.stderr is not None
            sources = [(self.process.stdout.fileno(), 1), (self.process.stderr.fileno(), 2)]
        pumps = [threading.Thread(target=self._pump, args=source) for source in sources]
        for pump in pumps:
            pump.start()
        threading.Thread(target=self._listen, args=(messages,), daemon=True).start()
        for pump in pumps:
            pump.join()
        code = self.process.wait()
        name = signal.Signals(-code).name.removeprefix("SIG") if code < 0 else None
        ended = {"code": None if name else code, "signal": name}
        self.link.send(json.dumps({"exit": ended}))

    def _pump(self, fd: int, channel: int) -> None:
        try:
            while data := os.read(fd, 60_000):
                self.link.send(bytes([channel]) + data)
        except Exception:
            self.process.kill()  # a closed terminal, or a client that has gone

    def _listen(self, messages: Iterator[bytes | str]) -> None:
        for message in messages:
            if isinstance(message, bytes):
                self._input(message[1:])
                continue
            control = json.loads(message)
            if "eof" in control and self.process.stdin:
                self.process.stdin.close()
            if "signal" in control:
                os.killpg(self.process.pid, getattr(signal, f"SIG{control['signal']}"))
            if "resize" in control:
                self.resize(*control["resize"])
        self.process.kill()

    def _input(self, data: bytes) -> None:
        try:
            if self.tty:
                os.write(self.master, data)
            elif self.process.stdin:
                self.process.stdin.write(data)
                self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # the command reads no more
