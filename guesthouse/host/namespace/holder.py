"""The holder as the daemon sees it: found by its record, made or replaced by a program."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from guesthouse.errors import EngineError
from guesthouse.host.namespace.entering import PROGRAM, Doors, tool_environment
from guesthouse.host.namespace.idplan import Extent, IdPlan
from guesthouse.host.namespace.inside.record import Record, holds, load
from guesthouse.host.spawn import run

_DEADLINE = 30.0

Origin = Literal["found", "made", "regained"]
"""`found`: it lived. `regained`: a new holder for namespaces that lived. `made`: all is new."""


class Failure(NamedTuple):
    """Why there is no namespace: the step (inside/), its errno, what a program said."""

    step: str
    number: int
    said: str


class Member(NamedTuple):
    """A process of this house, through which a lost holder's namespaces may be found.

    :ivar ticks: when it began, in clock ticks since boot.
    """

    pid: int
    ticks: int


async def living(record: Path) -> Record | None:
    """The record at `record` if its holder lives."""

    def look() -> Record | None:
        known = load(str(record))
        return known if known is not None and holds(known) else None

    return await asyncio.to_thread(look)


async def ensure(
    record: Path,
    plan: IdPlan,
    *,
    members: Sequence[Member] = (),
    known: Record | None = None,
    doors: Doors | None = None,
) -> tuple[Record, Origin] | Failure:
    """Find the holder, or replace it in namespaces that still live, or make all anew.

    :param plan: for the id map of a new user namespace.
    :param known: what the record said when it was last seen; it may have been removed since.
    :param doors: descriptors of the namespaces, if somebody kept them.
    :raise EngineError: the program that does it does not run.
    """
    kept: dict[str, object] = {"known": None if known is None else known._asdict()}
    if doors is not None:
        kept |= {"net": doors.net, "mount": doors.mount}
    fds = (doors.net, doors.mount) if doors is not None else ()
    answer = await _start(
        {"record": str(record), "members": [list(m) for m in members], **_maps(plan), **kept}, fds
    )
    if isinstance(answer, Failure):
        return answer
    return Record(**answer["record"]), answer["origin"]


async def attempt(plan: IdPlan) -> Failure | tuple[str, ...]:
    """Make namespaces, prepare them, open a tap, and let all of it go.

    Answers why that failed, or what could not be made ready and can be done without.
    :raise EngineError: the program that does it does not run.
    """
    answer = await _start({"record": "", "trial": True, **_maps(plan)}, ())
    return answer if isinstance(answer, Failure) else tuple(answer["lacks"])


async def _start(wanted: Mapping[str, object], fds: Sequence[int]) -> dict[str, Any] | Failure:
    done = await run(
        [sys.executable, "-I", "-S", str(PROGRAM), "start"],
        stdin=json.dumps(wanted).encode(),
        timeout=_DEADLINE,
        fds=fds,
        env={"PATH": tool_environment()["PATH"], "LC_ALL": "C.UTF-8"},
        cwd=Path("/"),
    )
    try:
        answer: dict[str, Any] = json.loads(done.out)
    except ValueError:
        raise EngineError(
            f"The holder of the house's namespace was not made: {done.text or done.err!r}"
        ) from None
    if "failed" in answer:
        return Failure(**answer["failed"])
    return answer


def _maps(plan: IdPlan) -> dict[str, list[list[int]]]:
    if not plan.mapped:
        return {}
    return {"uids": _lines(plan.uids), "gids": _lines(plan.gids)}


def _lines(extents: Sequence[Extent]) -> list[list[int]]:
    return [list(extent) for extent in extents]
