"""The socket of the API, where nobody bound it for us."""

from __future__ import annotations

import grp
import os
import socket
from pathlib import Path

from guesthouse.errors import Conflict
from guesthouse.model.folders import Mode

GROUP = "guesthouse"
"""Its members may use the machine's house, which is as good as being root."""


def bind(path: Path, mode: Mode = "personal") -> socket.socket:
    """Bind and listen. The caller holds the house, so that a stale socket is nobody's.

    It is 0600 from its first moment; that of the machine's house is then opened to its group.

    :raise Conflict: somebody listens there, as a service manager does for a daemon that it starts.
    """
    if _answers(path):
        raise Conflict(
            f"Something listens at {path} that is no daemon of this house: most likely systemd, "
            "which starts the daemon when somebody connects.",
            hint="Use the house as ever (guest ls), or stop guesthouse.socket first.",
            socket=str(path),
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    if mode == "system":
        _open_to_group(path)
    listener.listen(128)
    listener.setblocking(False)
    return listener


def _open_to_group(path: Path) -> None:
    try:
        group = grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return  # root alone
    os.chown(path, -1, group)
    path.chmod(0o660)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.setblocking(False)
        try:
            trial.connect(str(path))
        except BlockingIOError:
            return True  # its queue is full: somebody is there
        except OSError:
            return False
        return True
