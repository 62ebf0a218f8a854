"""Starting virtiofsd for a share. It serves one connection, QEMU's, and ends with that.

It is found again as our own file server is: by the record beside it (serving.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

from guesthouse.errors import LaunchFailed
from guesthouse.model.share import Share, Way
from guesthouse.shares import virtiofs
from guesthouse.shares.serving import FileServer, Standing, groups_of, look_at

_READY_SECONDS = 20.0
_PAUSE = 0.01
# It says so before it greets QEMU, which stands still meanwhile.
_READY = b"Client connected"
_LAST_WORDS = 300


async def start(
    program: str, share: Share, *, guest: tuple[int, int], place: Path, device: str, reason: str
) -> tuple[FileServer, socket.socket]:
    """virtiofsd with the socket that leads to it, which becomes the caller's.

    :param guest: (uid, gid) that the guest knows the sharing user by.
    :param place: where to keep the record; `.log` beside it takes its messages.
    :param device: what the guest's device is called. :param reason: why this way, for people.
    :raise InvalidInput: the folder has gone. :raise LaunchFailed: it did not come up.
    """
    source = await asyncio.to_thread(look_at, share.source)
    log = place.with_suffix(".log")

    def begin() -> tuple[subprocess.Popen[bytes], socket.socket]:
        with _listening(place) as (listening, address):
            argv = virtiofs.daemon(program, share, source.path, listening.fileno(), guest=guest)
            child = _spawn(argv, share, listening.fileno(), log)
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(address)
            except OSError:
                connection.close()
                child.kill()
                child.wait()
                raise
        return child, connection

    child, connection = await asyncio.to_thread(begin)

    async def stands() -> Standing:
        await _connected(child, log)
        return Standing(("namespace",), way=Way.VIRTIOFS, reason=reason, device=device)

    try:
        return await FileServer.take_in(child, share, stands(), place=place), connection
    except BaseException:
        connection.close()
        raise


@contextlib.contextmanager
def _listening(place: Path) -> Any:
    """A socket that listens, and the address to connect to. Nobody else can reach it: it lies in a
    folder of the house's own, and as short as one connection takes."""
    folder = os.open(place.parent, os.O_PATH | os.O_DIRECTORY)
    # Through the descriptor: the address may have 107 bytes only.
    address = f"/proc/self/fd/{folder}/{place.stem}.sock"
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            place.with_suffix(".sock").unlink(missing_ok=True)
            listening.bind(address)
            try:
                listening.listen(1)
                yield listening, address
            finally:
                place.with_suffix(".sock").unlink(missing_ok=True)
    finally:
        os.close(folder)


def _spawn(argv: list[str], share: Share, listening: int, log: Path) -> subprocess.Popen[bytes]:
    becoming: dict[str, Any] = {}
    if os.geteuid() == 0 and share.host_uid != 0:
        becoming = {
            "user": share.host_uid,
            "group": share.host_gid,
            "extra_groups": groups_of(share),
        }
    with log.open("wb") as messages:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
            pass_fds=(listening,),
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            cwd="/",
            umask=0,  # the guest's own has been applied by its kernel
            start_new_session=True,
            **becoming,
        )


async def _connected(child: subprocess.Popen[bytes], log: Path) -> None:
    """Until it has taken the connection. :raise LaunchFailed: with its own words."""
    try:
        async with asyncio.timeout(_READY_SECONDS):
            while _READY not in log.read_bytes():
                if child.poll() is not None:
                    break
                await asyncio.sleep(_PAUSE)
            else:
                return
    except TimeoutError:
        pass
    words = log.read_text("utf-8", "replace").strip()[-_LAST_WORDS:]
    raise LaunchFailed(
        f"virtiofsd did not come up: {words.splitlines()[-1] if words else 'it said nothing'}",
        hint="guest share add --way sftp does without it.",
    )
