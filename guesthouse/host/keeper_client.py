"""The daemon's side of the keeper: start it, talk to it, hear how guests ended.

The keeper outlives the daemon, and the daemon must outlive the keeper too: `closed` is set when
the connection breaks, `reconnect` starts a new keeper if need be and says whether it is a new one,
to which living guests then have to be introduced with `adopt`.
"""

from __future__ import annotations

import asyncio
import os
import socket as sockets
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from guesthouse.errors import GuesthouseError, KeeperUnavailable
from guesthouse.host.keeper.wire import PROTOCOL
from guesthouse.host.keeper_channel import Answer, Body, Channel
from guesthouse.host.launcher import FdTable
from guesthouse.host.spawn import Finished, run

_PROGRAM = Path(__file__).parent / "keeper" / "__main__.py"
# Exit code of a keeper that finds another one at work (keeper/entry.py).
_ALREADY_RUNNING = 3
_CONNECT_DEADLINE = 15.0
_RETRY = 0.02
_START_AGAIN = 1.0

T = TypeVar("T")


class SerialChannel(msgspec.Struct, frozen=True, kw_only=True):
    """A serial port: where QEMU listens, and the log with at most `keep` older files beside it."""

    socket: Path
    log: Path
    max_bytes: int = 1 << 20
    keep: int = 3


class MonitorChannel(msgspec.Struct, frozen=True, kw_only=True):
    """The second QMP monitor, to which nobody but the keeper connects."""

    socket: Path


class SpawnRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to start. `key` is `<guest id>.<incarnation>`; `stderr` the file for its messages."""

    key: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    stderr: Path
    cwd: Path | None = None
    serial: SerialChannel | None = None
    monitor: MonitorChannel | None = None


class AdoptRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A living process that another keeper started, as `Spawned` told at the time."""

    key: str
    pid: int
    start_ticks: int
    stderr: Path | None = None
    serial: SerialChannel | None = None
    monitor: MonitorChannel | None = None


class Spawned(msgspec.Struct, frozen=True):
    """`start_ticks`: clock ticks since boot, see process.py."""

    pid: int
    start_ticks: int


class Ending(msgspec.Struct, frozen=True):
    """QEMU's SHUTDOWN or RESET: by the guest itself or from outside, QEMU's reason, unix time."""

    guest: bool
    reason: str
    at: float


class Panic(msgspec.Struct, frozen=True):
    """QEMU's GUEST_PANICKED; `info` as QEMU gives it, None if absent or too long."""

    action: str
    info: Any
    at: float


class WatchdogBite(msgspec.Struct, frozen=True):
    action: str
    at: float


class ExitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How a process ended. Of an adopted one, exit code and signal are unknown (None).

    `at` is unix time in seconds; `stderr_tail` the last 2 KiB of its messages.
    """

    key: str
    pid: int
    start_ticks: int
    exit_code: int | None
    signal: int | None
    shutdown: Ending | None
    panic: Panic | None
    at: float
    boot_id: str
    stderr_tail: str


class ProcessInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A living process. `log_lost` counts serial bytes that found no room on the disk."""

    key: str
    pid: int
    start_ticks: int
    alive: bool
    child: bool
    serial_connected: bool
    monitor_connected: bool
    consoles: int
    log_lost: int
    shutdown: Ending | None = None
    panic: Panic | None = None
    reset: Ending | None = None
    watchdog: WatchdogBite | None = None
    stopped_at: float | None = None
    resumed_at: float | None = None


class KeptFd(msgspec.Struct, frozen=True, kw_only=True):
    """A kept descriptor; `size` in bytes for a memfd. `kind`: memfd, socket, device, pipe, file."""

    name: str = msgspec.field(name="key")
    kind: str
    size: int | None


