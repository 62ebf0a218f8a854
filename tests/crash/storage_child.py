"""A process that does one storage operation and kills itself at the Nth thing it does to the disk.

    python storage_child.py FOLDER CASE POINT

POINT counts calls that change the file system, each twice: before and after. 0 never kills; then
the number of points is printed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from guesthouse.model.volume import Volume
from guesthouse.storage import qemu_img
from guesthouse.storage.pool import DirectoryPool
from guesthouse.storage.transfer import Way

SIZE = 16 << 20
BASE = "01J00000000000000000000001"
TOP = "01J00000000000000000000002"
NEW = "01J00000000000000000000003"


def base() -> Volume:
    return Volume(id=BASE, size=SIZE, immutable=True, created_at=0.0)


def top() -> Volume:
    return Volume(id=TOP, size=2 * SIZE, parent=BASE, created_at=0.0)


def new(*, immutable: bool = False) -> Volume:
    return Volume(id=NEW, size=SIZE, immutable=immutable, created_at=0.0)


async def overlay(pool: DirectoryPool, folder: Path) -> None:
    await pool.create_overlay(top(), pool.path(base()))


async def empty(pool: DirectoryPool, folder: Path) -> None:
    await pool.create_empty(new())


async def copy(pool: DirectoryPool, folder: Path) -> None:
    await pool.import_file(new(), folder / "source.qcow2", Way.COPY)


async def link(pool: DirectoryPool, folder: Path) -> None:
    await pool.import_file(new(immutable=True), folder / "source.qcow2", Way.LINK)


async def move(pool: DirectoryPool, folder: Path) -> None:
    await pool.import_file(new(), folder / "source.qcow2", Way.MOVE)


async def grow(pool: DirectoryPool, folder: Path) -> None:
    await pool.grow(top(), 4 * SIZE)


async def delete(pool: DirectoryPool, folder: Path) -> None:
    await pool.delete(TOP)


async def document(pool: DirectoryPool, folder: Path) -> None:
    await pool.write_copy("volumes", top())


CASES: dict[str, Callable[[DirectoryPool, Path], Awaitable[None]]] = {
    f.__name__: f for f in (overlay, empty, copy, link, move, grow, delete, document)
}


class Points:
    """Counts, and kills at the chosen one."""

    def __init__(self, chosen: int) -> None:
        self.chosen = chosen
        self.passed = 0

    def reach(self) -> None:
        self.passed += 1
        if self.passed == self.chosen:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: object, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(*args: object, **more: object) -> object:
            self.reach()
            done = real(*args, **more)
            self.reach()
            return done

        setattr(owner, name, wrapped)

    def around_tool(self) -> None:
        real = qemu_img.run

        async def wrapped(*args: object, **more: object) -> object:
            self.reach()
            done = await real(*args, **more)  # type: ignore[arg-type]  # passed on as they came
            self.reach()
            return done

        qemu_img.run = wrapped  # type: ignore[assignment]  # the same call, counted


def main() -> None:
    folder, case, point = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    points = Points(point)

    async def work() -> None:
        pool = await DirectoryPool.open(folder / "pool")
        for name in ("fsync", "ftruncate", "copy_file_range"):
            points.around(os, name)
        for name in ("rename", "chmod", "unlink", "hardlink_to"):
            points.around(Path, name)
        points.around_tool()
        await CASES[case](pool, folder)

    asyncio.run(work())
    print(points.passed)


if __name__ == "__main__":
    main()
