"""Submitting jobs and seeing them through: progress, Ctrl-C, and what became of them."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import click

from guesthouse.cli import output
from guesthouse.cli.bars import Bars, Display, Lines
from guesthouse.cli.codes import INTERRUPTED
from guesthouse.cli.session import reconnect
from guesthouse.cli.terminal import handling
from guesthouse.client.follow import Event, follow, outcome
from guesthouse.client.house import House
from guesthouse.errors import GuesthouseError, Internal
from guesthouse.model.job import Job, JobProgress

BAR_AFTER = 0.4
"""Seconds that a job may take before it gets a bar; shorter ones would only flicker."""

NOBODY = -1
"""In the place of a job, for events that are the user's."""


class Wish(NamedTuple):
    """What the user wants. :ivar label: usually the guest's name. :ivar submit: asks for it."""

    label: str
    submit: Callable[[], Job]


def carry_out(
    house: House, wishes: Sequence[Wish], done: Callable[[Job], str] | None = None
) -> list[Job]:
    """Submit all, then follow all to their ends; returns the jobs, all of them done.

    A wish that fails does not keep the others from coming true. Its error is printed; after all
    have ended the command leaves with the exit code of the first.

    :param done: the line of the result for a job that is done; printed also when others failed.
    :raise GuesthouseError: the error, when there was one wish only.
    """
    accepted: list[tuple[str, Job]] = []
    failures: list[tuple[str, GuesthouseError]] = []
    for wish in wishes:
        try:
            accepted.append((wish.label, wish.submit()))
        except GuesthouseError as error:
            failures.append((wish.label, error))
        except KeyboardInterrupt:
            # It may have been accepted, though its answer never came.
            output.note("interrupted; what was asked for goes on: guest job ls --active")
            raise
    ended: list[Job] = []
    for (label, _), end in zip(accepted, _Watch(house, accepted).ends(), strict=True):
        if isinstance(end, Job):
            try:
                ended.append(outcome(end))
            except GuesthouseError as error:
                failures.append((label, error))
        else:
            failures.append((label, end))
    if done is not None:
        for job in ended:
            output.result(done(job))
    if failures:
        _report(failures, alone=len(wishes) == 1)
    return ended


def _report(failures: list[tuple[str, GuesthouseError]], *, alone: bool) -> None:
    if alone:
        raise failures[0][1]
    for label, error in failures:
        output.error(error, about=label)
    raise click.exceptions.Exit(failures[0][1].exit_code)


class _Watch:
    """Follows several jobs, each in a thread of its own; the display is the main thread's."""

    def __init__(self, house: House, jobs: Sequence[tuple[str, Job]]) -> None:
        self._house = house
        self._labels = [label for label, _ in jobs]
        self._jobs = [job for _, job in jobs]
        self._ends: list[Job | GuesthouseError | None] = [
            job if job.ended else None for job in self._jobs
        ]
        self._events: queue.SimpleQueue[tuple[int, Event | Exception | None]] = queue.SimpleQueue()
        self._display: Display | None = None
        self._last: dict[int, JobProgress] = {}
        self._interrupted = False
        self._since = time.monotonic()

    def ends(self) -> list[Job | GuesthouseError]:
        """How each job ended, or why that is not known."""
        for at, job in enumerate(self._jobs):
            if self._ends[at] is None:
                threading.Thread(target=self._pump, args=(at, job), daemon=True).start()
        # As an event among events: an exception could strike anywhere, also while the first one is
        # being answered.
        try:
            with handling({signal.SIGINT: lambda: self._events.put((NOBODY, None))}):
                while any(end is None for end in self._ends):
                    self._take(*self._next())
        finally:
            if self._display is not None:
                self._display.close()
        return [end for end in self._ends if end is not None]

    def _pump(self, at: int, job: Job) -> None:
        # Each thread has a house of its own: a reconnection is its own affair.
        try:
            for event in follow(House(self._house.transport), job, reconnect=reconnect):
                self._events.put((at, event))
        except Exception as error:  # handed to the main thread, which judges it
            self._events.put((at, error))

    def _next(self) -> tuple[int, Event | Exception | None]:
        if self._display is None:
            # Counted from the beginning: a job that tells much never leaves a pause.
            left = self._since + BAR_AFTER - time.monotonic()
            if left > 0:
                with suppress(queue.Empty):
                    return self._events.get(timeout=left)
            self._display = Bars(self._labels) if os.isatty(2) else Lines(self._labels)
            for at, tick in self._last.items():
                self._display.progress(at, tick)
        return self._events.get()

    def _take(self, at: int, event: Event | Exception | None) -> None:
        if event is None:
            self._interrupt()
        elif isinstance(event, JobProgress):
            self._last[at] = event
            if self._display is not None:
                self._display.progress(at, event)
        elif isinstance(event, Job):
            self._jobs[at] = event
            if event.ended:
                self._end(at, event)
        elif isinstance(event, GuesthouseError):
            self._end(at, event)
        elif isinstance(event, Exception):
            self._end(at, Internal(f"Following the job failed: {event}."))

    def _end(self, at: int, how: Job | GuesthouseError) -> None:
        self._ends[at] = how
        self._last.pop(at, None)
        if self._display is not None:
            self._display.ended(at)

    def _interrupt(self) -> None:
        """The first Ctrl-C cancels what may be cancelled, the second leaves all to itself."""
        left = [at for at, end in enumerate(self._ends) if end is None]
        if self._interrupted:
            for at in left:
                job = self._jobs[at]
                what = "it is being cancelled" if job.may_cancel else f"{job.kind} goes on"
                output.note(f"{self._labels[at]}: {what}; see: guest job show {job.id}")
            raise click.exceptions.Exit(INTERRUPTED)
        self._interrupted = True
        for at in left:
            job = self._jobs[at]
            what = (
                f"cancelling {job.kind}"
                if job.may_cancel
                else f"{job.kind} cannot be cancelled; it goes on"
            )
            output.note(
                f"{self._labels[at]}: {what} (job {job.id}; Ctrl-C again leaves it to itself)"
            )
            if job.may_cancel:
                # In a thread: a daemon that hangs must not keep the second Ctrl-C waiting.
                threading.Thread(target=self._cancel, args=(at, job.id), daemon=True).start()

    def _cancel(self, at: int, job: str) -> None:
        try:
            House(self._house.transport).cancel(job)
        except GuesthouseError as error:
            output.error(error, about=self._labels[at])
