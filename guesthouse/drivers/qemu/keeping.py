"""The driver's hold on the keeper: connected on demand; a new one is introduced to the guests."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, suppress
from pathlib import Path

from guesthouse.errors import GuesthouseError
from guesthouse.host.keeper_client import AdoptRequest, ExitRecord, KeeperClient

log = logging.getLogger(__name__)

RECORD_SECONDS = 5.0
"""The keeper sees an end when we do; it needs time only to write it down."""
_RETRY_SECONDS = 1.0


class KeeperLink:
    """One keeper for all guests. If it is killed another is started, which adopts the living."""

    def __init__(self, socket: Path, state: Path) -> None:
        self._socket, self._state = socket, state
        self._client: KeeperClient | None = None
        self._connecting = asyncio.Lock()
        self._guests: dict[str, AdoptRequest] = {}
        self._watcher: asyncio.Task[None] | None = None

    async def client(self) -> KeeperClient:
        """A connected client. :raise KeeperUnavailable: none answers and none could be started."""
        if self._client is not None and not self._client.closed.is_set():
            return self._client
        async with self._connecting:
            if self._client is None:
                self._client = await KeeperClient.connect(self._socket, state=self._state)
                self._watcher = asyncio.create_task(self._watch(), name="keeper link")
            elif self._client.closed.is_set() and await self._client.reconnect():
                await self._introduce(self._client)
            return self._client

    def add(self, guest: AdoptRequest) -> None:
        """Have a running process adopted by every later keeper."""
        self._guests[guest.key] = guest

    def remove(self, key: str) -> None:
        self._guests.pop(key, None)

    async def written(self, key: str) -> ExitRecord | None:
        """How the process of `key`, which has ended, did; None if the keeper knows nothing of it.

        :raise KeeperUnavailable:
        """
        client = await self.client()
        watched = any(process.key == key for process in await client.processes())
        if watched:  # it is about to write it down
            return await self.record(key)
        return next((r for r in await client.exit_records() if r.key == key), None)

    async def record(self, key: str, timeout: float = RECORD_SECONDS) -> ExitRecord | None:
        """How the process of `key` ended; None if the keeper does not tell within `timeout` s."""
        try:
            async with asyncio.timeout(timeout):
                client = await self.client()
                async with aclosing(client.exits()) as records:  # type: ignore[type-var]  # an async generator, declared as an iterator
                    async for record in records:
                        if record.key == key:
                            return record
        except (GuesthouseError, TimeoutError) as error:
            log.warning("the keeper does not tell how %s ended: %s", key, error)
        return None

    async def forget(self, key: str) -> None:
        """Delete an exit record, where there is one."""
        try:
            await (await self.client()).forget(key)
        except GuesthouseError as error:
            log.debug("no exit record of %s was deleted: %s", key, error)

    async def close(self) -> None:
        """Leave. The guests stay, and the keeper with them; one that has nothing to keep ends."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        if self._client is not None:
            with suppress(GuesthouseError):
                if not await self._client.fds():
                    await self._client.quit()  # refused while a guest lives
            self._client.close()

    async def _watch(self) -> None:
        """Guests must not stay unwatched until somebody happens to ask for the keeper."""
        while True:
            assert self._client is not None  # this task is started with it
            await self._client.closed.wait()
            log.warning("the keeper has gone; starting another")
            try:
                await self.client()
            except GuesthouseError as error:
                log.error("no keeper: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _introduce(self, client: KeeperClient) -> None:
        for guest in tuple(self._guests.values()):
            try:
                await client.adopt(guest)
            except GuesthouseError as error:
                log.warning("the new keeper does not adopt %s: %s", guest.key, error)
