"""The record of the house's namespaces: who holds them, and which they are."""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from guesthouse.host.keeper.procfs import boot_id, runs

FORMAT = 1


class Record(NamedTuple):
    """The content of the file.

    `ticks` is the holder's start time in clock ticks since boot, `user` (None: the host's), `net`
    and `mount` are inode numbers of namespaces. `lacks`: what could not be made ready.
    """

    format: int
    boot: str
    pid: int
    ticks: int
    user: int | None
    net: int
    mount: int
    lacks: list[str]


def load(path: str) -> Record | None:
    """The record at `path`; None if there is none of this boot, or none that we understand."""
    try:
        with open(path, "rb") as file:
            record = Record(**json.load(file))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return record if record.format == FORMAT and record.boot == boot_id() else None


def save(path: str, record: Record) -> None:
    """Whole or not at all. It need not outlive the boot, so nothing is synced."""
    temporary = f"{path}.{os.getpid()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="ascii") as file:
        json.dump(record._asdict(), file)
    os.rename(temporary, path)  # noqa: PTH104


def holds(record: Record) -> bool:
    """Whether the holder lives and is in the network namespace of the record."""
    try:
        return runs(record.pid, record.ticks) and identity(record.pid, "net") == record.net
    except OSError:
        return False


def identity(pid: int, kind: str) -> int:
    """The inode number of a namespace (`user`, `net`, `mnt`) of process `pid`."""
    return os.stat(f"/proc/{pid}/ns/{kind}").st_ino  # noqa: PTH116
