"""What can be told of a running QEMU whose launch record is lost: from its own command line."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from guesthouse.errors import NotFound
from guesthouse.host.process import boot_id
from guesthouse.model.guest import BootPath, Guest, LaunchRecord


def found_record(guest: Guest, incarnation: int, pid: int, start_ticks: int) -> LaunchRecord:
    """The launch record of a process of `guest` that lives. What it was started with is what its
    spec says now, as far as anybody knows.

    :raise NotFound: it has ended meanwhile.
    """
    try:
        # proc(5): words that end with NUL; QEMU's own, the steps before it are over.
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        raise NotFound(f"There is no process {pid}.", pid=pid) from None
    age = uptime - start_ticks / os.sysconf("SC_CLK_TCK")
    return LaunchRecord(
        incarnation=incarnation,
        argv=tuple(argv),
        machine=_first(argv, "-machine") or guest.spec.machine,
        cpu=_option(argv, "-cpu") or guest.spec.cpu,
        accelerator=_first(argv, "-accel") or "tcg",
        accelerator_reason="found running",
        engine="QEMU",
        boot=BootPath.KERNEL if "-kernel" in argv else BootPath.DISK,
        spec=guest.spec,
        pid=pid,
        pid_start=start_ticks,
        boot_id=boot_id(),
        launched_at=time.time() - age,
    )


def _option(argv: Sequence[str], name: str) -> str:
    """What follows `name`."""
    return next((argv[at + 1] for at, word in enumerate(argv[:-1]) if word == name), "")


def _first(argv: Sequence[str], name: str) -> str:
    return _option(argv, name).partition(",")[0]
