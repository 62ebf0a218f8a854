"""How fast shared folders are in a running micro guest: by each way of the house, and by hand.

By hand: virtiofsd with its own defaults, its device by the monitor, mounted by hand, in the same
guest and the same rounds. Without virtiofsd only sftp is measured. There is no 9p to compare: the
house does not offer it (docs/design/shares.md).
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.figures import OURS, Budget, Figure
from guesthouse.drivers.qemu import folders
from guesthouse.errors import GuesthouseError
from guesthouse.model.share import Way
from tests.e2e.sharing_place import Place, place, virtiofsd_here

ROUNDS, QUICK_ROUNDS = 7, 2
MIB, FILES = 64, 500
HAND = "virtiofsd by hand"
SFTP = "guesthouse, sftp"
LIMIT = Budget(1.05, HAND)
_TURNS = 100

TASKS = {
    f"{MIB} MiB written": f"dd if=/dev/zero of=file bs=1M count={MIB} conv=fsync",
    f"{MIB} MiB read": "echo 3 >/proc/sys/vm/drop_caches; cat file >/dev/null",
    f"{FILES} files made": f"mkdir d; i=0; while [ $i -lt {FILES} ]; do echo $i >d/$i;"
    " i=$((i + 1)); done",
    f"{FILES} files read": "echo 3 >/proc/sys/vm/drop_caches; cat d/* >/dev/null",
}


def measure(quick: bool, say: Callable[[str], None]) -> list[Figure]:
    return asyncio.run(_measure(QUICK_ROUNDS if quick else ROUNDS, say))


async def _measure(rounds: int, say: Callable[[str], None]) -> list[Figure]:
    program = await virtiofsd_here()
    figures = [Figure(name, "ms", LIMIT) for name in TASKS]
    async with place() as guest:
        with ExitStack() as stack:
            where = {SFTP: (await _mounted(guest, "sftp", Way.SFTP))}
            if program:
                where[OURS] = await _mounted(guest, "ours", Way.VIRTIOFS)
                where[HAND] = await _by_hand(guest, program, stack)
            else:
                say("no virtiofsd of Rust here: sftp alone")
            for number in range(rounds):
                say(f"round {number + 1} of {rounds}")
                for contender, folder in _turned(where, number):
                    await _round(guest, figures, contender, folder)
    return figures


def _turned(where: dict[str, str], number: int) -> list[tuple[str, str]]:
    """Each goes first in turn."""
    order = list(where.items())
    at = number % len(order)
    return order[at:] + order[:at]


async def _round(guest: Place, figures: list[Figure], contender: str, folder: str) -> None:
    for figure, task in zip(figures, TASKS.values(), strict=True):
        begun = time.perf_counter()
        await guest.sh(f"cd {folder}; {task}")
        figure.add(contender, (time.perf_counter() - begun) * 1000)
    await guest.sh(f"rm -rf {folder}/d {folder}/file")


async def _mounted(guest: Place, name: str, way: Way) -> str:
    share = guest.share(name, way=way)
    await guest.shares.mount(share)
    return share.target


async def _by_hand(guest: Place, program: str, stack: ExitStack) -> str:
    """As its manual says, as far as QEMU's own command line can be had by the monitor."""
    source, target, path = guest.folder / "hand", "/mnt/hand", guest.folder / "hand.sock"
    source.mkdir()
    child = stack.enter_context(_started(program, source, path))
    connection = stack.enter_context(socket.socket(socket.AF_UNIX))
    await _connect(connection, path)
    monitor = guest.running._monitor()  # type: ignore[attr-defined]  # the QEMU driver's
    await folders.plug(monitor, "hand", connection.fileno())
    connection.close()
    script = f"mkdir -p {target}; until mount -t virtiofs hand {target}; do sleep 0.1; done"
    await guest.sh(script)
    stack.callback(child.terminate)
    return target


def _started(program: str, source: Path, path: Path) -> subprocess.Popen[bytes]:
    argv = [program, f"--shared-dir={source}", f"--socket-path={path}", "--sandbox=namespace"]
    return subprocess.Popen(argv, stderr=subprocess.DEVNULL)


async def _connect(connection: socket.socket, path: Path) -> None:
    for _turn in range(_TURNS):
        try:
            connection.connect(os.fspath(path))
            return
        except OSError:
            await asyncio.sleep(0.1)
    raise GuesthouseError("virtiofsd by hand did not come up.")
