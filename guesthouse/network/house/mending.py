"""Making whole what broke: again and again, with growing pauses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from guesthouse.errors import GuesthouseError

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 30.0
"""Between attempts, in seconds; doubled each time."""
_STABLE_SECONDS = 10.0
"""After which what was made whole counts as lasting."""


class Mending:
    """:param mend: makes everything as it is wanted; raises GuesthouseError or OSError where it
    cannot yet.
    """

    def __init__(self, mend: Callable[[], Awaitable[None]]) -> None:
        self._mend = mend
        self._task: asyncio.Task[None] | None = None
        self._broken = False
        self._pause, self._broke_at = 0.0, 0.0

    def soon(self) -> None:
        """Something broke."""
        self._broken = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        """Until everything is whole. What dies again and again is tried less and less often."""
        now = asyncio.get_running_loop().time
        if now() - self._broke_at > _STABLE_SECONDS:
            self._pause = 0.0
        while self._broken:
            await asyncio.sleep(self._pause)
            self._broke_at, self._broken = now(), False
            self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)
            try:
                await self._mend()
            except (GuesthouseError, OSError) as error:
                log.warning("the house's network is not whole yet: %s", error)
                self._broken = True
