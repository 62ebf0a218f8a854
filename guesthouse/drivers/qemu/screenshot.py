"""A picture of the screen, without giving QEMU a path to write to."""

from __future__ import annotations

import asyncio
import os

from guesthouse.drivers.qemu.session import Session
from guesthouse.errors import EngineError

MAX_BYTES = 64 << 20
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


async def take(session: Session) -> bytes:
    """The screen as a PNG.

    :raise QmpFailed: the guest has no screen, or QEMU was built without PNG.
    :raise EngineError: what came is no picture.
    """
    picture = os.memfd_create("screenshot", os.MFD_CLOEXEC)
    try:
        # QEMU takes from the set only a descriptor opened with exactly the access it asks for.
        writable = os.open(f"/proc/self/fd/{picture}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            added = await session.pass_fd(writable, "add-fd")
        finally:
            os.close(writable)
        number = added["fdset-id"]
        try:
            await session.execute(
                "screendump", {"filename": f"/dev/fdset/{number}", "format": "png"}
            )
        finally:
            await session.execute("remove-fd", {"fdset-id": number})
        return await asyncio.to_thread(_read, picture)
    finally:
        os.close(picture)


def _read(picture: int) -> bytes:
    size = os.fstat(picture).st_size
    data = os.pread(picture, min(size, MAX_BYTES), 0)
    if size > MAX_BYTES or not data.startswith(_SIGNATURE):
        raise EngineError(f"The engine made no picture of the screen ({size} bytes came).")
    return data
