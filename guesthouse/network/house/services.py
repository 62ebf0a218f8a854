"""Processes that outlive the daemon: found again by pid and start time, watched by pidfd."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from guesthouse.errors import DeadlineExceeded, EngineError, NotFound
from guesthouse.host.namespace.entering import require_tool, tool_environment
from guesthouse.host.namespace.holder import Member
from guesthouse.host.process import ProcessHandle, boot_id
from guesthouse.model.document import Noun

_END_SECONDS = 5.0
_FIRST_FREE = 64
"""Descriptors for a new process are moved out of the way of the numbers that it is given."""


class Service(Noun, kw_only=True, frozen=True):
    """:ivar ticks: when it began, in clock ticks since boot.

    :ivar made_of: whatever it was started with, in a word: it is kept as long as this is the same.
    """

    pid: int
    ticks: int
    made_of: str


class _Record(Noun, kw_only=True, frozen=True):
    boot: str
    services: dict[str, Service]


class Services:
    """The services of one house, by name.

    :param record: the file that says who they are. :param ended: called when one has ended that
        nobody stopped.
    """

    def __init__(self, record: Path, ended: Callable[[str], None]) -> None:
        self._file, self._ended = record, ended
        self._known: dict[str, Service] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._writing = asyncio.Lock()

    async def find(self) -> None:
        """Take up those that still run."""
        for name, service in (await asyncio.to_thread(self._load)).items():
            with suppress(NotFound):
                handle = ProcessHandle.open(service.pid, service.ticks)
                self._known[name] = service
                self._watch(name, handle)

    def of(self, name: str) -> Service | None:
        """The service of that name, if it runs."""
        return self._known.get(name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._known)

    def member(self, name: str) -> Member | None:
        service = self._known.get(name)
        return Member(service.pid, service.ticks) if service else None

    async def add(self, name: str, pid: int, made_of: str) -> None:
        """Take up a process just started. :raise EngineError: it has ended already."""
        try:
            handle = ProcessHandle.open(pid)
        except NotFound:
            reap(pid)
            raise EngineError(f"The service {name} ended as soon as it began.") from None
        self._known[name] = Service(pid=pid, ticks=handle.start_ticks, made_of=made_of)
        self._watch(name, handle)
        await self._save()

    async def stop(self, name: str) -> None:
        """End it; nothing happens when it does not run."""
        service = self._known.pop(name, None)
        watch = self._watches.pop(name, None)
        if watch is not None:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        if service is None:
            return
        with suppress(NotFound), ProcessHandle.open(service.pid, service.ticks) as handle:
            handle.send_signal(signal.SIGTERM)
            try:
                await handle.wait(_END_SECONDS)
            except DeadlineExceeded:
                handle.send_signal(signal.SIGKILL)
                await handle.wait(_END_SECONDS)
        reap(service.pid)
        await self._save()

    def send(self, name: str, number: int) -> bool:
        """Send a signal; False if it does not run."""
        service = self._known.get(name)
        if service is None:
            return False
        try:
            with ProcessHandle.open(service.pid, service.ticks) as handle:
                return handle.send_signal(number)
        except NotFound:
            return False

    async def close(self) -> None:
        """Let go of them; they run on."""
        watches = list(self._watches.values())
        self._watches.clear()
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)

    def _watch(self, name: str, handle: ProcessHandle) -> None:
        self._watches[name] = asyncio.create_task(self._wait(name, handle))

    async def _wait(self, name: str, handle: ProcessHandle) -> None:
        with handle:
            await handle.wait()
            reap(handle.pid)
        self._watches.pop(name, None)
        self._known.pop(name, None)
        await self._save()
        self._ended(name)

    def _load(self) -> dict[str, Service]:
        try:
            record = msgspec.json.decode(self._file.read_bytes(), type=_Record)
        except (OSError, msgspec.DecodeError):
            return {}  # the first start, or damaged: then they are started again
        return record.services if record.boot == boot_id() else {}

    async def _save(self) -> None:
        async with self._writing:
            data = msgspec.json.encode(_Record(boot=boot_id(), services=self._known))
            await asyncio.to_thread(self._write, data)

    def _write(self, data: bytes) -> None:
        new = self._file.with_suffix(".new")
        new.write_bytes(data)
        new.replace(self._file)


def start(argv: Sequence[str], fds: Mapping[int, int], *, output: int | None = None) -> int:
    """Start a program in a session of its own, which outlives us; answers its pid.

    :param fds: the number that each descriptor has there: ours. :param output: its stdout.
    :raise HostLacks: it is not installed. :raise EngineError: it cannot be run.
    """
    require_tool(argv[0])
    moved: list[int] = []
    try:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        moved.append(null)
        wanted = {0: null, 1: null if output is None else output, 2: null, **fds}
        actions: list[tuple[int, int, int]] = []
        for there, ours in wanted.items():
            moved.append(_moved(ours))
            actions.append((os.POSIX_SPAWN_DUP2, moved[-1], there))
        return os.posix_spawnp(
            argv[0], list(argv), tool_environment(), file_actions=actions, setsid=True
        )
    except OSError as error:
        raise EngineError(f"{argv[0]} cannot be run: {error.strerror}.") from error
    finally:
        for fd in moved:
            os.close(fd)


def _moved(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)


def end_child(pid: int) -> None:
    """Kill a child that nobody watches yet, and take leave of it. Blocks shortly."""
    with suppress(ChildProcessError):
        # Only while it is not reaped its number is surely its own.
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def reap(pid: int) -> None:
    """Take leave of a child that ended; of others whoever started them does."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
