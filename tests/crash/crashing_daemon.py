"""The real daemon, in which a fault strikes at a chosen point of a chosen job.

    CRASH_CONTROL=FOLDER python -m tests.crash.crashing_daemon [--ready-fd N]

A point is a moment right before or after something becomes durable: a write of the job's document
(`accepted`, `step:create`, `done`, …) or, between those, any transaction of the operation itself
(`store:guests+volumes`). In FOLDER, outside of the house:

    points      a line of JSON for each point that was passed; `engine`: the guest has a process
    fault.json  the fault that shall strike, see `Fault`; renamed when it has struck
    struck.json that fault, with how many processes it ended
    clock       seconds by which the daemon's wall clock is ahead, if there
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from guesthouse import daemon
from guesthouse.host.keeper import procfs
from guesthouse.model.job import Job
from guesthouse.operations import house
from guesthouse.storage.collect import CollectParams
from guesthouse.store.contract import Op
from guesthouse.store.sqlite import SqliteStore

FILLER = "filler"
"""File in the state folder that takes all its space."""
_SEED = "guesthouse.seed="


class Control:
    """Notes the points of all jobs, and strikes at the armed one."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder, self.state = folder, state
        self.jobs: dict[str, Job] = {}
        self.passed: Counter[tuple[str, str, str]] = Counter()

    def observe(self, job: Job, what: str, when: str) -> None:
        """As `jobs.record.Observer`."""
        self.jobs[job.id] = job
        self.reach(job, what, when)

    def reach(self, job: Job, what: str, when: str) -> None:
        self.passed[job.id, what, when] += 1
        count = self.passed[job.id, what, when]
        point = {"kind": job.kind, "what": f"{what}#{count}" if count > 1 else what, "when": when}
        runs = job.target.partition("/")[2] in engines()
        with (self.folder / "points").open("a") as notes:
            notes.write(json.dumps(point | {"job": job.id, "engine": runs}) + "\n")
        try:
            armed = json.loads((self.folder / "fault.json").read_bytes())
        except FileNotFoundError:
            return
        if all(armed[key] == value for key, value in point.items()):
            self.strike(armed, job)

    def strike(self, armed: dict[str, object], job: Job) -> None:
        (self.folder / "fault.json").unlink()
        fault = armed["fault"]
        ended = 0
        if fault == "keeper":
            pid = int((self.state / "keeper" / "keeper.lock").read_text())
            ended = kill_all([pid])
        elif fault == "engine":
            ended = kill_all(engines().get(job.target.partition("/")[2], []))
        elif fault == "full":
            fill(self.state / FILLER)
        told = self.folder / "struck.tmp"
        told.write_text(json.dumps(armed | {"ended": ended}))
        told.rename(self.folder / "struck.json")
        if fault == "daemon":
            os.kill(os.getpid(), signal.SIGKILL)

    def between(self) -> None:
        """Have the transactions of the operations themselves be points as well."""
        commit = SqliteStore.commit

        async def observed(store: SqliteStore, ops: Sequence[Op]) -> int:
            job = self._job_of_this_task()
            if job is None or any(op.key.startswith("jobs/") for op in ops):
                return await commit(store, ops)
            nouns = sorted({op.key.partition("/")[0] for op in ops})
            what = f"store:{'+'.join(nouns)}"
            self.reach(job, what, "before")
            revision = await commit(store, ops)
            self.reach(job, what, "after")
            return revision

        SqliteStore.commit = observed  # type: ignore[method-assign]  # the same method, observed

    def _job_of_this_task(self) -> Job | None:
        """Operations run in tasks called `job ID`, their undos in tasks called `drive ID`."""
        task = asyncio.current_task()
        kind, _, id = task.get_name().partition(" ") if task else ("", "", "")
        return self.jobs.get(id) if kind in {"job", "drive"} else None


def engines() -> dict[str, list[int]]:
    """Running QEMU processes by the id of their guest, as their seed tells it."""
    found: dict[str, list[int]] = {}
    for pid, words in command_lines():
        seed = next((word for word in words if _SEED in word), None)
        if seed is None or "qemu-system" not in words[0]:
            continue
        text = base64.b64decode(seed.partition(_SEED)[2]).decode()
        lines = dict(line.partition(" ")[::2] for line in text.splitlines())
        if "instance" in lines:
            found.setdefault(lines["instance"], []).append(pid)
    return found


def command_lines() -> Iterator[tuple[int, list[str]]]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if procfs.runs(int(folder.name)):
            yield int(folder.name), words


def kill_all(pids: Sequence[int]) -> int:
    """SIGKILL, and wait for their ends."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    while any(procfs.runs(pid) for pid in pids):
        time.sleep(0.005)
    return len(pids)


def fill(path: Path) -> None:
    """Take the file system's space, to the last byte."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    size = 1 << 24
    while size:
        try:
            os.posix_fallocate(fd, os.fstat(fd).st_size, size)
        except OSError:
            size //= 2
    os.close(fd)


def turnable(clock: Path) -> None:
    """Have `time.time` follow what the file `clock` says, while it is there."""
    real = time.time

    def told() -> float:
        try:
            return real() + float(clock.read_text())
        except FileNotFoundError:
            return real()

    time.time = told


def main() -> int:
    control = Control(Path(os.environ["CRASH_CONTROL"]), Path(os.environ["GUESTHOUSE_STATE"]))
    control.between()
    turnable(control.folder / "clock")
    # Through the API a collection spares young files; here all are young.
    house.CollectParams = functools.partial(CollectParams, grace=-1.0)  # type: ignore[misc, assignment]  # stands in for its making
    return daemon.main(control.observe)


if __name__ == "__main__":
    sys.exit(main())
