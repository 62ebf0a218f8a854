"""The shares of one running guest together: mounted, all or none let go, one turn at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from guesthouse.errors import GuesthouseError, LaunchFailed
from guesthouse.host import virtiofsd
from guesthouse.model.share import Share, Way
from guesthouse.shares.carrying import Carrier, Find, Inside, Ports
from guesthouse.shares.choosing import GuestAbilities
from guesthouse.shares.serving import ServerRecord


class GuestShares:
    """:param folder: the guest's own runtime folder, for records of file servers.

    :param user: the guest's login user, whom the shares belong to unless they say otherwise.
    :param find: tells which virtiofsd the host has.
    """

    def __init__(
        self, folder: Path, run: Inside, ports: Ports, *, user: str, find: Find = virtiofsd.find
    ) -> None:
        self._carrier = Carrier(folder, run, ports, user=user, find=find)
        self._turn = asyncio.Lock()

    async def abilities(self) -> GuestAbilities:
        """What the guest can do. Raises as the guest's `run`."""
        return await self._carrier.abilities()

    async def mount(self, share: Share) -> ServerRecord:
        """Plug, serve and mount; what is there already stays. Undone when it fails.

        :return: who serves it, by which way and why that.
        :raise InvalidInput: the folder has gone, or the guest lacks the user. :raise HostLacks: the
            host has not what the wanted way takes. :raise LaunchFailed: the file server did not
            come up. :raise AgentUnsupported: the guest cannot. :raise EngineError: it failed in the
            guest, or the guest still holds the device of an earlier file server that died.
        """
        async with self._turn:
            await self._carrier.mount(share)
            record = self._carrier.record(share)
            if record is None:
                raise LaunchFailed("The file server of the share ended at once.")
            return record

    async def unmount(self, share: Share) -> None:
        """Unmount, unplug and stop.

        :raise InUse: something in the guest uses it; everything stays as it was.
        :raise EngineError: the guest does not give its device back.
        """
        async with self._turn:
            await self._carrier.unmount(share)

    async def mount_all(self, shares: Iterable[Share]) -> dict[str, GuesthouseError]:
        """Mount every share, also after a start, a restored snapshot or the daemon's restart.

        :return: by name, what was wrong with those that are not there now. One that cannot be
            mounted keeps nobody else out.
        """
        problems: dict[str, GuesthouseError] = {}
        async with self._turn:
            for share in shares:
                try:
                    await self._carrier.mount(share)
                except GuesthouseError as error:
                    problems[share.name] = error
        return problems

    async def unmount_all(self, shares: Sequence[Share]) -> None:
        """Unmount and unplug every share, before the guest's device state is saved: all or none.

        :raise InUse: one is in use, with the process that uses it. :raise EngineError: the guest
            does not give its device back. Those that had been unmounted before are mounted again.
        """
        async with self._turn:
            done: list[Share] = []
            try:
                for share in reversed(shares):
                    done.append(share)
                    await self._carrier.unmount(share)
            except BaseException:
                for share in reversed(done):
                    with contextlib.suppress(GuesthouseError):
                        await asyncio.shield(self._carrier.mount(share))
                raise

    async def dropped(self, share: Share) -> None:
        """Clean up on the host alone: it is not to be there any more. Never raises."""
        async with self._turn:
            await self._carrier.let_go(share)

    async def after_reset(self, share: Share) -> None:
        """The guest was reset and knows nothing of its mounts. Never raises."""
        async with self._turn:
            served = self._carrier.server(share)
            if served is None or served.record.way is not Way.VIRTIOFS:
                await self._carrier.let_go(share)
            # Else the guest finds its device again, and its server with it.

    async def lost(self) -> Share:
        """The next share whose file server ended although nobody ended it; waits for that."""
        return await self._carrier.lost.get()

    def server(self, share: Share) -> ServerRecord | None:
        """Who serves it, if somebody does; host's side alone, blocking but short."""
        return self._carrier.record(share)

    def close(self) -> None:
        """Watch no more. Shares are not touched."""
        self._carrier.close()
