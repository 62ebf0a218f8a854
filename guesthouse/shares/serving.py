"""Starting and finding the file server of a share: a process of its own that outlives the daemon.

It holds one end of the connection to the guest and ends when QEMU does, so that nothing has to
clean up after it. A record beside it says who it is; the next daemon finds it by that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import signal
import stat
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import NamedTuple

import msgspec

from guesthouse.errors import DeadlineExceeded, InvalidInput, LaunchFailed, NotFound
from guesthouse.host.process import ProcessHandle, start_ticks, wait_pidfd
from guesthouse.model.document import Noun, decode_strict, encode
from guesthouse.model.share import Share, Way

_PROGRAM = Path(__file__).parent / "server" / "__main__.py"
_READY_SECONDS = 20.0
_STOP_SECONDS = 5.0
_LINE = 16 << 10


class Source(NamedTuple):
    """A folder as it was looked at. :ivar path: with all symbolic links resolved."""

    path: str
    device: int
    inode: int


class ServerRecord(Noun, kw_only=True, frozen=True):
    """What the daemon writes down about a running file server.

    :ivar walls: `namespace`, `landlock`: what stands around it. :ivar missing: what does not, why.
    :ivar way: how the guest gets at it. :ivar reason: why that way; one sentence.
    :ivar device: the guest's device, where the way has one.
    :ivar mounted: the guest has mounted it; else that is still under way.
    """

    pid: int
    start_ticks: int
    share: Share
    walls: tuple[str, ...]
    missing: tuple[str, ...] = ()
    way: Way = Way.SFTP
    reason: str = ""
    device: str = ""
    mounted: bool = False


class Standing(NamedTuple):
    """What a record says beside the process."""

    walls: tuple[str, ...]
    missing: tuple[str, ...] = ()
    way: Way = Way.SFTP
    reason: str = ""
    device: str = ""


def look_at(path: str, *, field: str = "source") -> Source:
    """Resolve and stat a folder; blocking.

    :raise InvalidInput: there is no such folder, or it may not be entered.
    """
    try:
        resolved = os.path.realpath(path, strict=True)
        status = os.stat(resolved)  # noqa: PTH116  # beside realpath, whose strictness pathlib lacks
    except OSError as error:
        raise InvalidInput(
            f"The folder {path} cannot be shared: {error.strerror}.",
            hint="Is it there, and may you enter it?",
            field=field,
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise InvalidInput(
            f"{path} is not a folder.", hint="Share the folder that holds it.", field=field
        )
    return Source(resolved, status.st_dev, status.st_ino)


class FileServer:
    """A running file server, whoever started it."""

    def __init__(
        self, record: ServerRecord, process: ProcessHandle, child: subprocess.Popen[bytes] | None
    ) -> None:
        self.record = record
        self._process = process
        self._reaper = asyncio.create_task(_reap(child)) if child is not None else None

    @classmethod
    async def start(
        cls,
        share: Share,
        connection: int,
        *,
        guest: tuple[int, int],
        place: Path,
        reason: str = "",
    ) -> FileServer:
        """Serve `share` on `connection`, a connected socket, which stays the caller's.

        :param guest: (uid, gid) that the guest knows the sharing user by.
        :param place: where to keep the record; `.log` beside it takes its messages.
        :param reason: why this way, for people.
        :raise InvalidInput: the folder has gone. :raise LaunchFailed: it did not come up.
        """
        source = await asyncio.to_thread(look_at, share.source)
        config = {
            "source": source.path,
            "identity": [source.device, source.inode],
            "host": [share.host_uid, share.host_gid],
            "groups": await asyncio.to_thread(groups_of, share),
            "guest": guest,
            "read_only": share.read_only,
        }
        child = await asyncio.to_thread(_spawn, config, connection, place.with_suffix(".log"))

        async def stands() -> Standing:
            told = await _told(child)
            return Standing(tuple(told["walls"]), tuple(told["missing"]), reason=reason)

        return await cls.take_in(child, share, stands(), place=place)

    @classmethod
    async def take_in(
        cls,
        child: subprocess.Popen[bytes],
        share: Share,
        stands: Coroutine[None, None, Standing],
        *,
        place: Path,
    ) -> FileServer:
        """Wait until a child that was just started serves, and write it down.

        :param stands: ends once it does, with what is to be recorded. Whatever it raises ends the
            child.
        :raise LaunchFailed: it did not come up.
        """
        try:
            standing = await stands
            ticks = start_ticks(child.pid)
            process = ProcessHandle.open(child.pid, ticks)
        except BaseException as error:
            stands.close()
            child.kill()
            await asyncio.shield(asyncio.to_thread(child.wait))
            if isinstance(error, NotFound):
                raise LaunchFailed("The file server ended at once.") from error
            raise
        record = ServerRecord(pid=child.pid, start_ticks=ticks, share=share, **standing._asdict())
        await asyncio.to_thread(_write, place, encode(record))
        return cls(record, process, child)

    @classmethod
    def find(cls, place: Path) -> FileServer | None:
        """The one whose record lies at `place`, if it lives; blocking but short."""
        record = recorded(place)
        try:
            process = ProcessHandle.open(record.pid, record.start_ticks) if record else None
        except NotFound:
            process = None
        return cls(record, process, None) if record and process else None

    async def is_mounted(self, place: Path) -> None:
        """Write down that the guest has mounted it."""
        if not self.record.mounted:
            self.record = msgspec.structs.replace(self.record, mounted=True)
            await asyncio.to_thread(_write, place, encode(self.record))

    @property
    def alive(self) -> bool:
        return self._process.alive

    async def wait(self, timeout: float | None = None) -> None:
        """Until it has ended. :raise DeadlineExceeded: not within `timeout` seconds."""
        await self._process.wait(timeout)

    async def stop(self) -> None:
        """End it. Nothing is lost: it has no buffers, what it answered has been done."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._process.send_signal(number)
            with contextlib.suppress(DeadlineExceeded):
                await self._process.wait(_STOP_SECONDS)
                break
        if self._reaper is not None:
            await self._reaper
        self._process.close()


