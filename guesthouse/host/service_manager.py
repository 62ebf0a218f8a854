"""What systemd and we have to say to each other: sockets that it passes, and how far we are.

Protocols: sd_listen_fds(3) and sd_notify(3). Both are a few lines; nothing of systemd is needed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import MutableMapping

from guesthouse.errors import InvalidInput

log = logging.getLogger(__name__)

FIRST_FD = 3
"""SD_LISTEN_FDS_START."""


class ServiceManager:
    """Whoever started this process and wants to hear from it; without one, nothing is said.

    The variables are taken out of the environment: they are meant for this process alone, and the
    keeper and the guests are none of its children that may speak for it.
    """

    def __init__(self, environment: MutableMapping[str, str], *, pid: int) -> None:
        """:param pid: ours; sockets that were meant for another process are not touched."""
        self._address = environment.pop("NOTIFY_SOCKET", "")
        meant_for = environment.pop("LISTEN_PID", "")
        count = environment.pop("LISTEN_FDS", "")
        environment.pop("LISTEN_FDNAMES", None)
        ours = meant_for == str(pid) and count.isascii() and count.isdigit()
        self._fds = range(FIRST_FD, FIRST_FD + int(count)) if ours else range(0)
        for fd in self._fds:
            os.set_inheritable(fd, False)

    @property
    def present(self) -> bool:
        return bool(self._address)

    def listener(self) -> socket.socket | None:
        """The socket that was bound for us, listening; None when we bind our own.

        :raise InvalidInput: what was passed is not one listening unix stream socket.
        """
        if not self._fds:
            return None
        passed = socket.socket(fileno=self._fds[0])
        right = (
            len(self._fds) == 1
            and (passed.family, passed.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
            and passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            and str(passed.getsockname()).startswith("/")
        )
        if not right:
            passed.detach()
            raise InvalidInput(
                "The service manager passed something else than one listening unix stream socket.",
                hint="The socket unit needs exactly one ListenStream= with a path, and Accept=no.",
                field="LISTEN_FDS",
            )
        passed.setblocking(False)
        return passed

    def ready(self) -> None:
        self._notify("READY=1")

    def stopping(self) -> None:
        self._notify("STOPPING=1")

    def says(self, text: str) -> None:
        """A line for `systemctl status`."""
        self._notify(f"STATUS={text}")

    def _notify(self, message: str) -> None:
        if not self._address:
            return
        # A leading @ stands for the NUL of an abstract address.
        address = self._address.replace("@", "\0", 1) if self._address[0] == "@" else self._address
        with contextlib.closing(
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        ) as channel:
            try:
                channel.sendto(message.encode(), address)
            except OSError as error:
                log.warning("the service manager does not hear %s: %s", message, error)
