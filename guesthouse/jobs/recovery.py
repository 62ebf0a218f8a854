"""What becomes of a job that an earlier daemon left in the middle: a pure decision.

Recovery is running again. Steps are idempotent and journaled with the ids that they create, so a
second run finishes what the first began. A job whose daemon dies time and again is run only as far
as its journal goes, to register its undos, and is undone from there; if even that kills the daemon,
the next attempt stops before the last step acts.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import msgspec

from guesthouse.errors import GuesthouseError, Interrupted
from guesthouse.jobs.problems import as_problem
from guesthouse.jobs.registry import Operation, Registry
from guesthouse.model.document import convert_strict
from guesthouse.model.job import Job, JobState

ATTEMPTS = 3
"""Attempts to finish a job; after that it is undone."""
UNDO_ATTEMPTS = 3
"""Attempts to undo it; after that it is left, with what it made named."""


class Recovery(NamedTuple):
    """:ivar job: the document to write first. :ivar operation: None when it ends here.

    :ivar undoing: it shall be undone. :ivar avoiding: without repeating its last step.
    :ivar cancel_reason: it was being cancelled.
    """

    job: Job
    operation: Operation[Any] | None
    params: Any = None
    undoing: bool = False
    avoiding: bool = False
    cancel_reason: str | None = None


def plan_recovery(job: Job, registry: Registry) -> Recovery:
    """Decide what to do with a job that has not ended."""
    operation = registry.find(job.kind)
    if operation is None:
        return _ended(
            job,
            Interrupted(
                f"The daemon stopped in the middle, and this Guesthouse knows no {job.kind} jobs.",
                hint="Nothing was touched. Run it with the Guesthouse that began it.",
                **_leftovers(job),
            ),
        )
    try:
        params = convert_strict(job.params, operation.Params, what=f"{job.kind} job")
    except GuesthouseError as error:
        return _ended(job, error)
    cancel_reason = "It was cancelled." if job.cancel_requested else None
    if job.state is JobState.QUEUED:
        return Recovery(job, operation, params, cancel_reason=cancel_reason)
    if job.attempts >= ATTEMPTS + UNDO_ATTEMPTS:
        return _ended(
            job,
            Interrupted(
                f"The daemon died {job.attempts} times in the middle of this, also while undoing.",
                hint="What it made may still be there; see the job's steps: "
                f"guest job show {job.id}",
                **_leftovers(job),
            ),
        )
    again = msgspec.structs.replace(job, state=JobState.RECOVERING, attempts=job.attempts + 1)
    return Recovery(
        again,
        operation,
        params,
        undoing=again.attempts > ATTEMPTS,
        avoiding=again.attempts > ATTEMPTS + 1,
        cancel_reason=cancel_reason,
    )


def _ended(job: Job, error: GuesthouseError) -> Recovery:
    ended = msgspec.structs.replace(
        job, state=JobState.FAILED, problem=as_problem(error), ended_at=time.time()
    )
    return Recovery(ended, None)


def _leftovers(job: Job) -> dict[str, object]:
    return {"steps": {step.name: step.creates for step in job.steps}}