def recorded(place: Path) -> ServerRecord | None:
    """What lies at `place`, whether it lives or not; blocking but short."""
    try:
        return decode_strict(place.read_bytes(), ServerRecord, what="record")
    except (OSError, InvalidInput):
        return None


def groups_of(share: Share) -> list[int]:
    """All groups of the sharing user; blocking."""
    try:
        name = pwd.getpwuid(share.host_uid).pw_name
    except KeyError:
        return []
    return os.getgrouplist(name, share.host_gid)


def _spawn(config: dict[str, object], connection: int, log: Path) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-I", "-S", str(_PROGRAM), json.dumps(config)]
    with log.open("ab") as messages:
        return subprocess.Popen(
            argv,
            stdin=connection,
            stdout=subprocess.PIPE,
            stderr=messages,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
        )


async def _told(child: subprocess.Popen[bytes]) -> dict[str, list[str]]:
    """What the server says first: its walls. :raise LaunchFailed: it says what is wrong."""
    assert child.stdout is not None
    with child.stdout as stream:
        try:
            line = await asyncio.wait_for(asyncio.to_thread(stream.readline, _LINE), _READY_SECONDS)
            told = msgspec.json.decode(line, type=dict[str, list[str] | str])
        except (TimeoutError, msgspec.DecodeError):
            raise LaunchFailed(
                "The file server of the share did not come up.", hint="Its log says more."
            ) from None
    if "error" in told:
        raise LaunchFailed(f"The folder cannot be served: {told['error']}.")
    return {name: list(value) for name, value in told.items()}


def _write(place: Path, data: bytes) -> None:
    new = place.with_suffix(".new")
    new.write_bytes(data)
    new.replace(place)


async def _reap(child: subprocess.Popen[bytes]) -> None:
    """Not by a thread that waits: it would hold up the daemon's end."""
    fd = os.pidfd_open(child.pid)
    try:
        await wait_pidfd(fd)
    finally:
        os.close(fd)
    child.wait()
