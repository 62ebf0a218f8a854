"""Following a job to its end, across restarts of the daemon.

A job is durable: when the daemon dies in the middle, the next one finishes or undoes it under the
same id. So a broken connection is no answer; the client reaches the daemon again (starting it if
need be) and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import msgspec

from guesthouse.client.house import House, job_path
from guesthouse.client.problems import error_from
from guesthouse.client.sse import events
from guesthouse.client.transport import Transport
from guesthouse.errors import Cancelled, DaemonUnreachable, DeadlineExceeded, Internal
from guesthouse.model.document import decode_strict
from guesthouse.model.job import Job, JobProgress, JobState
from guesthouse.model.reports import LogLine

ATTEMPTS = 6
"""Connections in a row that may bring nothing before the client gives up."""
PAUSE = 0.2
"""Seconds before the second attempt; doubled for each one after it."""

Reconnect = Callable[[], Transport]
Event = JobProgress | LogLine | Job


def follow(house: House, job: Job, *, reconnect: Reconnect) -> Iterator[Event]:
    """Progress, log lines and states of `job` as they come; the last item is the ended job.

    :param reconnect: reaches the daemon anew after the connection broke.
    :raise DaemonUnreachable: it stays away after `ATTEMPTS` attempts.
    :raise GuesthouseError: it answers that it does not know the job.
    """
    if job.ended:
        yield job
        return
    failures = 0
    while True:
        try:
            for event in _stream(house, job.id):
                failures = 0
                yield event
                if isinstance(event, Job) and event.ended:
                    return
            # The daemon is stopping, or the end passed before we listened: ask.
            job = house.job(job.id)
            if job.ended:
                yield job
                return
            failures += 1
            last: DaemonUnreachable | DeadlineExceeded = _gave_up(job)
        except (DaemonUnreachable, DeadlineExceeded) as error:
            failures += 1
            last = error
        if failures >= ATTEMPTS:
            raise DaemonUnreachable(
                f"Lost sight of job {job.id} ({job.kind}): {last.message}",
                hint=f"It is durable and goes on with the daemon: guest job show {job.id}",
                job=job.id,
            ) from last
        time.sleep(PAUSE * 2 ** (failures - 1))
        try:
            house.transport = reconnect()
        except DaemonUnreachable:
            continue  # counted by the next attempt


def outcome(job: Job) -> Job:
    """`job` if it is done. :raise GuesthouseError: why it is not, of the class of its problem."""
    if job.state is JobState.DONE:
        return job
    if job.problem is not None:
        error = error_from(msgspec.to_builtins(job.problem))
        if isinstance(error, Cancelled) and not error.hint:
            error.hint = f"What it had done was undone; see: guest job show {job.id}"
        raise error
    if job.state is JobState.CANCELLED:
        raise Cancelled(f"The job was cancelled: {job.kind} {job.target_name}".rstrip() + ".")
    raise Internal(
        f"Job {job.id} ended {job.state.value} without a reason.",
        hint=f"See its log: guest job log {job.id}",
    )


def _gave_up(job: Job) -> DaemonUnreachable:
    return DaemonUnreachable(f"the daemon ended its report while the job is {job.state.value}.")


def _stream(house: House, job: str) -> Iterator[Event]:
    kinds: dict[str, type[Event]] = {"progress": JobProgress, "log": LogLine, "job": Job}
    target = job_path(job, "events")
    with house.transport.stream("GET", target, accept="text/event-stream") as stream:
        for name, data in events(stream.lines()):
            kind = kinds.get(name)
            if kind is not None:  # later kinds of events are none of our business
                yield decode_strict(data.encode(), kind, what="daemon's event")
