"""Logs that are followed: what is written later comes, whatever log it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from guesthouse.errors import NotFound
from guesthouse.model.reports import EmptyRequest, LogSource, StartRequest
from tests.api.api_house import ApiHouse

DEADLINE = 30.0


async def _until(pieces: AsyncIterator[bytes], wanted: bytes) -> bytes:
    seen = b""
    async with asyncio.timeout(DEADLINE):
        async for piece in pieces:
            seen += piece
            if wanted in seen:
                return seen
    raise AssertionError(f"it ended without {wanted!r}: {seen!r}")


async def test_the_console_s_log_also_over_its_rotation(house: ApiHouse) -> None:
    await house.guest("web", start=False)
    log = house.serial_log("web")
    log.write_bytes(b"old\n")
    pieces = await house.log_tail("web", LogSource.SERIAL, 1 << 16, follow=True)
    async with aclosing(pieces):
        assert await _until(pieces, b"old\n") == b"old\n"
        with log.open("ab") as file:
            file.write(b"more\n")
        assert await _until(pieces, b"more\n") == b"more\n"
        log.rename(log.with_suffix(".1"))
        log.write_bytes(b"a new file\n")
        assert await _until(pieces, b"new file\n") == b"a new file\n"


async def test_a_log_that_is_not_there_yet(house: ApiHouse) -> None:
    await house.guest("web", start=False)
    house.serial_log("web").unlink(missing_ok=True)
    pieces = await house.log_tail("web", LogSource.SERIAL, 1 << 16, follow=True)
    async with aclosing(pieces):
        first = asyncio.create_task(_until(pieces, b"here"))
        await asyncio.sleep(0.3)
        assert not first.done()
        house.serial_log("web").write_bytes(b"here\n")
        assert await first == b"here\n"


async def test_what_the_house_does_is_told_as_it_does_it(house: ApiHouse) -> None:
    await house.guest("web", start=False)
    pieces = await house.log_tail("web", LogSource.HOUSE, 1 << 16, follow=True)
    async with aclosing(pieces):
        assert b"guest.launch  done  (test)" in await _until(pieces, b"guest.launch")
        house.driver.gate.clear()
        job = await house.start("web", StartRequest(), "somebody")
        begun = await _until(pieces, b"guest.start")
        assert b"(somebody)" in begun
        assert b"guest.start done" not in begun
        assert b"guest.launch" not in begun  # told already
        house.driver.gate.set()
        await house.ended(job)
        assert b"    guest.start done\n" in await _until(pieces, b"guest.start done")
        failed = await house.resume("web", EmptyRequest(), "somebody")
        await house.ended(failed)
        told = await _until(pieces, b"guest.resume")
        assert b"guest.start" not in told


async def test_without_following_it_ends(house: ApiHouse) -> None:
    await house.guest("web", start=False)
    for source in LogSource:
        pieces = await house.log_tail("web", source, 1 << 16)
        async with asyncio.timeout(DEADLINE):
            assert isinstance(b"".join([piece async for piece in pieces]), bytes)
    with pytest.raises(NotFound):
        await house.log_tail("nobody", LogSource.HOUSE, 1)
