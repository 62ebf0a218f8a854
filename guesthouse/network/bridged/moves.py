"""Interfaces of the host that became ports of bridges: moved, confirmed, given back.

What stands in the folder is what is so on the kernel, and both are gone with the boot of the host:
`NETWORK.moving.json` until somebody confirms, `NETWORK.kept.json` then, `NETWORK.returning.json`
while it is taken back. To rename one into another is what decides.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from guesthouse.errors import Conflict, EngineError, NotFound
from guesthouse.host.namespace.entering import tool_environment
from guesthouse.host.process import ProcessHandle, boot_id
from guesthouse.host.spawn import run
from guesthouse.model.document import Noun
from guesthouse.network.bridged.hostlink import HostLink, look_at
from guesthouse.network.bridged.mover import Mover
from guesthouse.network.bridged.plan import Names, Plan, back_lines, move_plan
from guesthouse.network.house.services import reap, start

log = logging.getLogger(__name__)

CONFIRM_SECONDS = 30.0
_MOVER = Path(__file__).parent / "mover.py"
_LOOK_SECONDS = 0.1
_STATES = ("moving", "kept", "returning")


class _Record(Noun, kw_only=True, frozen=True):
    """What `mover` reads, and whose boot it is of."""

    boot: str
    interface: str
    bridge: str
    forward: tuple[str, ...]
    back: tuple[str, ...]
    gateways: tuple[str, ...]


class Moves:
    """:param folder: in the runtime folder; it is made when it is needed."""

    def __init__(self, folder: Path, *, confirm_seconds: float = CONFIRM_SECONDS) -> None:
        self._folder, self._seconds = folder, confirm_seconds
        self._leaving: set[asyncio.Task[None]] = set()

    def state(self, network: str) -> str:
        """`moving`, `kept`, `returning`, or empty: its interface is as it was. :param network: id.

        A look at a folder in memory, so it is fast enough for the event loop.
        """
        for state in _STATES:
            record = self._read(network, state)
            if record is not None:
                return state if record.boot == boot_id() else ""
        return ""

    def confirm_by(self, network: str) -> float | None:
        """Until when it must be confirmed, in seconds since the epoch; None if it need not."""
        with suppress(OSError, ValueError):
            until = float((self._folder / f"{network}.checked").read_text())
            return until if self.state(network) == "moving" else None
        return None

    def owner(self, bridge: str) -> str:
        """Id of the network that has this bridge of the host; empty for a bridge of others."""
        for file in self._folder.glob("*.json"):
            network = file.name.split(".")[0]
            if Names.of(network).bridge == bridge:
                return network
        return ""

    async def move(self, network: str, link: HostLink, *, unattended: bool = False) -> None:
        """Begin; `settled` tells how it ended. Nothing happens if it has begun.

        :param unattended: it is kept without being asked for, if the host reaches its gateway.
        :raise EngineError: it cannot be begun.
        """
        if self.state(network):
            return
        plan = move_plan(link, Names.of(network))
        await asyncio.to_thread(self._begin, network, plan)
        await self._start_mover(network, unattended=unattended)

    async def settled(self, network: str) -> str:
        """Wait until it is kept or taken back; answers why it was taken back, or nothing.

        A mover that was killed is replaced by taking back here.
        """
        while True:
            state = self.state(network)
            if state == "kept":
                return ""
            if not state:
                return await asyncio.to_thread(self._outcome, network)
            await self._mend(network, "what moved it was killed")
            await asyncio.sleep(_LOOK_SECONDS)

    def confirm(self, network: str) -> None:
        """Keep it. :raise Conflict: there is nothing to confirm (any more)."""
        if self.state(network) == "kept":
            return
        if self.confirm_by(network) is None:
            raise Conflict(
                "There is nothing to confirm: the network has not come so far, or its interface "
                "was given back.",
                hint="See how it is: guest network ls; guest job ls",
            )
        try:
            self._file(network, "moving").rename(self._file(network, "kept"))
        except FileNotFoundError:
            if self.state(network) != "kept":
                raise Conflict(
                    "It was too late: the interface has been given back.",
                    hint="Make the network again, and confirm it in time.",
                ) from None

    async def give_back(self, network: str) -> None:
        """The interface has again what its bridge has by now. Nothing happens if it has it."""
        record = self._read(network, "kept")
        if record is not None and record.boot == boot_id():
            await self._plan_return(network, record)
            await asyncio.to_thread(
                self._file(network, "kept").rename, self._file(network, "returning")
            )
        with suppress(FileNotFoundError):
            await asyncio.to_thread(
                self._file(network, "moving").rename, self._file(network, "returning")
            )
        while self.state(network):
            await self._mend(network, "it was given back")
            await asyncio.sleep(_LOOK_SECONDS)
        await asyncio.to_thread(self._forget, network)

    async def mend(self) -> list[str]:
        """What a crash left in the middle is taken back; answers the ids of these networks.

        Those that somebody is at work on are left alone.
        """
        mended = []
        for file in sorted(self._folder.glob("*.json")):
            network = file.name.split(".")[0]
            if self.state(network) in ("moving", "returning"):
                if await self._mend(network, "the daemon and what moved it were killed"):
                    log.warning("a bridged network was not confirmed: its interface is as it was")
                    mended.append(network)
            elif not self.state(network):
                await asyncio.to_thread(self._forget, network)
        return mended

    async def _mend(self, network: str, why: str) -> bool:
        """Take back what nobody is at work on; whether there was any."""
        with self._lock(network) as lock:
            if lock is None or self.state(network) not in ("moving", "returning"):
                return False
            await asyncio.to_thread(self._take_back, network, why)
            return True

    def _take_back(self, network: str, why: str) -> None:
        mover = Mover(self._folder, network)
        if self.state(network) == "moving":
            mover.take_back(why)
        elif mover.returning.exists():
            mover.finish("")

    async def _plan_return(self, network: str, record: _Record) -> None:
        """What the bridge has by now, a DHCP client's new address say, goes to the interface."""
        link = await look_at(record.bridge)
        if link.addresses or link.routes:
            link = msgspec.structs.replace(link, name=record.interface)
            record = msgspec.structs.replace(record, back=back_lines(link, Names.of(network)))
            await asyncio.to_thread(self._write, self._file(network, "kept"), record)

    def _begin(self, network: str, plan: Plan) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._forget(network)
        record = _Record(boot=boot_id(), **msgspec.structs.asdict(plan))
        self._write(self._file(network, "moving"), record)

    async def _start_mover(self, network: str, *, unattended: bool) -> None:
        with self._lock(network) as lock:
            if lock is None:
                raise EngineError("Somebody is at work on this interface already.")
            argv = [sys.executable, "-I", "-S", str(_MOVER), str(self._folder), network]
            argv += [f"{self._seconds:g}", "3", *(["--unattended"] if unattended else [])]
            pid = start(argv, {3: lock})
        # It is no concern of ours any more, but for taking leave of it.
        leaving = asyncio.create_task(_take_leave(pid))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    @contextmanager
    def _lock(self, network: str) -> Iterator[int | None]:
        """A descriptor that is locked; None where a process has it that is at work."""
        try:
            fd = os.open(
                self._folder / f"{network}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except FileNotFoundError:
            yield None
            return
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            yield fd
        finally:
            os.close(fd)

    def _file(self, network: str, state: str) -> Path:
        return self._folder / f"{network}.{state}.json"

    def _read(self, network: str, state: str) -> _Record | None:
        try:
            return msgspec.json.decode(self._file(network, state).read_bytes(), type=_Record)
        except (OSError, msgspec.DecodeError):
            return None

    def _write(self, file: Path, record: _Record) -> None:
        new = file.with_suffix(".new")
        with new.open("wb") as out:
            out.write(msgspec.json.encode(record))
            out.flush()
            os.fsync(out.fileno())
        new.rename(file)

    def _outcome(self, network: str) -> str:
        try:
            return (self._folder / f"{network}.outcome").read_text()
        except OSError:
            return "it was taken back"

    def _forget(self, network: str) -> None:
        for file in self._folder.glob(f"{network}.*"):
            file.unlink(missing_ok=True)


async def _take_leave(pid: int) -> None:
    with suppress(NotFound), ProcessHandle.open(pid) as handle:
        await handle.wait()
    reap(pid)


async def batch(lines: list[str], *, go_on: bool = False) -> None:
    """Lines for `ip -batch`, on the host. :raise ToolFailed: :raise HostLacks:"""
    if lines:
        argv = ["ip", *(["-force"] if go_on else []), "-batch", "-"]
        text = "".join(f"{line}\n" for line in lines)
        await run(argv, stdin=text.encode(), env=tool_environment(), check=not go_on)
