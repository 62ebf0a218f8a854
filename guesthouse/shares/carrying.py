"""One share of a running guest, by whichever way: plugged in, served, mounted; all of it undone.

By sftp a share has a virtio-serial port of its own, whose other end is our file server; by virtiofs
a device, whose other end is virtiofsd. Neither the daemon nor a network is between them, so the
mount lives on when the daemon is restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from guesthouse.errors import EngineError, GuesthouseError, LaunchFailed
from guesthouse.host import virtiofsd
from guesthouse.host.process import is_alive
from guesthouse.model.share import Share, Way
from guesthouse.shares import inside, vhost, virtiofs
from guesthouse.shares.choosing import Choice, GuestAbilities, HostAbilities, Wanted, choose
from guesthouse.shares.serving import FileServer, ServerRecord, recorded

RUN_SECONDS = 120.0
_FOUND_SECONDS = 10


class Ended(Protocol):
    @property
    def code(self) -> int | None: ...


class Inside(Protocol):
    """Runs commands in the guest as root, as `guestos.ssh.GuestSsh` does."""

    async def run(
        self, argv: Sequence[str], *, data: bytes = b"", timeout: float = 60.0
    ) -> tuple[Ended, bytes, bytes]: ...


class Ports(Protocol):
    """What is plugged into a guest while it runs; a driver does it (`drivers.base.Running`)."""

    async def plug_port(self, name: str, connection: int, *, seen_as: str) -> None: ...
    async def unplug_port(self, name: str) -> None: ...
    async def folders_lack(self) -> tuple[str, str]: ...
    async def plug_folder(self, name: str, connection: int) -> None: ...
    async def unplug_folder(self, name: str) -> None: ...


Find = Callable[[], Awaitable[virtiofsd.Virtiofsd]]


class Carrier:
    """Its caller sees to it that one thing happens at a time.

    :param folder: the guest's own runtime folder, for records of file servers.
    :param user: whom the shares belong to in the guest unless they say otherwise.
    :ivar lost: shares whose file server ended although nobody ended it.
    """

    def __init__(
        self, folder: Path, run: Inside, ports: Ports, *, user: str, find: Find = virtiofsd.find
    ) -> None:
        self._folder, self._inside, self._ports, self._user = folder, run, ports, user
        self._find = find
        self._servers: dict[str, FileServer] = {}
        self._watched: dict[FileServer, asyncio.Task[None]] = {}
        self.lost: asyncio.Queue[Share] = asyncio.Queue()

    async def abilities(self) -> GuestAbilities:
        """What the guest can do. Raises as the guest's `run`."""
        _ended, out, _errors = await self._inside.run(inside.look(), timeout=RUN_SECONDS)
        return inside.abilities(out)

    async def mount(self, share: Share) -> None:
        """What is there already stays. Undone when it fails; raises as `GuestShares.mount`."""
        served = self.server(share)
        if served is not None and served.record.share == share:
            if await self._is_mounted(share):
                await self._has(served)
                return
            if served.record.way is Way.VIRTIOFS:
                # A guest that was reset finds its device again.
                with contextlib.suppress(GuesthouseError):
                    await self._mount_virtiofs(share, served, seconds=_FOUND_SECONDS)
                    await self._has(served)
                    return
        await self.let_go(share, strict=True)
        try:
            await self._mount_anew(share)
        except BaseException:
            await asyncio.shield(self.let_go(share))
            raise
        await self._has(self._servers[share.name])

    async def unmount(self, share: Share) -> None:
        """:raise InUse: something in the guest uses it; everything stays as it was."""
        if self.server(share) is None:
            # Before the guest asks a virtiofsd that has died, and waits for ever.
            await self.let_go(share, strict=True)
        ended, out, errors = await self._inside.run(inside.unmount(share), timeout=RUN_SECONDS)
        inside.check_unmounted(share, ended.code, out, errors)
        await self.let_go(share, strict=True)

    async def let_go(self, share: Share, *, strict: bool = False) -> None:
        """The host's side of it: device or port, server, record.

        :param strict: raise `EngineError` if the guest does not give the device back; else nothing
            is raised.
        """
        place = self._place(share)
        record = recorded(place)
        served = self._servers.pop(share.name, None) or FileServer.find(place)
        try:
            if record is not None and record.device:
                await self._ports.unplug_folder(record.device)
            else:
                await self._ports.unplug_port(_port(share))
        except GuesthouseError as error:
            if strict and record is not None and record.device:
                raise self._held(share, error, dead=served is None or not served.alive) from error
        if served is not None:
            await served.stop()
        place.unlink(missing_ok=True)

    @staticmethod
    def _held(share: Share, error: GuesthouseError, *, dead: bool) -> EngineError:
        """:param dead: its server has died under a request, whose answer the guest waits for."""
        if not dead:
            return EngineError(f"The share at {share.target} cannot be unplugged: {error}")
        return EngineError(
            f"The file server of the share at {share.target} died under what the guest was doing"
            " there, which waits for it until the guest is restarted.",
            hint="It is there again after: guest restart NAME",
        )

    def record(self, share: Share) -> ServerRecord | None:
        """Who serves it, if somebody does; blocking but short, and for any thread."""
        served = self._servers.get(share.name)
        found = served.record if served is not None else recorded(self._place(share))
        return found if found is not None and is_alive(found.pid, found.start_ticks) else None

    def server(self, share: Share) -> FileServer | None:
        """The living file server of the share, also one that an earlier daemon started; blocking
        but short, and for whoever's turn it is."""
        served = self._servers.get(share.name) or FileServer.find(self._place(share))
        if served is None or not served.alive:
            return None
        self._servers[share.name] = served
        return served

    def close(self) -> None:
        """Watch no more. Shares are not touched."""
        for task in self._watched.values():
            task.cancel()

    # --- by which way ---------------------------------------------------------------------------

    async def _mount_anew(self, share: Share) -> None:
        wanted = Wanted(read_only=share.read_only, way=share.way, root=share.host_uid == 0)
        host, guest = await self._host(), await self.abilities()
        choice = choose(wanted, host, guest)
        if choice.way is Way.SFTP:
            await self._by_sftp(share, choice)
            return
        try:
            await self._by_virtiofs(share, choice, host.virtiofsd)
        except (EngineError, LaunchFailed) as error:
            if share.way is not None:
                raise
            host = msgspec.structs.replace(host, engine=f"it failed: {error}".rstrip("."))
            choice = choose(wanted, host, guest)
            await self.let_go(share)
            await self._by_sftp(share, choice)

    async def _host(self) -> HostAbilities:
        found = await self._find()
        engine, risk = await self._ports.folders_lack() if found.rust else ("", "")
        return HostAbilities(
            virtiofsd=found.path if found.rust else "",
            virtiofsd_maps=found.maps,
            virtiofsd_read_only=found.read_only,
            engine=engine,
            risk=risk,
        )

    async def _by_virtiofs(self, share: Share, choice: Choice, program: str) -> None:
        guest = await self._ids(share)
        device = virtiofs.new_tag(share)
        served, connection = await vhost.start(
            program, share, guest=guest, place=self._place(share), device=device,
            reason=choice.reason,
        )  # fmt: skip
        self._servers[share.name] = served
        with connection:
            await self._ports.plug_folder(device, connection.fileno())
        await self._mount_virtiofs(share, served)

    async def _mount_virtiofs(
        self, share: Share, served: FileServer, *, seconds: int = inside.MOUNT_SECONDS
    ) -> None:
        argv = inside.mount_virtiofs(share, served.record.device, seconds=seconds)
        await self._run_mount(share, argv)

    async def _by_sftp(self, share: Share, choice: Choice) -> None:
        """A new port and a new file server: the old port may hold half a message, and the guest may
        notice late that it has gone."""
        guest = await self._ids(share)
        seen_as = f"{inside.PORT_PREFIX}{share.name}.{secrets.token_hex(4)}"
        ours, theirs = socket.socketpair()
        with ours, theirs:
            # First the server: the guest takes a port without anybody behind it for hung up.
            self._servers[share.name] = await FileServer.start(
                share, ours.fileno(), guest=guest, place=self._place(share), reason=choice.reason
            )
            await self._ports.plug_port(_port(share), theirs.fileno(), seen_as=seen_as)
        argv, data = inside.mount_sftp(share, seen_as)
        await self._run_mount(share, argv, data)

    async def _ids(self, share: Share) -> tuple[int, int]:
        user = share.guest_user or self._user
        ended, out, _errors = await self._inside.run(inside.ask_ids(user), timeout=RUN_SECONDS)
        return inside.ids(user, ended.code, out)

    async def _run_mount(self, share: Share, argv: Sequence[str], data: bytes = b"") -> None:
        ended, _out, errors = await self._inside.run(argv, data=data, timeout=RUN_SECONDS)
        inside.check_mounted(share, ended.code, errors)

    async def _is_mounted(self, share: Share) -> bool:
        ended, _out, _errors = await self._inside.run(inside.is_mounted(share), timeout=RUN_SECONDS)
        return ended.code == 0

    # --- file servers that end ------------------------------------------------------------------

    async def _has(self, served: FileServer) -> None:
        """The guest has it: that is written down, and its server watched."""
        await served.is_mounted(self._place(served.record.share))
        if served not in self._watched:
            self._watched[served] = asyncio.create_task(self._until_lost(served))

    async def _until_lost(self, served: FileServer) -> None:
        share = served.record.share
        try:
            await served.wait()
            if self._servers.get(share.name) is served:
                self.lost.put_nowait(share)
        finally:
            self._watched.pop(served, None)

    def _place(self, share: Share) -> Path:
        return self._folder / f"share-{share.name}.json"


def _port(share: Share) -> str:
    return f"share.{share.name}"
