"""Doing several things until the first of them ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def first(*work: Coroutine[Any, Any, T]) -> T:
    """What the first of `work` to end answers or raises; the rest is cancelled and awaited.

    When several have ended, the one named earliest counts.
    """
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def none_after(event: asyncio.Event) -> None:
    """Something to race against: ends when `event` is set."""
    await event.wait()
