"""Jobs: every change of the house, durable."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from guesthouse.model.document import Document, Noun


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    RECOVERING = "recovering"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED})


class Problem(Noun, kw_only=True, frozen=True):
    """An error as a value: what RFC 9457 calls problem details, with our code and hint."""

    code: str
    title: str
    status: int
    message: str
    hint: str = ""
    detail: dict[str, Any] = {}


class Step(Noun, kw_only=True, frozen=True):
    """A journal entry, written before the step acts.

    :ivar creates: ids or paths that the step will create, so that recovery can find them.
    """

    name: str
    creates: dict[str, str] = {}


class Job(Document, kw_only=True, frozen=True):
    """:ivar kind: `guest.start`, … :ivar target: what it is about, `guests/01J…`.

    :ivar params: the request, without secrets. :ivar steps: the journal.
    :ivar locks: keys of the documents that it locks. :ivar requester: who asked for it.
    :ivar attempts: how often a daemon took it up.
    :ivar dedupe: while it is active, another submission with this key and kind is this job.
    """

    kind: str
    target: str = ""
    target_name: str = ""
    params: dict[str, Any] = {}
    locks: tuple[str, ...] = ()
    requester: str = ""
    dedupe: str = ""
    state: JobState = JobState.QUEUED
    may_cancel: bool = True
    cancel_requested: bool = False
    attempts: int = 0
    steps: tuple[Step, ...] = ()
    result: dict[str, Any] | None = None
    problem: Problem | None = None
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class JobProgress(Noun, kw_only=True, frozen=True):
    """A tick; never stored. :ivar fraction: 0 to 1, or None while unknown."""

    job: str
    fraction: float | None
    message: str
