"""Reading the logs of a guest: its serial console, its engine, what the house did with it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from guesthouse.drivers.base import ENGINE_LOG, SERIAL_LOG
from guesthouse.jobs.runner import JobRunner
from guesthouse.model.guest import Guest
from guesthouse.model.reports import LogSource
from guesthouse.operations.rooms import Rooms
from guesthouse.store.documents import GUESTS

PIECE = 64 << 10
PERIOD = 0.2
"""Seconds between looks at a followed log, while somebody follows it."""


async def read_log(
    rooms: Rooms, jobs: JobRunner, guest: Guest, source: LogSource, *, tail: int, follow: bool
) -> AsyncIterator[bytes]:
    """Pieces of the last `tail` bytes; with `follow`, what comes after, without end."""
    if source is LogSource.HOUSE:
        return _house(rooms, jobs, guest, tail)
    name = SERIAL_LOG if source is LogSource.SERIAL else ENGINE_LOG
    path = rooms.folders.guest_state(guest.id) / name
    return _file(path, tail, follow)


async def _file(path: Path, tail: int, follow: bool) -> AsyncIterator[bytes]:
    """A log that may be rotated under us: a new file of that name is read from its start."""
    fd = await asyncio.to_thread(_open_tail, path, tail)
    try:
        while True:
            while fd is not None and (piece := await asyncio.to_thread(os.read, fd, PIECE)):
                yield piece
            if not follow:
                return
            await asyncio.sleep(PERIOD)
            if _replaced(fd, path):
                if fd is not None:
                    os.close(fd)
                fd = await asyncio.to_thread(_open_tail, path, None)
    finally:
        if fd is not None:
            os.close(fd)


def _open_tail(path: Path, tail: int | None) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    if tail is not None:
        os.lseek(fd, max(0, os.fstat(fd).st_size - tail), os.SEEK_SET)
    return fd


def _replaced(fd: int | None, path: Path) -> bool:
    try:
        now = path.stat()
    except FileNotFoundError:
        return False
    if fd is None:
        return True
    then = os.fstat(fd)
    return (then.st_dev, then.st_ino) != (now.st_dev, now.st_ino)


async def _house(rooms: Rooms, jobs: JobRunner, guest: Guest, tail: int) -> AsyncIterator[bytes]:
    """The guest's jobs in order, each with its log."""
    target = GUESTS.key(guest.id)
    lines: list[str] = []
    for job in sorted(rooms.view.jobs.values(), key=lambda job: job.id):
        if job.target != target:
            continue
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.created_at))
        lines.append(f"{when}  {job.kind}  {job.state.value}  ({job.requester or 'house'})")
        lines += [f"    {line}" for line in await jobs.log_lines(job.id)]
        if job.problem is not None:
            lines.append(f"    {job.problem.message} {job.problem.hint}".rstrip())
    text = "".join(f"{line}\n" for line in lines).encode()
    yield text[-tail:] if tail else b""
