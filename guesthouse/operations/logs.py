"""Reading the logs of a guest: its serial console, its engine, what the house did with it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
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
        return _house(rooms, jobs, guest, tail, follow)
    name = SERIAL_LOG if source is LogSource.SERIAL else ENGINE_LOG
    path = rooms.folders.guest_state(guest.id) / name
    return read_file(path, tail, follow)


async def read_file(path: Path, tail: int, follow: bool) -> AsyncGenerator[bytes, None]:
    """Pieces, as of `read_log`, of a log that may be rotated under us: a new file of that name is
    read from its start."""
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


async def _house(
    rooms: Rooms, jobs: JobRunner, guest: Guest, tail: int, follow: bool
) -> AsyncIterator[bytes]:
    """The guest's jobs in order, each with its log."""
    told = _Told()
    text = await _news(rooms, jobs, guest, told)
    yield text[-tail:] if tail else b""
    while follow:
        await asyncio.sleep(PERIOD)
        if text := await _news(rooms, jobs, guest, told):
            yield text


@dataclass
class _Told:
    """What a reader of the house's log knows. :ivar lines: how many of each job's that runs.

    :ivar ended: ids of jobs that need no more words.
    """

    lines: dict[str, int] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)


async def _news(rooms: Rooms, jobs: JobRunner, guest: Guest, told: _Told) -> bytes:
    target = GUESTS.key(guest.id)
    text: list[str] = []
    fresh = [
        job for job in rooms.view.jobs.values() if job.target == target and job.id not in told.ended
    ]
    for job in sorted(fresh, key=lambda job: job.id):
        known = told.lines.get(job.id)
        lines = await jobs.log_lines(job.id)
        if known is None:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.created_at))
            text.append(f"{when}  {job.kind}  {job.state.value}  ({job.requester or 'house'})")
        text += [f"    {line}" for line in lines[known or 0 :]]
        told.lines[job.id] = len(lines)
        if not job.ended:
            continue
        told.ended.add(job.id)
        if known is not None:  # it was still at work when its first line was told
            text.append(f"    {job.kind} {job.state.value}")
        if job.problem is not None:
            text.append(f"    {job.problem.message} {job.problem.hint}".rstrip())
    return "".join(f"{line}\n" for line in text).encode()
