"""The QEMU guest agent (qemu-ga) of a guest, over its virtio-serial port.

The guest is not trusted: answers are capped in size, checked in shape, and every call has a
timeout. The port carries one client at a time, so the connection is closed when idle; a restarted
daemon finds it free.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from guesthouse.errors import (
    AgentUnavailable,
    AgentUnsupported,
    DeadlineExceeded,
    EngineError,
    InvalidInput,
)
from guesthouse.guestos.agent_answers import (
    Address,
    AgentInfo,
    OsInfo,
    parse_addresses,
    parse_info,
    parse_os_info,
)
from guesthouse.guestos.agent_wire import ANSWER_LIMIT, AgentWire

__all__ = ["Address", "Agent", "AgentExit", "AgentInfo", "OsInfo"]

PORT_NAME = "org.qemu.guest_agent.0"

TIMEOUT = 10.0
"""Seconds for a command to answer."""

IDLE = 2.0
"""Seconds after the last command until the connection is closed."""

FREEZE_DEADLINE = 10.0
"""Seconds that file systems stay frozen at most. Writers in the guest stand still meanwhile."""

EXEC_OUTPUT = 16 << 20
"""Bytes of output, and of errors, that qemu-ga keeps (GUEST_EXEC_MAX_OUTPUT in qga/commands.c)."""

_THAW_ATTEMPTS = 3
_SHUTDOWN_ANSWER = 2.0
_MODES = frozenset({"powerdown", "reboot", "halt"})


class AgentExit(NamedTuple):
    """How a command that `exec` ran ended. :ivar truncated: output was longer than is kept."""

    code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool


class Agent:
    """The agent of one guest. Calls from several tasks take turns.

    Every call raises `AgentUnavailable` when nothing (or nonsense) answers within its timeout,
    `AgentUnsupported` when this agent lacks the command, `EngineError` when it refused.
    """

    def __init__(self, socket: Path, *, idle: float = IDLE) -> None:
        self._socket = socket
        self._idle = idle
        self._turn = asyncio.Lock()
        self._wire: AgentWire | None = None
        self._idle_timer: asyncio.TimerHandle | None = None

    async def call(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float = TIMEOUT,
        limit: int = ANSWER_LIMIT,
    ) -> Any:
        """Any command; its answer has not been checked."""
        try:
            async with asyncio.timeout(timeout):
                async with self._turn:
                    return await self._execute(command, dict(arguments or {}), limit)
        except TimeoutError:
            raise AgentUnavailable(
                f"The guest's agent did not answer {command} within {timeout:g} seconds.",
                hint="It may still be starting, be missing in this image, or be used by another "
                "program. See: guest console NAME",
                command=command,
            ) from None

    async def ping(self, *, timeout: float = TIMEOUT) -> None:
        await self.call("guest-ping", timeout=timeout)

    async def info(self) -> AgentInfo:
        """Its version and the commands that it offers."""
        return parse_info(await self.call("guest-info"))

    async def addresses(self, *, timeout: float = TIMEOUT) -> list[Address]:
        """Addresses of all network cards but loopback."""
        return parse_addresses(await self.call("guest-network-get-interfaces", timeout=timeout))

    async def os_info(self) -> OsInfo:
        return parse_os_info(await self.call("guest-get-osinfo"))

    async def hostname(self) -> str:
        answer = await self.call("guest-get-host-name")
        return _text(answer, "host-name")[:255]

    async def get_time(self) -> float:
        """What the guest's clock shows, in seconds since the epoch."""
        answer = await self.call("guest-get-time")
        if not isinstance(answer, int):
            raise AgentUnavailable("The guest's agent did not tell the time.")
        return answer / 1e9

    async def set_time(self, seconds: float | None = None) -> None:
        """Set the guest's clock to `seconds` since the epoch; None is this host's time now."""
        nanoseconds = time.time_ns() if seconds is None else int(seconds * 1e9)
        await self.call("guest-set-time", {"time": nanoseconds})

    async def shutdown(self, mode: str = "powerdown") -> None:
        """Ask for a `powerdown`, `reboot` or `halt`. Returning says that it was asked for; the
        agent answers refusals only.

        :raise InvalidInput: no such mode.
        """
        if mode not in _MODES:
            raise InvalidInput(f"{mode!r} is no way to shut down.", field="mode")
        await self.ping()  # so that silence afterwards means consent
        try:
            await self.call("guest-shutdown", {"mode": mode}, timeout=_SHUTDOWN_ANSWER)
        except AgentUnavailable:
            return

    # Freezing

    @asynccontextmanager
    async def frozen(self, deadline: float = FREEZE_DEADLINE) -> AsyncIterator[int]:
        """File systems are frozen within the block, which is given their number.

        However the block ends, they are thawed, and after `deadline` seconds the block is
        cancelled for it. Other commands hardly work meanwhile.

        :raise DeadlineExceeded: the block took longer, so what it made may be inconsistent.
        """
        limit = asyncio.timeout(deadline)
        try:
            async with limit:
                count = await self.call("guest-fsfreeze-freeze", timeout=deadline)
                if not isinstance(count, int):
                    raise AgentUnavailable("The guest's agent did not say what it froze.")
                yield count
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded(
                f"The guest's file systems were frozen for {deadline:g} seconds and had to be "
                "thawed before the work was done.",
                hint="Try again when host and guest are less busy.",
            ) from None
        finally:
            # Also after a freeze that failed or timed out: the agent may carry it out later. And
            # to the end, whoever cancels us: a guest left frozen stands still.
            await _to_the_end(self._thaw_surely())

    async def thaw(self) -> int:
        """Thaw, and answer how many file systems were thawed."""
        count = await self.call("guest-fsfreeze-thaw", timeout=TIMEOUT)
        return count if isinstance(count, int) else 0

    async def is_frozen(self) -> bool:
        """Also a daemon that finds a running guest asks this: its predecessor may have died."""
        return bool(await self.call("guest-fsfreeze-status") == "frozen")

    async def _thaw_surely(self) -> None:
        for attempt in range(1, _THAW_ATTEMPTS + 1):
            try:
                await self.thaw()
                return
            except AgentUnsupported:
                return  # no thaw, so no freeze either
            except (AgentUnavailable, EngineError):
                if attempt == _THAW_ATTEMPTS:
                    raise

    # Running commands

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        data: bytes = b"",
        timeout: float = 60.0,
    ) -> AgentExit:
        """Run a command as the agent's user (root), for guests without the ssh port.

        Limits: no terminal, no streaming, no signals. Input goes in one piece, at most 1 MiB;
        output comes at the end, at most 16 MiB of each stream; its end is found by asking again
        and again. A command that outlasts `timeout` (seconds) goes on in the guest. It is refused
        while frozen, and distributions such as RHEL switch it off.

        :raise InvalidInput: too long an input. :raise DeadlineExceeded: no end in time.
        """
        if not argv:
            raise InvalidInput("There is no command.", field="argv")
        if len(data) > 1 << 20:
            raise InvalidInput("The agent takes at most 1 MiB of input.", field="data")
        arguments: dict[str, object] = {
            "path": argv[0],
            "arg": list(argv[1:]),
            "env": [f"{name}={value}" for name, value in (env or {}).items()],
            "capture-output": True,
        }
        if data:
            arguments["input-data"] = base64.b64encode(data).decode()
        started = await self.call("guest-exec", arguments)
        pid = started.get("pid") if isinstance(started, dict) else None
        if not isinstance(pid, int):
            raise AgentUnavailable("The guest's agent did not say what it started.")
        deadline, pause = time.monotonic() + timeout, 0.02
        while True:
            # Base64 takes four bytes for three; both streams in one answer.
            status = await self.call(
                "guest-exec-status", {"pid": pid}, limit=EXEC_OUTPUT * 3, timeout=TIMEOUT * 3
            )
            if isinstance(status, dict) and status.get("exited") is True:
                return _exit(status)
            if time.monotonic() + pause > deadline:
                raise DeadlineExceeded(
                    f"{argv[0]!r} did not end within {timeout:g} seconds; it goes on in the guest."
                )
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    async def close(self) -> None:
        """Let the port go. A later call connects anew."""
        async with self._turn:
            self._drop()

    # The connection; called in turn

    async def _execute(self, command: str, arguments: dict[str, object], limit: int) -> Any:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        healthy = False
        try:
            if self._wire is None:
                self._wire = await AgentWire.open(self._socket)
                await self._wire.synchronise()
            answer = await self._wire.execute(command, arguments or None, limit)
            healthy = True
            return answer
        except (AgentUnsupported, EngineError):
            healthy = True
            raise
        finally:
            # After a timeout, a cancellation or nonsense the next call connects and
            # synchronises anew: the answer that is still owed must not be taken for its own.
            if healthy:
                loop = asyncio.get_running_loop()
                self._idle_timer = loop.call_later(self._idle, self._drop_if_idle)
            else:
                self._drop()

    def _drop_if_idle(self) -> None:
        if not self._turn.locked():
            self._drop()

    def _drop(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if self._wire is not None:
            self._wire.close()
            self._wire = None


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await `work`; when this task is cancelled meanwhile, wait for it all the same."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])  # a second cancellation ends the waiting, not the work
        raise


def _text(answer: object, key: str) -> str:
    value = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(value, str):
        raise AgentUnavailable(f"The guest's agent gave no {key}.")
    return value


def _exit(status: dict[str, Any]) -> AgentExit:
    def stream(key: str) -> bytes:
        text = status.get(key, "")
        try:
            return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
        except ValueError:
            raise AgentUnavailable("The guest's agent sent output that is not base64.") from None

    code, signal = status.get("exitcode"), status.get("signal")
    return AgentExit(
        code if isinstance(code, int) else None,
        signal if isinstance(signal, int) else None,
        stream("out-data"),
        stream("err-data"),
        bool(status.get("out-truncated") or status.get("err-truncated")),
    )
