"""The bundle for support: what somebody who helps needs to know of a house, without its secrets.

A part that cannot be had becomes a file that says why: the bundle is for houses that are not well.
Consoles of guests are left out (they show what people did inside), and so is everything in the
folder of secrets.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import platform
import re
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from guesthouse import __version__
from guesthouse.drivers.base import ENGINE_LOG
from guesthouse.jobs.runner import JobRunner
from guesthouse.model.document import encode
from guesthouse.model.reports import HouseInfo
from guesthouse.operations.rooms import Rooms
from guesthouse.operations.survey import survey, unknown_copies

LOG_TAIL = 512 << 10
"""Bytes of the daemon's and the keeper's log."""
SHORT_TAIL = 64 << 10
"""Bytes of the log of a job, or of a guest's engine."""
JOBS, JOB_LOGS, LAYERS = 500, 100, 500
"""How many of each are in a bundle, the newest."""
PIECE = 256 << 10

_PRIVATE_KEY = re.compile(
    rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_CREDENTIALS = re.compile(rb"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/\s\"'@]+@")
log = logging.getLogger(__name__)


class Part(NamedTuple):
    """:ivar name: path in the bundle. :ivar make: its content; it may fail."""

    name: str
    make: Callable[[], Awaitable[bytes]]


async def support_bundle(rooms: Rooms, jobs: JobRunner, info: HouseInfo) -> AsyncIterator[bytes]:
    """A .tar.gz in pieces. Errors are raised by this call, before the first piece."""
    file = await asyncio.to_thread(tempfile.TemporaryFile)
    try:
        await _fill(file, parts_of(rooms, jobs, info))
    except BaseException:
        file.close()
        raise
    return _pieces(file)


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        file.seek(0)
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece


async def _fill(file: IO[bytes], parts: list[Part]) -> None:
    folder = f"guesthouse-support-{time.strftime('%Y%m%d-%H%M%S')}"
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for part in parts:
            name = part.name
            try:
                data = await part.make()
            except Exception as error:  # whatever it is that is broken, the rest is wanted
                log.warning("the support bundle lacks %s: %s", part.name, error)
                name, data = f"{part.name}.missing", f"{type(error).__name__}: {error}\n".encode()
            await asyncio.to_thread(_add, archive, f"{folder}/{name}", without_secrets(data))


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
    archive.addfile(entry, io.BytesIO(data))


def without_secrets(data: bytes) -> bytes:
    """`data` without private keys and credentials in URLs, should some have strayed into it."""
    return _CREDENTIALS.sub(rb"\g<scheme>***@", _PRIVATE_KEY.sub(b"[a private key]", data))


def parts_of(rooms: Rooms, jobs: JobRunner, info: HouseInfo) -> list[Part]:
    """What goes into a bundle."""
    view, folders = rooms.view, rooms.folders
    newest = sorted(view.jobs.values(), key=lambda job: job.id, reverse=True)
    parts = [
        Part("about.json", lambda: _json(about(rooms))),
        Part("house.json", lambda: _noun(info)),
        Part("host.json", lambda: _noun(rooms.facts())),
        Part("settings.json", lambda: _noun(rooms.settings)),
        Part("store.json", lambda: _json(_store(rooms))),
        Part("documents/guests.json", lambda: _noun(list(view.guests.values()))),
        Part("documents/images.json", lambda: _noun(list(view.images.values()))),
        Part("documents/volumes.json", lambda: _noun(list(view.volumes.values()))),
        Part("recovery.json", lambda: _recovery(rooms)),
        Part("layers.json", lambda: _layers(rooms)),
        Part("jobs.json", lambda: _noun(newest[:JOBS])),
        _log("logs/daemon.log", folders.state / "daemon.log", LOG_TAIL),
        _log("logs/keeper.log", folders.keeper_state / "keeper.log", LOG_TAIL),
    ]
    engines = {guest: folders.guest_state(guest) / ENGINE_LOG for guest in view.guests}
    parts += [
        _log(f"logs/engine/{guest}.log", path, SHORT_TAIL)
        for guest, path in engines.items()
        if path.exists()  # it was started at least once
    ]
    parts += [_job_log(jobs, job.id) for job in newest[:JOB_LOGS]]
    return parts


def about(rooms: Rooms) -> dict[str, Any]:
    """Versions and places."""
    qemu = rooms.facts().qemu
    return {
        "guesthouse": __version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "qemu": qemu.version_text if qemu else "",
        "kernel": platform.release(),
        "machine": platform.machine(),
        "made_at": time.time(),
        "uid": os.geteuid(),
        "folders": {key: str(value) for key, value in rooms.folders._asdict().items()},
    }


def _store(rooms: Rooms) -> dict[str, Any]:
    view, store = rooms.view, rooms.documents.store
    return {
        "revision": store.revision,
        "view": view.revision,
        "read_only": store.read_only or view.newer,
        "quarantined": dict(view.quarantined),
        "unknown_copies": unknown_copies(rooms),
        "revisions": dict(view.revisions),
        "pool": {"root": str(rooms.pool.root), "id": rooms.pool.identity.id},
    }


async def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"


async def _noun(value: object) -> bytes:
    return msgspec.json.format(encode(value), indent=1) + b"\n"


async def _recovery(rooms: Rooms) -> bytes:
    return await _noun((await survey(rooms)).findings())


async def _layers(rooms: Rooms) -> bytes:
    """What qemu-img says of each, or why it says nothing."""
    found: dict[str, Any] = {}
    for volume in sorted(rooms.view.volumes.values(), key=lambda v: v.id, reverse=True)[:LAYERS]:
        try:
            found[volume.id] = msgspec.to_builtins(await rooms.pool.info(volume))
        except Exception as error:
            found[volume.id] = {"error": str(error)}
    space = await rooms.pool.space()
    return await _json({"layers": found, "space": space._asdict()})


def _job_log(jobs: JobRunner, job_id: str) -> Part:
    async def make() -> bytes:
        text = "".join(f"{line}\n" for line in await jobs.log_lines(job_id)).encode()
        return text[-SHORT_TAIL:]

    return Part(f"logs/jobs/{job_id}.log", make)


def _log(name: str, path: Path, tail: int) -> Part:
    async def make() -> bytes:
        return await asyncio.to_thread(_tail, path, tail)

    return Part(name, make)


def _tail(path: Path, size: int) -> bytes:
    """The last `size` bytes, from the beginning of a line on."""
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - size)
        file.seek(start)
        data = file.read(size)
    return data.partition(b"\n")[2] if start else data
