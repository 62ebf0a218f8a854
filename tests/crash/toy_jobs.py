"""A daemon in small that runs toy jobs on a real store, and kills itself at a point of them.

The toys leave traces on disk and in the store as real operations do: files under `disks/`, and one
entry `things/<id>` for each finished thing, whose value names its disk.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from guesthouse.errors import NotReady
from guesthouse.jobs.context import JobContext
from guesthouse.jobs.registry import Operation, Registry
from guesthouse.jobs.runner import JobRunner
from guesthouse.model.document import Noun
from guesthouse.model.ids import new_id
from guesthouse.model.job import Job
from guesthouse.store.contract import Delete, Put
from guesthouse.store.documents import Documents
from guesthouse.store.sqlite import SqliteStore

DEADLINE = 60
CONTENT = b"whole"


class Points:
    """Notes every point by name, and kills the process (SIGKILL) at the chosen one.

    :ivar chosen: a number of passed points, or a name that kills whenever it comes.
    """

    def __init__(self, chosen: int | str) -> None:
        self.chosen = chosen
        self.passed: list[str] = []

    def reach(self, name: str) -> None:
        self.passed.append(name)
        if self.chosen in (len(self.passed), name):
            os.kill(os.getpid(), signal.SIGKILL)

    def observe(self, job: Job, what: str, when: str) -> None:
        self.reach(f"{job.kind} {what} {when}")


class ThingParams(Noun, kw_only=True, frozen=True):
    thing: str


class Toy(Operation[ThingParams]):
    Params = ThingParams

    def __init__(self, folder: Path, documents: Documents, points: Points) -> None:
        self.disks = folder / "disks"
        self.disks.mkdir(exist_ok=True)
        self.store = documents.store
        self.points = points

    def locks(self, params: ThingParams) -> Sequence[str]:
        return (f"guests/{params.thing}",)

    async def make(self, ctx: JobContext, params: ThingParams) -> str:
        """A disk and its entry in the store, in two steps."""
        disk = (await ctx.step("disk", disk=new_id))["disk"]

        async def drop() -> None:
            self.points.reach("undo begun")
            (self.disks / disk).unlink(missing_ok=True)
            self.points.reach("undo done")

        ctx.undo(drop)
        if not ctx.has_step("entry"):
            (self.disks / disk).write_bytes(CONTENT[:2])
            self.points.reach("disk half")
            (self.disks / disk).write_bytes(CONTENT)
            self.points.reach("disk whole")
        await ctx.step("entry")

        async def forget() -> None:
            await self.store.commit([Delete(f"things/{params.thing}")])

        ctx.undo(forget)
        return disk


class Make(Toy):
    """Ends with its entry written in the transaction that ends the job."""

    kind = "toy.make"

    async def run(self, ctx: JobContext, params: ThingParams) -> dict[str, object]:
        disk = await self.make(ctx, params)
        ctx.final_ops(Put(f"things/{params.thing}", disk.encode()))
        return {"disk": disk}


class Fail(Toy):
    """Makes everything and then fails: nothing may be left."""

    kind = "toy.fail"

    async def run(self, ctx: JobContext, params: ThingParams) -> None:
        disk = await self.make(ctx, params)
        await self.store.commit([Put(f"things/{params.thing}", disk.encode())])
        self.points.reach("entry written")
        raise NotReady("It did not become ready.")


class Remove(Toy):
    """Removes a thing that exists: the entry first, then the disk. There is no way back."""

    kind = "toy.remove"
    may_cancel = False

    async def run(self, ctx: JobContext, params: ThingParams) -> None:
        entry = await self.store.get(f"things/{params.thing}")
        ids = await ctx.step("remove", disk=entry.value.decode() if entry else "")
        await self.store.commit([Delete(f"things/{params.thing}")])
        self.points.reach("entry gone")
        (self.disks / ids["disk"]).unlink(missing_ok=True)
        self.points.reach("disk gone")


class Parent(Toy):
    """Has another job make the thing."""

    kind = "toy.parent"

    def locks(self, params: ThingParams) -> Sequence[str]:
        return (f"images/{params.thing}",)

    async def run(self, ctx: JobContext, params: ThingParams) -> None:
        ids = await ctx.step("child", job=new_id)
        child = await ctx.submit("toy.make", params, job_id=ids["job"])
        await ctx.join(child.id)
        await ctx.step("joined")


TOYS = (Make, Fail, Remove, Parent)
KINDS = tuple(toy.kind for toy in TOYS)


async def house(folder: Path, kind: str, points: Points) -> None:
    """Recover what is left; with a kind, submit such a job and let it end."""
    store = await SqliteStore.open(folder / "guesthouse.db")
    documents, registry = Documents(store), Registry()
    for toy in TOYS:
        registry.register(toy(folder, documents, points))
    runner = JobRunner(documents, registry, folder / "jobs", observer=points.observe)
    await runner.recover()
    if kind:
        await runner.submit(kind, ThingParams(thing="T"))
    async with asyncio.timeout(DEADLINE):
        while jobs := runner.active():
            await runner.wait(jobs[0].id)
    await runner.close()
    await store.close()


def run(folder: str, kind: str, chosen: int | str) -> None:
    """Entry of the process; writes the names of the points it passed if it lives."""
    points = Points(chosen)
    asyncio.run(house(Path(folder), kind, points))
    Path(folder, "passed").write_text("\n".join(points.passed))