class KeeperClient:
    """A connection to the house's keeper. Any number of requests may be under way at once.

    Every method raises KeeperUnavailable when the keeper is gone, DeadlineExceeded when it does
    not answer, InvalidInput for what it cannot understand, besides what is said at the method.
    """

    def __init__(self, socket: Path, state: Path, start: bool) -> None:
        self.closed = asyncio.Event()
        self.pid = 0
        self.started = 0.0
        self._path, self._state, self._start = socket, state, start
        self._channel: Channel | None = None
        self._watchers: set[asyncio.Queue[ExitRecord | None]] = set()
        self._connecting = asyncio.Lock()

    @classmethod
    async def connect(cls, socket: Path, *, state: Path, start: bool = True) -> KeeperClient:
        """Connect to the keeper at `socket`; start one for the folder `state` if none answers.

        :raise KeeperUnavailable: none answers and none may be, or could be, started.
        """
        client = cls(socket, state, start)
        await client._open()
        return client

    async def reconnect(self) -> bool:
        """Connect again after `closed`. True if it is another keeper, which knows no guest yet.

        :raise KeeperUnavailable: as `connect`.
        """
        async with self._connecting:
            before = (self.pid, self.started)
            if self._channel is None or not self._channel.is_open:
                await self._open()
            return before != (self.pid, self.started)

    def close(self) -> None:
        """Leave; the keeper and the guests stay."""
        if self._channel is not None:
            self._channel.close()

    # --- processes ----------------------------------------------------------------------------

    async def spawn(self, request: SpawnRequest, fds: FdTable | None = None) -> Spawned:
        """Start a process with the descriptors of `fds` at their targets.

        :raise LaunchFailed: it could not be executed; `detail["errno"]` says why.
        :raise Conflict: the key has a process, or an exit record not yet forgotten.
        """
        table = fds if fds is not None else FdTable()
        body = {"fds": table.targets, **msgspec.structs.asdict(request)}
        answer = await self._call("spawn", body, table)
        return msgspec.convert(answer, Spawned)

    async def adopt(self, request: AdoptRequest) -> Spawned:
        """Have a living process watched that is not this keeper's child; repeating does no harm.

        :raise NotFound: it has ended, or its pid is another process's now.
        :raise Conflict: the key has another process, or an exit record not yet forgotten.
        """
        answer = await self._call("adopt", msgspec.structs.asdict(request))
        return msgspec.convert(answer, Spawned)

    async def processes(self) -> list[ProcessInfo]:
        """The living ones, by key."""
        return await self._pages("list", "processes", ProcessInfo)

    async def info(self, key: str) -> ProcessInfo:
        """:raise NotFound: no living process has this key."""
        answer = await self._call("info", {"key": key})
        return msgspec.convert(answer["process"], ProcessInfo)

    async def signal(self, key: str, number: int) -> None:
        """:raise NotFound: no living process has this key."""
        await self._call("signal", {"key": key, "signal": number})

    async def console(self, key: str, *, replay: int = 0) -> sockets.socket:
        """Attach to the serial port: a stream that gives what the guest prints and takes input.

        It begins with the last `replay` bytes of the log (at most 256 KiB). A reader more than
        1 MiB behind loses the oldest bytes. It ends when the process has ended.

        :raise NotFound: no living process has this key, or it has no serial port.
        """
        body, fds = await self._exchange("console", {"key": key, "replay": replay})
        stream = sockets.socket(fileno=self._one(body, fds))
        stream.setblocking(False)
        return stream

    # --- how they ended -----------------------------------------------------------------------

    async def exit_records(self) -> list[ExitRecord]:
        """All records not yet forgotten, by key."""
        return await self._pages("exits", "records", ExitRecord)

    async def exits(self) -> AsyncIterator[ExitRecord]:
        """Every exit: those not yet forgotten, then each new one as it happens, none missed.

        :raise KeeperUnavailable: the keeper is gone; after `reconnect`, ask again.
        """
        queue: asyncio.Queue[ExitRecord | None] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            await self._call("subscribe")
            told = set()
            for record in await self.exit_records():
                told.add(record.key)
                yield record
            while (arrived := await queue.get()) is not None:
                # One that happened between the subscription and the list came twice.
                if arrived.key in told:
                    told.discard(arrived.key)
                else:
                    yield arrived
            raise _unavailable("The keeper has gone.")
        finally:
            self._watchers.discard(queue)

    async def forget(self, key: str) -> None:
        """Delete the record of an exit, once it is dealt with. :raise NotFound: there is none."""
        await self._call("forget", {"key": key})

    # --- kept descriptors ---------------------------------------------------------------------

    async def put_fd(self, name: str, fd: int) -> None:
        """Have the keeper keep a copy of `fd`, in place of what was called `name`."""
        with FdTable() as table:
            table.add(os.dup(fd))
            await self._call("put_fd", {"name": name}, table)

    async def get_fd(self, name: str) -> int:
        """A copy, the caller's to close. :raise NotFound: nothing is called `name`."""
        return self._one(*await self._exchange("get_fd", {"name": name}))

    async def drop_fd(self, name: str) -> None:
        """:raise NotFound: nothing is called `name`."""
        await self._call("drop_fd", {"name": name})

    async def fds(self) -> list[KeptFd]:
        return await self._pages("fds", "fds", KeptFd)

    async def quit(self, *, force: bool = False) -> None:
        """End the keeper. :raise InUse: processes are alive; with `force` they stay so alone."""
        await self._call("quit", {"force": force})

    # --- the connection -----------------------------------------------------------------------

    async def _open(self) -> None:
        deadline = time.monotonic() + _CONNECT_DEADLINE
        trouble = f"No keeper answers at {self._path}."
        next_start = time.monotonic()
        while True:
            try:
                await self._greet()
                return
            except (OSError, KeeperUnavailable) as error:
                if isinstance(error, KeeperUnavailable) and error.detail.get("keeper_code"):
                    raise
                if not self._start:
                    raise _unavailable(f"{trouble} ({error})") from None
            if time.monotonic() > deadline:
                raise _unavailable(trouble)
            if time.monotonic() >= next_start:
                trouble = await self._launch()
                # If another holds the lock, it may be about to listen, or about to end.
                next_start = time.monotonic() + _START_AGAIN
            else:
                await asyncio.sleep(_RETRY)

    async def _greet(self) -> None:
        channel = Channel.open(self._path, self._heard, self._lost)
        try:
            body, _fds = await channel.request({"op": "hello", "protocol": PROTOCOL})
        except BaseException:
            channel.close()
            raise
        self.pid, self.started = body["pid"], body["started"]
        self._channel = channel
        self.closed.clear()

    async def _launch(self) -> str:
        """Start a keeper; returns what to tell if it cannot be reached nevertheless."""
        argv = [sys.executable, "-I", "-S", str(_PROGRAM)]
        argv += ["--state", str(self._state.absolute()), "--socket", str(self._path.absolute())]
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        try:
            done: Finished = await run(argv, env=env, timeout=_CONNECT_DEADLINE, check=False)
        except GuesthouseError as error:
            raise _unavailable(f"The keeper did not start. {error}") from None
        said = done.err.decode("utf-8", "replace").strip()
        if done.code not in (0, _ALREADY_RUNNING):
            raise _unavailable(f"The keeper did not start (exit code {done.code}): {said}")
        return f"A keeper runs, yet does not answer at {self._path}. {said}".strip()

    def _heard(self, body: Body) -> None:
        if body["event"] == "exit":
            record = msgspec.convert(body["record"], ExitRecord)
            for queue in self._watchers:
                queue.put_nowait(record)

    def _lost(self) -> None:
        self.closed.set()
        for queue in self._watchers:
            queue.put_nowait(None)

    async def _exchange(
        self, op: str, body: Mapping[str, object], table: FdTable | None = None
    ) -> Answer:
        if self._channel is None or not self._channel.is_open:
            raise _unavailable("There is no connection to the keeper.")
        return await self._channel.request({"op": op, **body}, table.fds if table else ())

    async def _call(
        self, op: str, body: Mapping[str, object] = {}, table: FdTable | None = None
    ) -> Body:
        answer, _fds = await self._exchange(op, body, table)
        return answer

    async def _pages(self, op: str, field: str, kind: type[T]) -> list[T]:
        found: list[T] = []
        after: str | None = None
        while True:
            answer = await self._call(op, {"after": after})
            found += [msgspec.convert(item, kind) for item in answer[field]]
            after = answer["next"]
            if after is None:
                return found

    @staticmethod
    def _one(body: Body, fds: list[int]) -> int:
        if len(fds) != 1:
            raise _unavailable(f"The keeper sent {len(fds)} descriptors instead of one: {body}.")
        return fds[0]


def _unavailable(message: str) -> KeeperUnavailable:
    return KeeperUnavailable(
        message, hint="Guests live on without a keeper; see keeper.log in the house's folder."
    )
