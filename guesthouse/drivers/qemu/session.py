"""A QMP connection: typed errors, a limit on connecting, descriptors, events to one callback."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, Message, QMPClient, QMPError
from qemu.qmp.protocol import Runstate

from guesthouse.errors import DeadlineExceeded, MonitorLost, QmpFailed

CONNECT_SECONDS = 30.0
"""QEMU greets within 0.1 s; a host that swaps may need long."""
COMMAND_SECONDS = 60.0

# Ends of connections are ordinary here: every guest ends some day, and the caller is told.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

OnEvent = Callable[[str, Mapping[str, Any]], None]


class _Tap(EventListener):
    """Calls for each event at once and queues none."""

    def __init__(self, on_event: OnEvent) -> None:
        super().__init__()
        self._on_event = on_event

    def accept(self, event: Message) -> bool:
        data: Any = event.get("data", {})
        self._on_event(str(event["event"]), data)
        return False


class _Client(QMPClient):
    """Without formatting every message for a debug log that is off."""

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        return msg


class Session:
    """One connection to one monitor. `closed` is set when it breaks or is closed."""

    def __init__(self, client: QMPClient) -> None:
        self.closed = asyncio.Event()
        self._client = client
        self._passing = asyncio.Lock()
        self._watcher = asyncio.create_task(self._watch(), name="qmp connection")

    @classmethod
    async def connect(
        cls, path: Path, on_event: OnEvent, *, timeout: float = CONNECT_SECONDS
    ) -> Session:
        """Connect, greet and negotiate. `on_event` gets each event's name and data; it may not
        raise nor wait.

        :raise MonitorLost: nobody listens, or QEMU ended meanwhile.
        :raise DeadlineExceeded: no greeting within `timeout` seconds: QEMU hangs, or another
            client holds the monitor.
        """
        client = _Client()
        client.register_listener(_Tap(on_event))
        try:
            async with asyncio.timeout(timeout):
                await client.connect(str(path))
        except TimeoutError:
            await _abandon(client)
            raise DeadlineExceeded(
                f"The engine did not greet within {timeout:g} seconds.",
                hint="It hangs, or another program holds its monitor.",
            ) from None
        except (QMPError, OSError, EOFError) as error:
            await _abandon(client)
            raise MonitorLost(f"The engine's monitor cannot be reached: {error}.") from error
        except BaseException:
            await _abandon(client)
            raise
        return cls(client)

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """One command; what it returned.

        :raise QmpFailed: it was refused; with QEMU's words. :raise MonitorLost:
        :raise DeadlineExceeded: no answer within COMMAND_SECONDS.
        """
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise QmpFailed(
                f"The engine refused {command!r}: {error}.", command=command, reason=str(error)
            ) from None
        except TimeoutError:
            raise DeadlineExceeded(
                f"The engine did not answer {command!r} within {COMMAND_SECONDS:g} seconds."
            ) from None
        except (ExecInterruptedError, QMPError, OSError, EOFError) as error:
            raise MonitorLost(f"The engine ended or hung up during {command!r}.") from error

    async def pass_fd(
        self, fd: int, command: str, arguments: Mapping[str, object] | None = None
    ) -> Any:
        """A command that takes a descriptor (`getfd`, `add-fd`). `fd` stays the caller's."""
        # The next command takes the descriptor that came last: nobody may come between.
        async with self._passing:
            try:
                self._client.send_fd_scm(fd)
            except (OSError, AssertionError, QMPError) as error:
                raise MonitorLost(f"The engine hung up before {command!r}.") from error
            return await self.execute(command, arguments)

    async def human(self, line: str) -> str:
        """One line for the human monitor; its reply. Raises as `execute`."""
        reply = await self.execute("human-monitor-command", {"command-line": line})
        return str(reply)

    async def close(self) -> None:
        """Hang up. QEMU goes on."""
        self.closed.set()
        self._watcher.cancel()
        await asyncio.gather(self._watcher, return_exceptions=True)
        await _abandon(self._client)

    async def _watch(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        await _abandon(self._client)
        self.closed.set()


async def _abandon(client: QMPClient) -> None:
    """Back to idle, whatever broke it: disconnect() raises that once more."""
    try:
        await client.disconnect()
    except (QMPError, OSError, EOFError):
        pass
