"""Files on their way in: whole, sparse, frozen once they are used, gone when nobody wants them."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from guesthouse.errors import Conflict, InvalidInput, NoSpace, NotFound, TooLarge
from guesthouse.model.ids import new_id
from guesthouse.model.imports import Upload
from guesthouse.storage import uploads as module
from guesthouse.storage.durable import Space
from guesthouse.storage.uploads import BLOCK, LIFE, Uploads

MIB = 1 << 20


@pytest.fixture
def uploads(tmp_path: Path) -> Iterator[Uploads]:
    yield Uploads(tmp_path / "uploads")


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def test_a_file_arrives_whole_in_any_order(uploads: Uploads) -> None:
    data = os.urandom(3 * MIB)
    upload = await uploads.create(len(data))
    assert (upload.size, upload.stored) == (len(data), 0)
    half = len(data) // 2 + 7
    await uploads.write(upload.id, half, pieces(data[half:]))
    parts = [data[at : min(at + 65_537, half)] for at in range(0, half, 65_537)]
    after = await uploads.write(upload.id, 0, pieces(*parts))
    assert uploads.path(upload.id).read_bytes() == data
    assert after.stored >= len(data)
    assert uploads.path(upload.id).stat().st_mode & 0o777 == 0o600
    assert uploads.root.stat().st_mode & 0o777 == 0o700


async def test_zeroes_take_no_room(uploads: Uploads) -> None:
    data = bytes(8 * MIB) + b"x" * BLOCK + bytes(8 * MIB) + b"the end"
    upload = await uploads.create(len(data))
    after = await uploads.write(upload.id, 0, pieces(data))
    assert uploads.path(upload.id).read_bytes() == data
    assert after.stored <= 4 * BLOCK


async def test_what_is_never_sent_is_zeroes(uploads: Uploads) -> None:
    upload = await uploads.create(4 * MIB)
    await uploads.write(upload.id, MIB, pieces(b"middle"))
    assert uploads.path(upload.id).read_bytes() == bytes(MIB) + b"middle".ljust(3 * MIB, b"\0")


async def test_zeroes_replace_what_was_sent_before(uploads: Uploads) -> None:
    upload = await uploads.create(4 * BLOCK)
    await uploads.write(upload.id, 0, pieces(b"x" * (4 * BLOCK)))
    await uploads.write(upload.id, BLOCK, pieces(bytes(BLOCK)))
    found = uploads.path(upload.id).read_bytes()
    assert found == b"x" * BLOCK + bytes(BLOCK) + b"x" * (2 * BLOCK)


async def test_no_more_than_announced(uploads: Uploads) -> None:
    upload = await uploads.create(10)
    with pytest.raises(InvalidInput, match="announced"):
        await uploads.write(upload.id, 8, pieces(b"abc"))
    with pytest.raises(InvalidInput, match="announced"):
        await uploads.write(upload.id, 1 << 50, pieces(b"a"))
    assert uploads.path(upload.id).stat().st_size == 10


async def test_more_than_a_file_system_can_hold(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    truncate = os.ftruncate

    def bounded(fd: int, size: int) -> None:  # as ext4 is; a tmpfs on /tmp takes any size
        if size > 1 << 44:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        truncate(fd, size)

    monkeypatch.setattr(module.os, "ftruncate", bounded)
    with pytest.raises(TooLarge):
        await uploads.create((1 << 63) - 1)
    assert not list(uploads.root.iterdir())


async def test_a_full_disk(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = await uploads.create(MIB)
    monkeypatch.setattr(module, "space_of", lambda _: Space(1 << 30, MIB))
    with pytest.raises(NoSpace, match="take in the upload"):
        await uploads.write(upload.id, 0, pieces(b"x" * MIB))
    found = await uploads.get(upload.id)
    assert (found.stored, found.room) == (0, 0)


@pytest.mark.parametrize("id", ["", "..", "../secrets/x", "nobody", new_id() + ".new", new_id()])
async def test_ids_are_ids(uploads: Uploads, id: str) -> None:
    await uploads.create(1)
    for call in (uploads.get, uploads.discard):
        with pytest.raises(NotFound):
            await call(id)
    with pytest.raises(NotFound):
        await uploads.write(id, 0, pieces(b"x"))
    with pytest.raises(NotFound):
        uploads.take(id)


async def test_what_a_job_has_is_frozen(uploads: Uploads) -> None:
    upload = await uploads.create(10)
    assert uploads.take(upload.id) == uploads.take(upload.id) == uploads.path(upload.id)
    with pytest.raises(Conflict, match="being used"):
        await uploads.write(upload.id, 0, pieces(b"x"))
    with pytest.raises(Conflict, match="being used"):
        await uploads.discard(upload.id)
    await uploads.remove(upload.id)
    with pytest.raises(NotFound):
        await uploads.get(upload.id)


async def half_written(uploads: Uploads, upload: str) -> tuple[asyncio.Task[Upload], asyncio.Event]:
    """A write of `ab` that has sent its first half; the event lets it send the other."""
    first, gate = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"a"
        first.set()
        await gate.wait()
        yield b"b"

    writing = asyncio.create_task(uploads.write(upload, 0, slow()))
    await first.wait()
    return writing, gate


async def test_what_is_being_written_cannot_be_used(uploads: Uploads) -> None:
    upload = await uploads.create(10)
    writing, gate = await half_written(uploads, upload.id)
    with pytest.raises(Conflict, match="still being written"):
        uploads.take(upload.id)
    assert await uploads.sweep((), life=-1) == 0
    gate.set()
    await writing
    assert uploads.take(upload.id).read_bytes().startswith(b"ab")


async def test_what_is_discarded_while_it_is_written(uploads: Uploads) -> None:
    """A client that was interrupted may ask before the house has seen its connection end."""
    upload = await uploads.create(10)
    writing, gate = await half_written(uploads, upload.id)
    await uploads.discard(upload.id)
    assert not list(uploads.root.iterdir())
    gate.set()
    with pytest.raises(NotFound):
        await writing
    assert not list(uploads.root.iterdir())


async def test_a_sender_that_breaks_off_leaves_it_usable(uploads: Uploads) -> None:
    upload = await uploads.create(10)

    async def broken() -> AsyncIterator[bytes]:
        yield b"abc"
        raise InvalidInput("The request ended before its body did.")

    with pytest.raises(InvalidInput):
        await uploads.write(upload.id, 0, broken())
    await uploads.write(upload.id, 0, pieces(b"again"))
    assert uploads.take(upload.id).read_bytes() == b"again".ljust(10, b"\0")


async def test_sweeping(uploads: Uploads) -> None:
    assert await uploads.sweep(()) == 0  # no folder yet
    old, needed, young = [(await uploads.create(10)).id for _ in range(3)]
    uploads.made(old).write_bytes(b"half of a conversion")
    (uploads.root / "README").write_text("not ours")
    past = time.time() - LIFE - 5
    for path in (
        uploads.path(old),
        uploads.made(old),
        uploads.path(needed),
        uploads.root / "README",
    ):
        os.utime(path, (past, past))
    assert await uploads.sweep({needed}) == 1
    left = sorted(path.name for path in uploads.root.iterdir())
    assert left == sorted(["README", needed, young])


async def test_it_says_when_it_goes(uploads: Uploads) -> None:
    upload = await uploads.create(10)
    assert time.time() < upload.expires_at <= time.time() + LIFE + 5
