"""How jobs look while they run: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from guesthouse.cli import output
from guesthouse.cli.table import plain
from guesthouse.model.job import JobProgress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_INTERVAL = 2.0
"""Seconds between two lines of one job, where lines pile up: in the log of a CI run."""


class Display(Protocol):
    """Shows the progress of several jobs, each by its place in the list of labels."""

    def progress(self, at: int, tick: JobProgress) -> None: ...

    def ended(self, at: int) -> None: ...

    def close(self) -> None: ...


class Lines:
    """A line when a job says something new, but not more often than `LINE_INTERVAL`."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._said = [""] * len(labels)
        self._at = [float("-inf")] * len(labels)

    def progress(self, at: int, tick: JobProgress) -> None:
        now = time.monotonic()
        if not tick.message or tick.message == self._said[at] or now < self._at[at] + LINE_INTERVAL:
            return
        self._said[at], self._at[at] = tick.message, now
        share = "" if tick.fraction is None else f" ({tick.fraction:.0%})"
        output.note(f"{self._labels[at]}: {plain(tick.message)}{share}")

    def ended(self, at: int) -> None:
        pass

    def close(self) -> None:
        pass


class Bars:
    """A bar for each job, on standard error, gone when all have ended."""

    def __init__(self, labels: Sequence[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed
        from rich.table import Column

        console = Console(stderr=True, highlight=False)
        narrow = console.width < 72
        message = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        self._bars: Progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=8 if narrow else 20),
            TextColumn("{task.fields[share]:>4}", markup=False),
            Elapsed(),
            TextColumn("{task.fields[message]}", markup=False, table_column=message),
            console=console,
            transient=True,
            expand=True,
        )
        self._tasks: list[TaskID] = [
            self._bars.add_task(plain(label), total=None, message="", share="") for label in labels
        ]
        self._bars.start()

    def progress(self, at: int, tick: JobProgress) -> None:
        known = tick.fraction is not None
        self._bars.update(
            self._tasks[at],
            total=1.0 if known else None,
            completed=tick.fraction or 0.0,
            share=f"{tick.fraction:.0%}" if known else "",
            message=plain(tick.message),
        )

    def ended(self, at: int) -> None:
        self._bars.remove_task(self._tasks[at])

    def close(self) -> None:
        self._bars.stop()
