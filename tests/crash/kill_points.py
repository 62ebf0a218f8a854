"""A process that kills itself (SIGKILL) at the Nth thing it does to the disk."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from guesthouse.storage import qemu_img


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

    def around_disk_changes(self) -> None:
        """Everything by which storage changes the disk."""
        for name in ("fsync", "ftruncate", "copy_file_range"):
            self.around(os, name)
        for name in ("rename", "chmod", "unlink", "hardlink_to"):
            self.around(Path, name)
        self.around_tool()

    def around_tool(self) -> None:
        real = qemu_img.run

        async def wrapped(*args: object, **more: object) -> object:
            self.reach()
            done = await real(*args, **more)  # type: ignore[arg-type]  # passed on as they came
            self.reach()
            return done

        qemu_img.run = wrapped  # type: ignore[assignment]  # the same call, counted
