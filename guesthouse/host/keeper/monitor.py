"""The last word of a QEMU: a listener on its second QMP monitor (QEMU's docs/interop/qmp-spec).

It answers the greeting, asks nothing else ever, and remembers the few events that tell why a
guest ended. Bytes arrive in any portions; what is not JSON, or too long, is skipped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from .link import Link
from .loop import Loop
from .wire import Body

MAX_LINE = 1 << 20
# Panic details come from the guest; a record that holds them must fit into one message.
_MAX_DETAIL = 4096


class Lines:
    """Cuts a stream into lines. A line beyond `limit` bytes is skipped up to its newline."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        *ended, rest = data.split(b"\n")
        lines: list[bytes] = []
        for part in ended:
            if not self._skipping and len(self._rest) + len(part) <= self._limit:
                lines.append(bytes(self._rest + part))
            self._rest.clear()
            self._skipping = False
        if not self._skipping:
            self._rest += rest
            if len(self._rest) > self._limit:
                self._rest.clear()
                self._skipping = True
        return lines


class MonitorWatch:
    def __init__(self, loop: Loop, path: str) -> None:
        self.seen: Body = {
            "shutdown": None,
            "panic": None,
            "reset": None,
            "watchdog": None,
            "stopped_at": None,
            "resumed_at": None,
        }
        self._lines = Lines()
        self._negotiated = False
        self._link = Link(loop, path, on_data=self._received, on_up=self._fresh)

    @property
    def connected(self) -> bool:
        """Events are heard: QEMU sends them only after the handshake."""
        return self._link.connected and self._negotiated

    def finish(self) -> None:
        """The process is dead: hear what it said last, then close."""
        self._link.drain()
        self._link.close()

    def _fresh(self) -> None:
        self._lines = Lines()
        self._negotiated = False

    def _received(self, data: bytes) -> None:
        for line in self._lines.feed(data):
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(message, dict):
                self._understand(message)

    def _understand(self, message: Body) -> None:
        if "QMP" in message:
            self._link.send(b'{"execute":"qmp_capabilities"}\n')
            return
        if "return" in message:
            self._negotiated = True
            return
        handler = _EVENTS.get(str(message.get("event")))
        if handler is not None:
            data = message.get("data")
            handler(self.seen, data if isinstance(data, dict) else {}, _moment(message))


def _moment(message: Body) -> float:
    """When the event happened, in unix seconds: QEMU's own word for it, else now."""
    stamp = message.get("timestamp")
    if isinstance(stamp, dict):
        seconds, micro = stamp.get("seconds"), stamp.get("microseconds", 0)
        if type(seconds) is int and type(micro) is int and seconds > 0:
            return seconds + micro / 1e6
    return time.time()


def _why(data: Body, at: float) -> Body:
    return {
        "guest": data.get("guest") is True,
        "reason": str(data.get("reason", "unknown"))[:64],
        "at": at,
    }


def _shutdown(seen: Body, data: Body, at: float) -> None:
    seen["shutdown"] = _why(data, at)


def _reset(seen: Body, data: Body, at: float) -> None:
    seen["reset"] = _why(data, at)


def _panicked(seen: Body, data: Body, at: float) -> None:
    info: Any = data.get("info")
    if len(json.dumps(info)) > _MAX_DETAIL:
        info = None
    seen["panic"] = {"action": str(data.get("action", "unknown"))[:64], "info": info, "at": at}


def _watchdog(seen: Body, data: Body, at: float) -> None:
    seen["watchdog"] = {"action": str(data.get("action", "unknown"))[:64], "at": at}


def _stopped(seen: Body, _data: Body, at: float) -> None:
    seen["stopped_at"] = at


def _resumed(seen: Body, _data: Body, at: float) -> None:
    seen["resumed_at"] = at


_EVENTS: dict[str, Callable[[Body, Body, float], None]] = {
    "SHUTDOWN": _shutdown,
    "RESET": _reset,
    "GUEST_PANICKED": _panicked,
    "WATCHDOG": _watchdog,
    "STOP": _stopped,
    "RESUME": _resumed,
}
