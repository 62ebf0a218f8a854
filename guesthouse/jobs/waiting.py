"""Waiting for locks: who is waited for is shown, and named when it takes too long."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from guesthouse.errors import Busy
from guesthouse.jobs.locks import Locks, LockTimeout
from guesthouse.jobs.record import JobRecord
from guesthouse.model.job import Job

if TYPE_CHECKING:
    from guesthouse.jobs.runner import JobRunner


def describe(job: Job) -> str:
    """`job 01J… (guest.start) of guest web`, for messages."""
    text = f"job {job.id} ({job.kind})"
    if not job.target and not job.target_name:
        return text
    noun = job.target.partition("/")[0].removesuffix("s")
    name = job.target_name or job.target.partition("/")[2]
    return f"{text} of {noun} {name}".replace("  ", " ")


async def take_locks(
    locks: Locks,
    record: JobRecord,
    keys: Iterable[str],
    runner: JobRunner,
    timeout: float,
    *,
    first: bool = False,
) -> None:
    """Take `keys` for a job, with its progress saying whom it waits for.

    They are noted in its document, which the next write makes durable: recovery takes them again
    before anything else may.

    :raise Busy: not within `timeout` seconds; `detail` has holder, kind and target.
    :raise Internal: the order of locks is violated.
    """
    wanted = tuple(keys)

    def show(key: str, holder: str) -> None:
        record.progress(None, f"waiting for {_name(runner, holder)}")

    try:
        await locks.acquire(record.id, wanted, timeout=timeout, first=first, on_wait=show)
    except LockTimeout as error:
        holder = runner.find(error.holder)
        raise Busy(
            f"{_what(record.job, error.key)} is busy: {_name(runner, error.holder)} did not end "
            f"within {timeout:.0f} s.",
            hint=f"Wait for it (guest job show {error.holder}), or cancel it: "
            f"guest job cancel {error.holder}",
            holder=error.holder,
            kind=holder.kind if holder else "",
            target=holder.target if holder else "",
        ) from None
    missing = tuple(key for key in dict.fromkeys(wanted) if key not in record.job.locks)
    if missing:
        record.amend(locks=record.job.locks + missing)


def _name(runner: JobRunner, holder: str) -> str:
    job = runner.find(holder)
    return describe(job) if job else f"job {holder}"


def _what(job: Job, key: str) -> str:
    noun, _, id = key.partition("/")
    name = job.target_name if key == job.target and job.target_name else id
    return f"{noun.removesuffix('s').capitalize()} {name!r}"
