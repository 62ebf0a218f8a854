"""One running QEMU: told what to do over QMP, watched by its pidfd."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from guesthouse.drivers.base import VNC_SOCKET, DriverEvent, Exit
from guesthouse.drivers.events import Fanout
from guesthouse.drivers.qemu import exits, folders, plugging, screenshot
from guesthouse.drivers.qemu.cards import Cards
from guesthouse.drivers.qemu.keeping import KeeperLink
from guesthouse.drivers.qemu.opening import QMP_SOCKET, remove_sockets
from guesthouse.drivers.qemu.publishing import close_port, open_port
from guesthouse.drivers.qemu.session import Session
from guesthouse.drivers.qemu.states import NEEDS_RESET, state_of, translate
from guesthouse.drivers.qemu.vnc import VncDoor
from guesthouse.errors import (
    DeadlineExceeded,
    GuesthouseError,
    InvalidInput,
    InvalidTransition,
    MonitorLost,
    NotFound,
    QmpFailed,
)
from guesthouse.host.process import ProcessHandle
from guesthouse.model.device import Nic, Publish
from guesthouse.model.guest import LaunchRecord
from guesthouse.model.networking import BUILTIN

log = logging.getLogger(__name__)

T = TypeVar("T")

_DYING_SECONDS = 2.0
"""Between the monitor's end and the process's."""
_RESET_SECONDS = 10.0
_FIRST_RETRY, _LAST_RETRY = 0.1, 5.0


class QemuRunning:
    """Keeps `Running`'s contract. Made by the driver, which also calls `begin`."""

    def __init__(
        self,
        key: str,
        record: LaunchRecord,
        *,
        process: ProcessHandle,
        keeper: KeeperLink,
        cards: Cards,
        runtime: Path,
    ) -> None:
        self._key, self._record = key, record
        self._process, self._keeper, self._cards = process, keeper, cards
        self._runtime = runtime
        self._session: Session | None = None
        self._door: VncDoor | None = None
        self._fan = Fanout()
        self._end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._cleared = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._shutdown: str | None = None

    @property
    def record(self) -> LaunchRecord:
        return self._record

    async def connect(self, timeout: float) -> None:
        """The first connection to the monitor. Raises as `Session.connect`."""
        self._session = await Session.connect(
            self._runtime / QMP_SOCKET, self._heard, timeout=timeout
        )

    def begin(self) -> None:
        """Watch, and open the door to the screen; the monitor may be connected later."""
        if self._record.spec.display:
            self._door = VncDoor(self._runtime / VNC_SOCKET, self._monitor)
        self._tasks = [
            asyncio.create_task(self._watch_process(), name=f"end of {self._key}"),
            asyncio.create_task(self._keep_session(), name=f"monitor of {self._key}"),
        ]

    # --- what can be asked ----------------------------------------------------------------------

    async def state(self) -> tuple[str, str]:
        status = await self._do("query-status")
        return state_of(str(status["status"]))

    async def pause(self) -> None:
        await self._do("stop")

    async def resume(self) -> None:
        """:raise QmpFailed: it stopped for good (panic, KVM internal error): reset it."""
        _state, reason = await self.state()
        if reason in NEEDS_RESET:
            raise QmpFailed(
                f"The guest cannot go on after what stopped it ({reason}).",
                hint="Reset it, or stop it.",
                reason=reason,
            )
        await self._do("cont")

    async def power_button(self) -> None:
        await self._do("system_powerdown")

    async def reset(self) -> None:
        """Like the button. A guest that stopped for good runs again; a paused one stays so."""
        _state, reason = await self.state()
        events = self._fan.listen()
        await self._do("system_reset")
        if reason in NEEDS_RESET:
            # The command only asks for it; until it has happened QEMU refuses to go on.
            await _within(_until_reset(events), _RESET_SECONDS)
            await self._do("cont")

    async def kill(self) -> None:
        if self._end.done():
            return
        self._process.send_signal(signal.SIGKILL)
        # Also of its sockets, so that the next incarnation may bind its own at once.
        await self._process.wait()
        await self._cleared.wait()

    async def screenshot(self) -> bytes:
        if not self._record.spec.display:
            raise InvalidInput(
                "The guest has no display.",
                hint="Give it one (display=true) and start it again.",
                field="display",
            )
        return await self._alive(screenshot.take(self._monitor()))

    async def publish(self, nic: int, port: Publish) -> Publish:
        return await self._alive(open_port(self._cards, nic, port, self._monitor().human))

    async def unpublish(self, nic: int, port: Publish) -> None:
        await self._alive(close_port(self._cards, nic, port, self._monitor().human))

    async def plug_port(self, name: str, connection: int, *, seen_as: str) -> None:
        await self._alive(plugging.plug(self._monitor(), name, connection, seen_as))

    async def unplug_port(self, name: str) -> None:
        await self._alive(plugging.unplug(self._monitor(), name))

    async def plug_nic(self, nic: Nic) -> None:
        started = self._record.spec.nics
        if nic.network == BUILTIN and all(one.network != BUILTIN for one in started):
            raise InvalidTransition(
                "The guest's process cannot reach the host's network: it was started without a "
                "card on a network of its own.",
                hint="Stop the guest first, or name a network of the house: guest network ls",
            )
        await self._alive(self._cards.plug(nic, self._monitor()))

    async def unplug_nic(self, index: int) -> None:
        events = self._fan.listen()
        await self._alive(self._cards.unplug(index, self._monitor(), events))

    async def move_nic(self, nic: Nic) -> None:
        await self._alive(self._cards.move(nic, self._monitor()))

    async def set_link(self, index: int, *, up: bool) -> None:
        await self._alive(self._cards.link(index, self._monitor(), up=up))

    async def folders_lack(self) -> tuple[str, str]:
        return await self._alive(folders.lacks(self._monitor(), self._record.argv))

    async def plug_folder(self, name: str, connection: int) -> None:
        await self._alive(folders.plug(self._monitor(), name, connection))

    async def unplug_folder(self, name: str) -> None:
        await self._alive(folders.unplug(self._monitor(), name))

    def events(self) -> AsyncIterator[DriverEvent]:
        return self._fan.listen()

    async def wait_exit(self) -> Exit:
        return await asyncio.shield(self._end)

    async def detach(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._hang_up()
        self._fan.detach()
        self._process.close()

    # --- the monitor ----------------------------------------------------------------------------

    def _monitor(self) -> Session:
        if self._end.done():
            raise self._gone()
        if self._session is None:
            raise MonitorLost(
                "The engine's monitor does not answer at the moment.",
                hint="It is tried again; 'guest stop --force' needs no monitor.",
            )
        return self._session

    async def _do(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        return await self._alive(self._monitor().execute(command, arguments))

    async def _alive(self, doing: Awaitable[T]) -> T:
        """What `doing` answers; a broken connection of a process that ends is its end."""
        try:
            return await doing
        except MonitorLost:
            if await self._lives():
                raise
            raise self._gone() from None

    def _gone(self) -> NotFound:
        return NotFound("The guest's process has ended.", pid=self._record.pid)

    def _heard(self, name: str, data: Mapping[str, Any]) -> None:
        if name == "SHUTDOWN":
            self._shutdown = str(data.get("reason"))
        event = translate(name, data)
        if event is not None:
            self._fan.send(event)

    async def _keep_session(self) -> None:
        """Connect again whenever the connection breaks and the process lives."""
        while True:
            if self._session is not None:
                await self._session.closed.wait()
                self._session = None
                if not await self._lives():
                    return
                self._fan.send(DriverEvent("lost"))
            await self._reconnect()

    async def _reconnect(self) -> None:
        delay = _FIRST_RETRY
        while self._session is None:
            try:
                await self.connect(_LAST_RETRY)
                state, reason = await self.state()
            except (GuesthouseError, OSError) as error:
                log.debug("monitor of %s: %s", self._key, error)
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LAST_RETRY)
                continue
            kind = "resumed" if state == "running" else "paused"
            self._fan.send(DriverEvent(kind, {"reason": reason, "reconnected": True}))

    async def _lives(self) -> bool:
        if self._end.done():
            return False
        try:
            await self._process.wait(_DYING_SECONDS)
        except DeadlineExceeded:
            return True
        return False

    # --- the end --------------------------------------------------------------------------------

    async def _watch_process(self) -> None:
        await self._process.wait()
        if self._session is not None:
            # What it said last is still on its way through the connection.
            await _within(self._session.closed.wait(), _DYING_SECONDS)
        # First of all: whoever learns of the end may start the next incarnation.
        await self._hang_up()
        await asyncio.to_thread(remove_sockets, self._runtime)
        await self._cards.rest()
        self._cleared.set()
        record = await self._keeper.record(self._key)
        if record is not None:
            end = exits.explain(record, boot_id=self._record.boot_id)
        else:
            end = exits.seen(self._shutdown)
        self._keeper.remove(self._key)
        self._end.set_result(end)
        self._process.close()
        self._fan.send(DriverEvent("exit", {"reason": end.reason, "message": end.message}))

    async def _hang_up(self) -> None:
        if self._door is not None:
            await self._door.close()
        if self._session is not None:
            await self._session.close()


async def _until_reset(events: AsyncIterator[DriverEvent]) -> None:
    async for event in events:
        if event.kind == "reset":
            return


async def _within(doing: Awaitable[object], seconds: float) -> None:
    try:
        await asyncio.wait_for(doing, seconds)
    except TimeoutError:
        pass
