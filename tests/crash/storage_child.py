"""A process that does one storage operation and kills itself at the Nth thing it does to the disk.

    python storage_child.py FOLDER CASE POINT

POINT counts calls that change the file system, each twice: before and after. 0 never kills; then
the number of points is printed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from guesthouse.model.volume import Volume
from guesthouse.storage.pool import DirectoryPool
from guesthouse.storage.transfer import Way
from tests.crash.kill_points import Points

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


def main() -> None:
    folder, case, point = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    points = Points(point)

    async def work() -> None:
        pool = await DirectoryPool.open(folder / "pool")
        points.around_disk_changes()
        await CASES[case](pool, folder)

    asyncio.run(work())
    print(points.passed)


if __name__ == "__main__":
    main()
