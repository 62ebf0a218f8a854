"""A small house for tests of jobs: a real store, a runner, and operations that do as told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from guesthouse.jobs.context import JobContext
from guesthouse.jobs.record import Observer
from guesthouse.jobs.registry import Operation, Registry, Result
from guesthouse.jobs.runner import JobRunner
from guesthouse.model.document import Noun
from guesthouse.store.contract import Op, Store
from guesthouse.store.documents import Documents
from guesthouse.store.sqlite import SqliteStore

DEADLINE = 30

Body = Callable[[JobContext], Awaitable[Result]]


class ToyParams(Noun, kw_only=True, frozen=True):
    """:ivar on: keys to lock. :ivar text: whatever the test wants."""

    on: tuple[str, ...] = ()
    text: str = ""


class Toy(Operation[ToyParams]):
    """Runs the body that a test gives it. :ivar runs: how often it was run."""

    Params = ToyParams

    def __init__(
        self, kind: str, body: Body, *, may_cancel: bool = True, lock_deadline: float = 600.0
    ) -> None:
        self.kind = kind  # type: ignore[misc]  # one class stands for many kinds here
        self.may_cancel = may_cancel  # type: ignore[misc]  # per object here, the class's elsewhere
        self.lock_deadline = lock_deadline  # type: ignore[misc]  # per object here, the class's elsewhere
        self.body = body
        self.runs = 0

    def locks(self, params: ToyParams) -> Sequence[str]:
        return params.on

    async def run(self, ctx: JobContext, params: ToyParams) -> Result:
        self.runs += 1
        return await self.body(ctx)


class CountingStore:
    """Passes everything on to a real store, counts commits, and fails when told to.

    :ivar failing: raised by commits that it answers an error for.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.commits = 0
        self.failing: Callable[[Sequence[Op]], Exception | None] = lambda ops: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, ops: Sequence[Op]) -> int:
        if error := self.failing(ops):
            raise error
        self.commits += 1
        return await self._store.commit(ops)


class ToyHouse:
    def __init__(self, folder: Path, store: Store, observer: Observer | None) -> None:
        self.store = CountingStore(store)
        self.documents = Documents(self.store)
        self.registry = Registry()
        self.folder = folder
        self.runner = JobRunner(
            self.documents, self.registry, folder / "jobs", requester="test", observer=observer
        )

    def toy(self, kind: str, body: Body, **options: Any) -> Toy:
        toy = Toy(kind, body, **options)
        self.registry.register(toy)
        return toy


@asynccontextmanager
async def toy_house(folder: Path, observer: Observer | None = None) -> AsyncIterator[ToyHouse]:
    """Opens the same house again when the folder is the same."""
    store = await SqliteStore.open(folder / "guesthouse.db")
    house = ToyHouse(folder, store, observer)
    try:
        yield house
    finally:
        await house.runner.close()
        await store.close()


async def forever(ctx: JobContext) -> None:
    await asyncio.Event().wait()


async def nothing(ctx: JobContext) -> None:
    return None


async def until(condition: Callable[[], bool]) -> None:
    """Let others run until `condition` holds."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - conditions of many kinds
            await asyncio.sleep(0.001)
