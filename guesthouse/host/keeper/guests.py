"""One watched process: its pidfd, its serial port, its monitor, and the record of its end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from .logfile import read_tail
from .loop import READ, Loop
from .monitor import MonitorWatch
from .procfs import boot_id
from .serial import SerialPort
from .wire import Body, Refused

_STDERR_TAIL = 2048


class Guest:
    """A process of ours (`child`) or an adopted one. `on_end(guest, record)` is called once."""

    def __init__(
        self, key: str, pid: int, start_ticks: int, pidfd: int, *, child: bool, stderr: str | None
    ) -> None:
        self.key, self.pid, self.start_ticks, self.child = key, pid, start_ticks, child
        self.serial: SerialPort | None = None
        self.monitor: MonitorWatch | None = None
        self._pidfd = pidfd
        self._stderr = stderr

    def watch(self, loop: Loop, on_end: Callable[[Guest, Body], None]) -> None:
        def ended(_events: int) -> None:
            loop.forget(self._pidfd)
            on_end(self, self._end())

        loop.watch(self._pidfd, READ, ended)

    def close_pidfd(self) -> None:
        os.close(self._pidfd)

    def send_signal(self, number: int) -> None:
        """Raises Refused if the process has ended or the number is no signal."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            raise Refused("gone", f"the process of {self.key} has ended") from None
        except OSError as error:
            raise Refused(
                "bad-request", f"signal {number}: {error.strerror}", error.errno
            ) from None

    def facts(self) -> Body:
        facts: Body = {
            "key": self.key,
            "pid": self.pid,
            "start_ticks": self.start_ticks,
            "alive": True,
            "child": self.child,
            "serial_connected": False,
            "monitor_connected": self.monitor is not None and self.monitor.connected,
            "consoles": 0,
            "log_lost": 0,
        }
        if self.serial is not None:
            facts.update(self.serial.facts())
        if self.monitor is not None:
            facts.update(self.monitor.seen)
        return facts

    def _end(self) -> Body:
        exit_code, number = self._reap() if self.child else (None, None)
        if self.monitor is not None:
            self.monitor.finish()
        if self.serial is not None:
            self.serial.finish()
        self.close_pidfd()
        seen: Body = self.monitor.seen if self.monitor is not None else {}
        tail = read_tail(Path(self._stderr), _STDERR_TAIL) if self._stderr else b""
        return {
            "key": self.key,
            "pid": self.pid,
            "start_ticks": self.start_ticks,
            "exit_code": exit_code,
            "signal": number,
            "shutdown": seen.get("shutdown"),
            "panic": seen.get("panic"),
            "at": time.time(),
            "boot_id": boot_id(),
            "stderr_tail": tail.decode("utf-8", "replace"),
        }

    def _reap(self) -> tuple[int | None, int | None]:
        """(exit code, signal) of our child; neither if somebody else has reaped it."""
        try:
            status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        except ChildProcessError:
            return None, None
        if status is None:
            return None, None
        if status.si_code == os.CLD_EXITED:
            return status.si_status, None
        return None, status.si_status
