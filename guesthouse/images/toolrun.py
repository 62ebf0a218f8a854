"""Runs the commands of one build: output to its log, the last lines kept for the error, and all
their processes gone when the build fails or is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from guesthouse.errors import BuildFailed, Cancelled, HostLacks

_TAIL_LINES = 40
_READ_BYTES = 64 * 1024
_LINE_END = re.compile(rb"([\r\n]+)")

# What provides each tool on Debian and Ubuntu.
_PACKAGE_OF = {
    "mmdebstrap": "mmdebstrap",
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "mformat": "mtools",
    "mcopy": "mtools",
    "mmd": "mtools",
    "unshare": "util-linux",
    "newuidmap": "uidmap",
    "newgidmap": "uidmap",
    "apt-get": "apt",
}
_SBIN = ("/usr/sbin", "/sbin")


def search_path() -> str:
    """PATH with the administrator's folders, where mke2fs and chroot live on Debian."""
    parts = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([*parts, *(folder for folder in _SBIN if folder not in parts)])


def require(*tools: str) -> None:
    """Raises HostLacks naming every tool that is missing and the packages that bring them."""
    missing = [tool for tool in tools if shutil.which(tool, path=search_path()) is None]
    if missing:
        packages = sorted({_PACKAGE_OF.get(tool, tool) for tool in missing})
        raise HostLacks(
            f"Building an image needs {', '.join(missing)}, which this host does not have.",
            hint=f"Install it: apt-get install {' '.join(packages)}",
            capability="image-build",
            missing=missing,
        )


class ToolRunner:
    """Runs the commands of one build. `env` is added to a small clean environment."""

    def __init__(
        self,
        log: Path,
        cancelled: asyncio.Event | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._log = log
        self._cancelled = cancelled
        keep = ("HOME", "USER", "LOGNAME", "http_proxy", "https_proxy", "no_proxy")
        self._env = {name: os.environ[name] for name in keep if name in os.environ}
        self._env |= {"PATH": search_path(), "LC_ALL": "C.UTF-8", **(env or {})}

    def note(self, line: str) -> None:
        """Writes a line of our own into the log."""
        with self._log.open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def check_cancelled(self) -> None:
        """Raises Cancelled when somebody asked for it; called between steps."""
        if self._cancelled is not None and self._cancelled.is_set():
            raise Cancelled("The build of the image was cancelled.")

    async def run(
        self,
        argv: Sequence[str],
        *,
        doing: str,
        on_line: Callable[[str], None] | None = None,
    ) -> str:
        """Runs one command and returns its last lines.

        Raises BuildFailed (`detail["log"]` has the last lines) when it fails, HostLacks when it is
        not installed, Cancelled when the build was cancelled meanwhile.
        """
        self.check_cancelled()
        self.note(f"$ {' '.join(argv)}")
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=self._env,
                start_new_session=True,
            )
        except FileNotFoundError:
            require(argv[0])
            raise
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        reading = asyncio.create_task(self._read(process, tail, on_line))
        try:
            await self._until_done(reading)
            status = await process.wait()
        finally:
            reading.cancel()
            await asyncio.shield(_end(process))
        if status != 0:
            self.note(f"(ended with status {status})")
            raise BuildFailed(
                f"Building the image failed while {doing}: {Path(argv[0]).name} ended with status"
                f" {status}. It said: {next((line for line in reversed(tail) if line), 'nothing')}",
                hint=_hint(tail),
                command=list(argv),
                log=list(tail),
            )
        return "\n".join(tail)

    async def _until_done(self, reading: asyncio.Task[None]) -> None:
        if self._cancelled is None:
            await reading
            return
        waiting = asyncio.create_task(self._cancelled.wait())
        try:
            await asyncio.wait({reading, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not reading.done():
            self.note("(cancelled)")
        self.check_cancelled()
        await reading

    async def _read(
        self,
        process: asyncio.subprocess.Process,
        tail: deque[str],
        on_line: Callable[[str], None] | None,
    ) -> None:
        assert process.stdout is not None
        rest = b""
        with self._log.open("ab") as log:
            while chunk := await process.stdout.read(_READ_BYTES):
                *pairs, rest = _LINE_END.split(rest + chunk)
                for raw, end in zip(pairs[::2], pairs[1::2], strict=True):
                    line = raw.decode("utf-8", "replace")
                    if b"\n" in end:  # else a bar that is drawn over
                        log.write(raw + b"\n")
                        tail.append(line)
                    if on_line is not None:
                        on_line(line)
                log.flush()
            if rest:
                log.write(rest + b"\n")
                tail.append(rest.decode("utf-8", "replace"))


def _hint(tail: deque[str]) -> str:
    text = "\n".join(tail)
    if "No space left on device" in text:
        return "Free some space on this disk and build again."
    if re.search(r"Could not resolve|Unable to connect|Failed to fetch|Connection", text):
        return "Look whether the package mirror can be reached from here, then build again."
    return "The last lines of its output are in the job's log."


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kills what the command left: its tree (apt starts sessions of its own) and its group.

    Processes in a PID namespace die with its first process, whatever user they run as.
    """
    if process.returncode is None:
        for pid in _descendants(process.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _descendants(pid: int) -> list[int]:
    """The process and all below it, read from /proc (proc_pid_task(5)); the leaves come last."""
    found = [pid]
    for parent in found:
        for listing in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found.extend(int(child) for child in listing.read_text().split())
    return found
