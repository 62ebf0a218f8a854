"""Files that clients send, until a job takes them or their time is over.

    <root>/<id>          what has come so far; sparse: zeroes are not written
    <root>/<id>.new      what a job makes of it

An upload is written piece by piece, at any offset, so that a client need not send holes. It is
thrown away when nobody has written to it for `LIFE` and no job needs it. Once a job has taken it,
it is frozen: what was looked at is what is used.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from guesthouse.errors import Conflict, InvalidInput, NotFound, TooLarge
from guesthouse.model.ids import is_id, new_id
from guesthouse.model.imports import Upload
from guesthouse.model.units import format_size
from guesthouse.storage.durable import (
    PRIVATE_FILE,
    RESERVE,
    filling,
    make_folder,
    no_space,
    remove_file,
    space_of,
)

LIFE = 3600.0
"""Seconds that an upload stays after the last write, unless a job needs it."""
BLOCK = 1 << 16
"""Bytes; a whole block of zeroes is not written."""
_GATHER = 4 << 20
_ZEROES = bytes(BLOCK)
_PURPOSE = "take in the upload"


class Uploads:
    """:ivar root: a private folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._writing: dict[str, int] = {}
        self._taken: set[str] = set()

    async def create(self, size: int) -> Upload:
        """A new one, full of zeroes. :raise NoSpace: :raise TooLarge: for the file system."""

        def work(upload: str) -> None:
            make_folder(self.root)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with filling(self.root, 0, _PURPOSE):
                fd = os.open(self.root / upload, flags, PRIVATE_FILE)
                try:
                    os.ftruncate(fd, size)
                except OverflowError as error:
                    raise _too_large(size) from error
                finally:
                    os.close(fd)

        upload = new_id()
        try:
            await asyncio.to_thread(work, upload)
        except BaseException as error:
            await self.remove(upload)
            if isinstance(error, OSError):
                raise _too_large(size) from error
            raise
        return await self.get(upload)

    async def get(self, upload: str) -> Upload:
        """:raise NotFound: no such upload, or not any more."""
        path = self.path(upload)
        try:
            facts = await asyncio.to_thread(path.stat)
            free = (await asyncio.to_thread(space_of, self.root)).free
        except FileNotFoundError:
            raise _gone(upload) from None
        return Upload(
            id=upload,
            size=facts.st_size,
            stored=facts.st_blocks * 512,
            expires_at=max(facts.st_mtime, facts.st_ctime) + LIFE,
            room=max(0, free - RESERVE),
        )

    def path(self, upload: str) -> Path:
        """:raise NotFound: that cannot be one's id."""
        if not is_id(upload):
            raise _gone(upload)
        return self.root / upload

    def made(self, upload: str) -> Path:
        """Where a job writes what it makes of an upload."""
        return self.path(upload).with_suffix(".new")

    async def write(self, upload: str, offset: int, pieces: AsyncIterator[bytes]) -> Upload:
        """Put what comes at `offset`; zeroes leave a hole.

        :raise NotFound: :raise NoSpace: what came so far stays. :raise Conflict: a job has it.
        :raise InvalidInput: more comes than the upload has room for.
        """
        with self._busy(upload):
            size = (await self.get(upload)).size
            fd = await asyncio.to_thread(os.open, self.path(upload), os.O_WRONLY | os.O_CLOEXEC)
            try:
                gathered = bytearray()
                async for piece in pieces:
                    gathered += piece
                    if offset + len(gathered) > size:
                        raise _beyond(size)
                    if len(gathered) >= _GATHER:
                        whole = bytes(gathered)
                        gathered.clear()
                        await asyncio.to_thread(self._put, upload, fd, offset, whole)
                        offset += len(whole)
                await asyncio.to_thread(self._put, upload, fd, offset, bytes(gathered))
            finally:
                os.close(fd)
        return await self.get(upload)

    def _put(self, upload: str, fd: int, offset: int, data: bytes) -> None:
        """:raise NotFound: it was discarded meanwhile. :raise NoSpace:"""
        if not os.fstat(fd).st_nlink:
            raise _gone(upload)
        if space_of(self.root).free < len(data) + RESERVE:
            raise no_space(self.root, len(data) + RESERVE, _PURPOSE)
        with filling(self.root, len(data), _PURPOSE):
            for start, end, empty in _stretches(data):
                # What was sent before is replaced also by zeroes.
                if empty and not _has_data(fd, offset + start, offset + end):
                    continue
                at = start
                while at < end:
                    at += os.pwrite(fd, data[at:end], offset + at)
        os.utime(fd)

    @contextmanager
    def _busy(self, upload: str) -> Iterator[None]:
        if upload in self._taken:
            raise _used(upload)
        self._writing[upload] = self._writing.get(upload, 0) + 1
        try:
            yield
        finally:
            self._writing[upload] -= 1
            if not self._writing[upload]:
                del self._writing[upload]

    def take(self, upload: str) -> Path:
        """Let nobody write it any more. May be repeated, also by the next daemon.

        :raise NotFound: :raise Conflict: it is still being written.
        """
        path = self.path(upload)
        if upload in self._writing:
            raise Conflict(
                f"The upload {upload} is still being written.", hint="Wait until it is whole."
            )
        if not path.is_file():
            raise _gone(upload)
        self._taken.add(upload)
        return path

    async def remove(self, upload: str) -> None:
        """With all that was made of it; nothing is fine."""

        def work() -> None:
            if self.root.is_dir():
                remove_file(self.made(upload))
                remove_file(self.path(upload))

        await asyncio.to_thread(work)
        self._taken.discard(upload)

    async def discard(self, upload: str) -> None:
        """What the client does not need any more; who still writes it is told that it is gone.

        :raise NotFound: :raise Conflict: a job has it.
        """
        if upload in self._taken:
            raise _used(upload)
        if not await asyncio.to_thread(self.path(upload).is_file):
            raise _gone(upload)
        await self.remove(upload)

    async def sweep(self, needed: Collection[str], life: float = LIFE) -> int:
        """Remove uploads that nobody wrote to for `life` seconds; answers how many.

        :param needed: ids of those that jobs use.
        """
        old = await asyncio.to_thread(self._old, time.time() - life)
        gone = [upload for upload in old if upload not in needed and upload not in self._writing]
        for upload in gone:
            await self.remove(upload)
        return len(gone)

    def _old(self, newest: float) -> list[str]:
        found: set[str] = set()
        with suppress(FileNotFoundError):
            for entry in os.scandir(self.root):
                facts = entry.stat(follow_symlinks=False)
                if is_id(entry.name.partition(".")[0]) and facts.st_mtime <= newest:
                    found.add(entry.name.partition(".")[0])
        return sorted(found)


