"""What the keeper does when asked: one method per operation of the protocol."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from . import fields
from .child import Command, Failure, start
from .fdstore import FdStore
from .guests import Guest
from .logfile import open_stderr
from .loop import READ, Loop
from .monitor import MonitorWatch
from .procfs import read_stat, runs
from .records import Records
from .serial import MAX_REPLAY, SerialPort
from .wire import PROTOCOL, Body, Peer, Refused, Request, page, peer_uid

_DEFAULT_LOG_BYTES = 1 << 20
_DEFAULT_LOG_KEEP = 3


def _log_path(section: Body) -> Path:
    path = Path(fields.text(section, "log"))
    if not path.is_absolute():
        raise Refused("bad-request", "the serial log's path must be absolute")
    return path


class Service:
    def __init__(self, loop: Loop, state: Path, listener: socket.socket, nofile: tuple[int, int]):
        self._loop, self._listener, self._nofile = loop, listener, nofile
        self._started = time.time()
        self._records = Records(loop, state / "exits")
        self._store = FdStore()
        self._guests: dict[str, Guest] = {}
        self._starting: set[str] = set()
        self._peers: set[Peer] = set()
        self._ops: dict[str, Callable[[Request], None]] = {
            "hello": self._hello,
            "spawn": self._spawn,
            "adopt": self._adopt,
            "list": self._list,
            "info": self._info,
            "console": self._console,
            "signal": self._signal,
            "subscribe": self._subscribe,
            "exits": self._exits,
            "forget": self._forget,
            "put_fd": self._put_fd,
            "get_fd": self._get_fd,
            "drop_fd": self._drop_fd,
            "fds": self._fds,
            "quit": self._quit,
        }
        loop.watch(listener.fileno(), READ, self._accept)

    def close(self) -> None:
        """Last try to write what is pending; guests live on."""
        self._records.flush()
        for peer in list(self._peers):
            peer.close()

    def _accept(self, _events: int) -> None:
        try:
            connection, _address = self._listener.accept()
        except OSError:
            # The client gave up already, or there are no descriptors left for it: it will see.
            return
        if peer_uid(connection) not in (0, os.geteuid()):
            connection.close()
            return
        self._peers.add(Peer(self._loop, connection, self._requested, self._peers.discard))

    def _requested(self, request: Request) -> None:
        op = request.body.get("op")
        action = self._ops.get(op) if isinstance(op, str) else None
        if action is None:
            raise Refused("unknown-op", f"this keeper (protocol {PROTOCOL}) knows no {op!r}")
        if action != self._hello and not request.peer.greeted:
            raise Refused("protocol", "the first message must be hello")
        action(request)

    # --- the connection -----------------------------------------------------------------------

    def _hello(self, request: Request) -> None:
        wanted = request.body.get("protocol")
        if type(wanted) is not int or not 1 <= wanted <= PROTOCOL:
            raise Refused("protocol", f"this keeper speaks protocol {PROTOCOL}, not {wanted!r}")
        request.peer.greeted = True
        request.answer({"protocol": PROTOCOL, "pid": os.getpid(), "started": self._started})

    def _subscribe(self, request: Request) -> None:
        request.peer.subscribed = True
        request.answer({})

    def _quit(self, request: Request) -> None:
        alive = sorted({*self._guests, *self._starting})
        if alive and request.body.get("force") is not True:
            raise Refused("alive", f"{len(alive)} processes are alive, the first is {alive[0]}")
        request.answer({})
        self._loop.stop()

    # --- processes ----------------------------------------------------------------------------

    def _spawn(self, request: Request) -> None:
        body = request.body
        key = self._new_key(body)
        argv = fields.texts(body, "argv")
        if not argv:
            raise Refused("bad-request", "'argv' is empty")
        targets = fields.targets(body, len(request.fds))
        env = fields.environment(body)
        cwd = fields.optional_text(body, "cwd") or "/"
        stderr = fields.text(body, "stderr")
        self._check_channels(body)
        try:
            stderr_fd = open_stderr(Path(stderr))
        except OSError as error:
            raise Refused("launch-failed", f"{stderr}: {error.strerror}", error.errno) from None
        command = Command(
            argv=argv,
            env=env,
            fds=request.take_fds(),
            targets=targets,
            stderr=stderr_fd,
            cwd=cwd,
            nofile=self._nofile,
        )

        def done(pid: int, failure: Failure | None) -> None:
            self._starting.discard(key)
            if failure is not None:
                os.close(pidfd)
                what = argv[0] if failure.step == "exec" else failure.step
                reason = os.strerror(failure.number) if failure.number else "failed"
                message = f"cannot start {what}: {reason}"
                request.refuse(Refused("launch-failed", message, failure.number or None))
                return
            ticks = read_stat(pid)[1]
            guest = Guest(key, pid, ticks, pidfd, child=True, stderr=stderr)
            self._keep(guest, body)
            request.answer({"pid": pid, "start_ticks": ticks})

        _pid, pidfd = start(self._loop, command, done)
        self._starting.add(key)

    def _adopt(self, request: Request) -> None:
        body = request.body
        pid = fields.number(body, "pid", 2, 1 << 30)
        ticks = fields.number(body, "start_ticks", 0, 1 << 62)
        known = self._guests.get(fields.key(body))
        if known is not None and (known.pid, known.start_ticks) == (pid, ticks):
            request.answer({"pid": pid, "start_ticks": ticks})
            return
        key = self._new_key(body)
        stderr = fields.optional_text(body, "stderr")
        self._check_channels(body)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            raise Refused("gone", f"there is no process {pid}") from None
        if not runs(pid, ticks):
            os.close(pidfd)
            raise Refused("gone", f"process {pid} that began at tick {ticks} has ended")
        self._keep(Guest(key, pid, ticks, pidfd, child=False, stderr=stderr), body)
        request.answer({"pid": pid, "start_ticks": ticks})

    def _new_key(self, body: Body) -> str:
        key = fields.key(body)
        if key in self._guests or key in self._starting:
            raise Refused("exists", f"{key} has a process already")
        if key in self._records:
            raise Refused("exists", f"the exit record of {key} has not been forgotten yet")
        return key

    @staticmethod
    def _check_channels(body: Body) -> None:
        """Refuse wrong `serial` and `monitor` sections before anything is done."""
        serial, monitor = fields.section(body, "serial"), fields.section(body, "monitor")
        if serial is not None:
            fields.text(serial, "socket")
            _log_path(serial)
            fields.number(serial, "max_bytes", 4096, 1 << 40, _DEFAULT_LOG_BYTES)
            fields.number(serial, "keep", 0, 100, _DEFAULT_LOG_KEEP)
        if monitor is not None:
            fields.text(monitor, "socket")

    def _keep(self, guest: Guest, body: Body) -> None:
        self._guests[guest.key] = guest
        serial, monitor = fields.section(body, "serial"), fields.section(body, "monitor")
        if serial is not None:
            guest.serial = SerialPort(
                self._loop,
                fields.text(serial, "socket"),
                _log_path(serial),
                fields.number(serial, "max_bytes", 4096, 1 << 40, _DEFAULT_LOG_BYTES),
                fields.number(serial, "keep", 0, 100, _DEFAULT_LOG_KEEP),
            )
        if monitor is not None:
            guest.monitor = MonitorWatch(self._loop, fields.text(monitor, "socket"))
        guest.watch(self._loop, self._ended)

    def _ended(self, guest: Guest, record: Body) -> None:
        del self._guests[guest.key]
        self._records.add(record)
        for peer in list(self._peers):
            if peer.subscribed:
                peer.send({"event": "exit", "record": record})

    def _guest(self, body: Body) -> Guest:
        key = fields.key(body)
        guest = self._guests.get(key)
        if guest is None:
            raise Refused("unknown-key", f"{key} has no living process here")
        return guest

    def _list(self, request: Request) -> None:
        after = fields.optional_text(request.body, "after") or ""
        facts = (self._guests[key].facts() for key in sorted(self._guests))
        found, following = page(facts, after)
        request.answer({"processes": found, "next": following})

    def _info(self, request: Request) -> None:
        request.answer({"process": self._guest(request.body).facts()})

    def _console(self, request: Request) -> None:
        guest = self._guest(request.body)
        if guest.serial is None:
            raise Refused("no-serial", f"{guest.key} was started without a serial port")
        replay = fields.number(request.body, "replay", 0, MAX_REPLAY, 0)
        request.answer({}, [guest.serial.attach(replay)])

    def _signal(self, request: Request) -> None:
        self._guest(request.body).send_signal(fields.number(request.body, "signal", 0, 64))
        request.answer({})

    # --- records of exits ---------------------------------------------------------------------

    def _exits(self, request: Request) -> None:
        self._records.flush()
        after = fields.optional_text(request.body, "after") or ""
        found, following = page(self._records.all(), after)
        request.answer({"records": found, "next": following, "unwritten": self._records.pending})

    def _forget(self, request: Request) -> None:
        key = fields.key(request.body)
        if key not in self._records:
            raise Refused("unknown-key", f"there is no exit record of {key}")
        try:
            self._records.forget(key)
        except OSError as error:
            raise Refused("storage", f"cannot delete the record: {error}", error.errno) from None
        request.answer({})

    # --- kept descriptors ---------------------------------------------------------------------

    def _put_fd(self, request: Request) -> None:
        name = fields.text(request.body, "name")
        if len(name) > 128 or len(request.fds) != 1:
            raise Refused("bad-request", "a name of up to 128 characters and one descriptor")
        self._store.put(name, request.take_fds()[0])
        request.answer({})

    def _get_fd(self, request: Request) -> None:
        request.answer({}, [self._store.copy(fields.text(request.body, "name"))])

    def _drop_fd(self, request: Request) -> None:
        self._store.drop(fields.text(request.body, "name"))
        request.answer({})

    def _fds(self, request: Request) -> None:
        after = fields.optional_text(request.body, "after") or ""
        found, following = page(self._store.describe(), after)
        request.answer({"fds": found, "next": following})
