"""Guesthouse as a contender: a daemon of its own, asked as the command line asks."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guesthouse.client.sse import events
from guesthouse.client.start import find
from guesthouse.client.transport import Transport
from guesthouse.model.document import Noun, decode_strict, encode
from guesthouse.model.job import Job, JobState
from guesthouse.model.reports import EmptyRequest, StartRequest, StopRequest
from guesthouse.storage.qcow2 import read_header
from tests.e2e.conftest import House

PATIENCE = 600


class OwnHouse(House):
    """A house in a temporary folder. :ivar api: to its daemon, which `run` has started."""

    def __init__(self) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="gh-")))
        self.run("daemon", "start")
        found = find(self.env)
        assert found is not None
        self.api: Transport = found

    # --- one verb each: seconds from the job's acceptance to its durable end ---------------------

    def start_paused(self, name: str) -> float:
        return self._took(self._job(name, "start", StartRequest(paused=True)))

    def kill(self, name: str) -> float:
        return self._took(self._job(name, "stop", StopRequest(force=True)))

    def resume(self, name: str) -> float:
        return self._took(self._job(name, "resume", EmptyRequest()))

    def start_until_agent(self, name: str) -> float:
        """Seconds from the acceptance of the start until the status says that the agent answers."""
        with self.api.stream(
            "GET", "/v1/events?kinds=guest", accept="text/event-stream", timeout=PATIENCE
        ) as stream:
            lines = stream.lines()
            next(lines)  # the comment after which nothing is missed
            job, _ = self._job(name, "start", StartRequest(), wait=False)
            for _, data in events(lines):
                guest = json.loads(data)["document"]
                if guest and guest["name"] == name and "agent" in guest["status"].get("ready", ()):
                    return time.time() - job.created_at
        raise RuntimeError("the daemon ended its events")

    # --- whole processes -------------------------------------------------------------------------

    def command(self, *words: str) -> float:
        began = time.perf_counter()
        self.run(*words)
        return time.perf_counter() - began

    # --- guests ----------------------------------------------------------------------------------

    def guest(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.api.request("GET", f"/v1/guests/{name}").body)
        return found

    def chains(self, name: str) -> dict[str, list[Path]]:
        """The layers of its disks, top first, by the names that its command has for them. It may
        run."""
        layers = self.state / "pools" / "default" / "layers"
        found: dict[str, list[Path]] = {}
        for disk in self.guest(name)["spec"]["disks"]:
            chain = [layers / f"{disk['volume']}.qcow2"]
            while below := read_header(chain[-1]).backing:
                chain.append(layers / below)
            known = "nvram" if disk["name"] == "nvram" else f"disk{len(found.keys() - {'nvram'})}"
            found[known] = chain
        return found

    def ready(self, name: str) -> bool:
        return "ssh" in self.guest(name)["status"].get("ready", ())

    def keeper_pid(self) -> int:
        for found in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = found.read_bytes().decode().split("\0")
            except OSError:
                continue
            if str(self.state / "keeper") in words:
                return int(found.parent.name)
        raise RuntimeError("this house has no keeper")

    # --- the API ---------------------------------------------------------------------------------

    def _job(self, name: str, verb: str, body: Noun, *, wait: bool = True) -> tuple[Job, float]:
        """The job, and the time of the clock (seconds since the epoch) at which it was answered."""
        target = f"/v1/guests/{name}/{verb}" + (f"?wait={PATIENCE}" if wait else "")
        answer = self.api.request("POST", target, encode(body), timeout=PATIENCE)
        answered = time.time()
        return decode_strict(answer.body, Job, what="job"), answered

    def _took(self, answered: tuple[Job, float]) -> float:
        job, at = answered
        if job.state is not JobState.DONE:
            raise RuntimeError(f"{job.kind} ended {job.state.value}: {job.problem}")
        return at - job.created_at


@contextmanager
def restored(path: Path) -> Iterator[Callable[[], None]]:
    """Gives what puts the file at `path` back to what it is now."""
    saved = path.with_suffix(".saved")
    shutil.copy2(path, saved)
    try:
        yield lambda: _overwrite(saved, path)
    finally:
        saved.unlink()


def _overwrite(source: Path, target: Path) -> None:
    """In place: owner and inode stay."""
    with source.open("rb") as reading, target.open("r+b") as writing:
        writing.truncate(0)
        shutil.copyfileobj(reading, writing, 1 << 20)