def _stretches(data: bytes) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether it is all zeroes), in whole blocks."""
    start, before = 0, False
    for at in range(0, len(data), BLOCK):
        block = data[at : at + BLOCK]
        empty = block == _ZEROES[: len(block)]
        if at and empty is not before:
            yield start, at, before
            start = at
        before = empty
    if data:
        yield start, len(data), before


def _has_data(fd: int, start: int, end: int) -> bool:
    try:
        return os.lseek(fd, start, os.SEEK_DATA) < end
    except OSError as error:
        if error.errno == errno.ENXIO:  # only a hole is left
            return False
        raise


def _gone(upload: str) -> NotFound:
    return NotFound(
        f"There is no upload {upload!r}.",
        hint="Uploads that nobody uses are thrown away after an hour; send the file again.",
        upload=upload,
    )


def _used(upload: str) -> Conflict:
    return Conflict(f"The upload {upload} is being used.", hint="Send another one.")


def _beyond(size: int) -> InvalidInput:
    return InvalidInput(
        f"More arrives than the {format_size(size)} that were announced.",
        hint="Announce the whole size when the upload is made.",
        field="offset",
    )


def _too_large(size: int) -> TooLarge:
    return TooLarge(
        f"A file of {format_size(size)} cannot be: the file system does not take it.",
        field="size",
    )
