"""Listening to netfilter inside: rules that another hand changed, packets that rules logged.

Nothing is asked again and again: an idle house stays idle.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from guesthouse.errors import GuesthouseError
from guesthouse.host.keeper.logfile import RotatingLog
from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.model.document import encode
from guesthouse.model.firewalling import LoggedPacket
from guesthouse.network.rules.netlink import Logged, changes_ours, logged_packets

log = logging.getLogger(__name__)

LOG_BYTES, LOG_KEPT = 1 << 20, 1
"""Size of the firewall's log, and how many older ones of that size are kept."""
_BUFFER = 1 << 20
_SETTLE_SECONDS = 0.2
"""A change of rules comes in pieces."""
_AT_ONCE = 64
"""Datagrams read before others of the loop have their turn."""


class Listening:
    """:param changed: another hand changed our rules. :param guest_of: the id of the guest that has
    an address, or nothing. :param path: of the log; None keeps none.
    """

    def __init__(
        self, changed: Callable[[], None], guest_of: Callable[[str], str], path: Path | None
    ) -> None:
        self._changed, self._guest_of = changed, guest_of
        self._file = RotatingLog(path, LOG_BYTES, LOG_KEPT) if path is not None else None
        self._sockets: list[socket.socket] = []
        self._soon: asyncio.TimerHandle | None = None
        self._ours = 0
        self._waiting: list[bytes] = []
        self._writing: asyncio.Task[None] | None = None

    async def open(self, namespace: HouseNamespace, group: int | None) -> None:
        """Listen there from now on. :param group: of logged packets; None: the kernel has none."""
        self._shut()
        if self._file is None:
            group = None
        try:
            fds, unlogged = await namespace.netfilter(group)
        except GuesthouseError as error:
            log.warning("changes of the rules by another hand go unnoticed: %s", error)
            return
        if unlogged:
            log.warning("packets that rules log are lost: %s", os.strerror(unlogged))
        self._sockets = [socket.socket(fileno=fd) for fd in fds]
        loop = asyncio.get_running_loop()
        for each, read in zip(self._sockets, (self._rules, self._packets), strict=False):
            each.setblocking(False)
            loop.add_reader(each, read, each)

    async def close(self) -> None:
        self._shut()
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        if self._file is not None:
            self._file.close()

    @contextmanager
    def ours(self) -> Iterator[None]:
        """While this lasts, it is we who change the rules."""
        self._ours += 1
        try:
            yield
        finally:
            # The kernel told of it before the change was done, so that it is all here by now.
            for each in self._sockets[:1]:
                for _data in _datagrams(each, 1 << 20):
                    pass
            self._ours -= 1

    def _shut(self) -> None:
        for each in self._sockets:
            asyncio.get_running_loop().remove_reader(each)
            each.close()
        self._sockets = []
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None

    def _rules(self, source: socket.socket) -> None:
        touched = [data is None or changes_ours(data) for data in _datagrams(source, _AT_ONCE)]
        if self._ours or not any(touched):
            return
        if self._soon is not None:
            self._soon.cancel()
        self._soon = asyncio.get_running_loop().call_later(_SETTLE_SECONDS, self._changed)

    def _packets(self, source: socket.socket) -> None:
        for data in _datagrams(source, _AT_ONCE):
            if data is not None:
                self._waiting += [encode(self._line(one)) for one in logged_packets(data)]
        if self._waiting and (self._writing is None or self._writing.done()):
            self._writing = asyncio.create_task(self._write(), name="firewall log")

    def _line(self, packet: Logged) -> LoggedPacket:
        return LoggedPacket(
            time=time.time(),
            sender=self._guest_of(packet.source),
            receiver=self._guest_of(packet.destination),
            **packet._asdict(),
        )

    async def _write(self) -> None:
        assert self._file is not None
        while self._waiting:
            lines, self._waiting = self._waiting, []
            await asyncio.to_thread(self._file.append, b"".join(line + b"\n" for line in lines))


def _datagrams(source: socket.socket, most: int) -> Iterator[bytes | None]:
    """What is there by now. None: more came than the socket holds, and some is lost."""
    with suppress(BlockingIOError):
        for _ in range(most):
            try:
                yield source.recv(_BUFFER)
            except BlockingIOError:
                raise
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    return
                yield None
