"""A house of its own for each test module: real daemon, keeper and QEMU, driven by `guest`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

GUEST = Path(sys.executable).with_name("guest")


def gone(pid: int) -> bool:
    """Dead, or a zombie that its parent has not reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # before it is opened, or read
        return True


def until(what: Callable[[], object], *, seconds: float = 60, say: str = "condition") -> Any:
    """Wait for `what` to be true; timings are never asserted, so the deadline is generous."""
    ended = time.monotonic() + seconds
    while True:
        if found := what():
            return found
        if time.monotonic() > ended:
            raise AssertionError(f"not within {seconds} s: {say}")
        time.sleep(0.05)


class House:
    """A state folder of its own; the cache of built images is the user's, so they build once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        runtime = folder / "run"
        runtime.mkdir(mode=0o700)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("GUESTHOUSE_")},
            "GUESTHOUSE_STATE": str(self.state),
            "XDG_RUNTIME_DIR": str(runtime),
            "NO_COLOR": "1",
        }

    def run(
        self, *args: str, ok: bool = True, stdin: bytes | None = None, timeout: float = 400
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [str(GUEST), *args],
            env=self.env,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        if ok:
            assert done.returncode == 0, (
                f"guest {' '.join(args)}: exit {done.returncode}\n"
                f"{done.stdout.decode(errors='replace')}\n{done.stderr.decode(errors='replace')}"
            )
        return done

    def out(self, *args: str, **options: Any) -> str:
        return self.run(*args, **options).stdout.decode()

    def json(self, *args: str) -> Any:
        return json.loads(self.out(*args, "--json"))

    def popen(self, *args: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(GUEST), *args],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def status(self, name: str) -> dict[str, Any]:
        status: dict[str, Any] = self.json("info", name)["status"]
        return status

    def pid(self, name: str) -> int:
        return int(self.status(name)["pid"])

    @property
    def daemon_pid(self) -> int:
        return int(self.json("daemon", "status")["pid"])

    def kill_daemon(self) -> None:
        pid = self.daemon_pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid), say="the daemon is gone")

    def close(self) -> None:
        for guest in self.json("ls"):
            self.run("rm", "--yes", "--force", guest["name"], ok=False)
        self.run("trash", "empty", "--yes", ok=False)
        self.run("daemon", "stop", ok=False)
        # The holder of a namespace may outlive the daemon, and says nothing of its house.
        for record in (self.folder / "run").glob("*/namespace.json"):
            with suppress(ProcessLookupError):
                os.kill(int(json.loads(record.read_text())["pid"]), signal.SIGTERM)
        # The keeper outlives the daemon by design; a test's keeper ends with the test.
        for stat in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = stat.read_bytes()
            except OSError:
                continue
            if str(self.folder).encode() in line and stat.parent.name != str(os.getpid()):
                os.kill(int(stat.parent.name), signal.SIGTERM)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    made = House(Path(tempfile.mkdtemp(prefix="gh-")))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def micro(house: House) -> str:
    """A running micro guest for the tests of a module that do not harm it."""
    house.run("launch", "micro", "m1", "--memory", "128M")
    return "m1"
