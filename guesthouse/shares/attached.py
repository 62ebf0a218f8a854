"""The shares of one running guest: plugged in, served, mounted; and all of it taken back.

Each share has a virtio-serial port of its own, whose other end is the file server: neither the
daemon nor a network is between them, so the mount lives on when the daemon is restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from guesthouse.errors import GuesthouseError
from guesthouse.model.share import Share
from guesthouse.shares import inside
from guesthouse.shares.choosing import GuestAbilities
from guesthouse.shares.serving import FileServer, ServerRecord

_RUN_SECONDS = 120.0


class Ended(Protocol):
    @property
    def code(self) -> int | None: ...


class Inside(Protocol):
    """Runs commands in the guest as root, as `guestos.ssh.GuestSsh` does."""

    async def run(
        self, argv: Sequence[str], *, data: bytes = b"", timeout: float = 60.0
    ) -> tuple[Ended, bytes, bytes]: ...


class Ports(Protocol):
    """Virtio-serial ports that come and go while the guest runs; a driver has them."""

    async def plug_port(self, name: str, connection: int, *, seen_as: str) -> None:
        """A port whose bytes go through the socket `connection`, which stays the caller's, in
        place of an older one of that name. The guest finds it by the name `seen_as`."""
        ...

    async def unplug_port(self, name: str) -> None:
        """Not there is fine."""
        ...


class GuestShares:
    """:param folder: the guest's own runtime folder, for records of file servers.

    :param user: the guest's login user, whom the shares belong to unless they say otherwise.
    """

    def __init__(self, folder: Path, run: Inside, ports: Ports, *, user: str) -> None:
        self._folder, self._inside, self._ports, self._user = folder, run, ports, user
        self._servers: dict[str, FileServer] = {}
        self._turn = asyncio.Lock()

    async def abilities(self) -> GuestAbilities:
        """What the guest can do. Raises as the guest's `run`."""
        _ended, out, _errors = await self._inside.run(inside.look(), timeout=_RUN_SECONDS)
        return inside.abilities(out)

    async def mount(self, share: Share) -> None:
        """Plug, serve and mount; what is there already stays. Undone when it fails.

        :raise InvalidInput: the folder has gone, or the guest lacks the user.
        :raise LaunchFailed: the file server did not come up. :raise AgentUnsupported: the guest
            cannot. :raise EngineError: it failed in the guest.
        """
        async with self._turn:
            await self._mount(share)

    async def unmount(self, share: Share) -> None:
        """Unmount, stop and unplug.

        :raise InUse: something in the guest uses it; everything stays as it was.
        """
        async with self._turn:
            await self._unmount(share)

    async def mount_all(self, shares: Iterable[Share]) -> dict[str, GuesthouseError]:
        """Mount every share, also after a start, a restored snapshot or the daemon's restart.

        :return: by name, what was wrong with those that are not there now. One that cannot be
            mounted keeps nobody else out.
        """
        problems: dict[str, GuesthouseError] = {}
        async with self._turn:
            for share in shares:
                try:
                    await self._mount(share)
                except GuesthouseError as error:
                    problems[share.name] = error
        return problems

    async def unmount_all(self, shares: Sequence[Share]) -> None:
        """Unmount every share, before the guest's device state is saved: all or none.

        :raise InUse: one is in use, with the process that uses it. Those that had been unmounted
            before are mounted again.
        """
        async with self._turn:
            done: list[Share] = []
            try:
                for share in reversed(shares):
                    done.append(share)
                    await self._unmount(share)
            except BaseException:
                for share in reversed(done):
                    with contextlib.suppress(GuesthouseError):
                        await asyncio.shield(self._mount(share))
                raise

    async def dropped(self, share: Share) -> None:
        """Clean up on the host alone: the guest has gone, or was reset. Never raises."""
        async with self._turn:
            await self._let_go(share)

    def server(self, share: Share) -> ServerRecord | None:
        """Who serves it, if somebody does; host's side alone, blocking but short."""
        served = self._server(share)
        return served.record if served is not None else None

    # --- one share ------------------------------------------------------------------------------

    async def _mount(self, share: Share) -> None:
        served = self._server(share)
        if served is not None and served.record.share == share and await self._is_mounted(share):
            return
        # Always with a new port: the old one may hold half a message.
        port = await self._serve(share)
        try:
            argv, data = inside.mount_sftp(share, port)
            ended, _out, errors = await self._inside.run(argv, data=data, timeout=_RUN_SECONDS)
            inside.check_mounted(share, ended.code, errors)
        except BaseException:
            await asyncio.shield(self._let_go(share))
            raise

    async def _is_mounted(self, share: Share) -> bool:
        ended, _out, _errors = await self._inside.run(
            inside.is_mounted(share), timeout=_RUN_SECONDS
        )
        return ended.code == 0

    async def _serve(self, share: Share) -> str:
        """A new port and a new file server, in place of older ones.

        :return: the port's name in the guest. It is new each time: a guest may notice late that the
            old one has gone.
        """
        await self._let_go(share)
        user = share.guest_user or self._user
        ended, out, _errors = await self._inside.run(inside.ask_ids(user), timeout=_RUN_SECONDS)
        guest = inside.ids(user, ended.code, out)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            # First the server: the guest takes a port without anybody behind it for hung up.
            self._servers[share.name] = await FileServer.start(
                share, ours.fileno(), guest=guest, place=self._place(share)
            )
            try:
                seen_as = f"{inside.PORT_PREFIX}{share.name}.{secrets.token_hex(4)}"
                await self._ports.plug_port(_port(share), theirs.fileno(), seen_as=seen_as)
            except BaseException:
                await asyncio.shield(self._let_go(share))
                raise
        return seen_as

    async def _unmount(self, share: Share) -> None:
        ended, out, errors = await self._inside.run(inside.unmount(share), timeout=_RUN_SECONDS)
        inside.check_unmounted(share, ended.code, out, errors)
        await self._let_go(share)

    async def _let_go(self, share: Share) -> None:
        with contextlib.suppress(GuesthouseError):
            await self._ports.unplug_port(_port(share))
        served = self._server(share)
        if served is not None:
            await served.stop()
        self._servers.pop(share.name, None)
        self._place(share).unlink(missing_ok=True)

    def _server(self, share: Share) -> FileServer | None:
        """The living file server of the share, also one that an earlier daemon started."""
        served = self._servers.get(share.name) or FileServer.find(self._place(share))
        if served is None or not served.alive:
            return None
        self._servers[share.name] = served
        return served

    def _place(self, share: Share) -> Path:
        return self._folder / f"share-{share.name}.json"


def _port(share: Share) -> str:
    return f"share.{share.name}"
