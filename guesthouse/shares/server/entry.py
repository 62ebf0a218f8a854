"""The file server's life: told what to share, walled in, it serves its one connection to the end.

Standard input is the connection (QEMU's end of a virtio-serial port, or whatever a test holds).
Standard output gets one line of JSON once the walls stand: ``{"walls": […], "missing": […]}`` or
``{"error": …}``. It holds nothing of the daemon, which may come and go.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import wire
from .beneath import Tree
from .owners import Owners
from .session import Rules, Session
from .walls import become, raise_walls

_CHUNK = 256 << 10
_OWN_FILES = 64
"""Descriptors beside those of the client's handles; each listed folder takes two."""


def main(arguments: Sequence[str]) -> int:
    connection = socket.socket(fileno=os.dup(0))
    connection.setblocking(True)
    out = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(null, standard)
    os.close(null)
    try:
        config = json.loads(arguments[0])
        session, told = _prepare(config)
    except (OSError, ValueError, KeyError, IndexError) as error:
        _tell(out, {"error": str(error)})
        return 1
    _tell(out, told)
    try:
        serve(connection, session)
    except (wire.Broken, OSError) as error:
        print(f"share server: {error}", file=sys.stderr)  # noqa: T201  # the log of this process
        return 1
    return 0


def _prepare(config: dict[str, Any]) -> tuple[Session, dict[str, object]]:
    """Become the user, open the folder, put up the walls."""
    uid, gid = config["host"]
    become(uid, gid, config["groups"])
    os.umask(0)  # the guest's own has been applied by its kernel
    processes = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY)
    share = os.open(Path(config["source"]), os.O_PATH | os.O_DIRECTORY)
    status = os.fstat(share)
    if [status.st_dev, status.st_ino] != config["identity"]:
        raise FileNotFoundError("the folder is not the one that was looked at")
    root, walls = raise_walls(share, read_only=config["read_only"])
    if not walls.names:
        raise PermissionError(f"no wall can be put up here: {'; '.join(walls.missing)}")
    most = (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OWN_FILES) // 2
    owners = Owners((uid, gid), (config["guest"][0], config["guest"][1]))
    rules = Rules(config["read_only"], owners, most)
    told: dict[str, object] = {"walls": walls.names, "missing": walls.missing}
    return Session(Tree(root, processes), rules), told


def serve(connection: socket.socket, session: Session) -> None:
    """Until the other side hangs up. Memory is bounded: one piece read, the answers to it.

    :raise wire.Broken: what comes is no SFTP. :raise OSError: the connection broke.
    """
    held = bytearray()
    while True:
        piece = connection.recv(_CHUNK)
        if not piece:
            session.close()
            return
        held += piece
        at = 0
        while len(held) - at >= 4:
            length = int.from_bytes(held[at : at + 4])
            if not 1 <= length <= wire.MAX_PACKET:
                raise wire.Broken(f"a packet of {length} bytes")
            if len(held) - at - 4 < length:
                break
            packet = bytes(held[at + 4 : at + 4 + length])
            at += 4 + length
            connection.sendall(session.answer(packet))
        del held[:at]


def _tell(out: int, what: dict[str, object]) -> None:
    """The first and last word on standard output, which the daemon reads."""
    os.write(out, json.dumps(what).encode() + b"\n")
    os.close(out)
