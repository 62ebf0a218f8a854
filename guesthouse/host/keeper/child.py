"""Bringing up a process: fork, descriptors in their places, exec; a failed exec is told at once."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from .loop import READ, Loop
from .wire import Refused

_ALL_SIGNALS = signal.valid_signals()


@dataclass
class Command:
    """What to run. `fds` are ours (closed by `start`), `targets` their numbers in the child."""

    argv: list[str]
    env: dict[str, str]
    fds: list[int]
    targets: list[int]
    stderr: int
    cwd: str
    nofile: tuple[int, int]


@dataclass
class Failure:
    """Why exec did not happen: the step of preparation and its errno."""

    step: str
    number: int


def start(
    loop: Loop, command: Command, done: Callable[[int, Failure | None], None]
) -> tuple[int, int]:
    """Fork; returns (pid, pidfd) at once.

    `done(pid, None)` is called once the program runs, `done(pid, failure)` if it could not be
    executed (the child is reaped then). Raises Refused when there can be no new process.
    """
    try:
        report, child_report = os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        _close_all(command)
        raise Refused(
            "launch-failed", f"cannot make a pipe: {error.strerror}", error.errno
        ) from None
    # No handler of ours may run in the child: its wakeup fd is shared with the parent.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            _become(command, child_report)
    except OSError as error:
        os.close(report)
        raise Refused("launch-failed", f"cannot fork: {error.strerror}", error.errno) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(child_report)
        _close_all(command)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        os.close(report)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise Refused("launch-failed", f"cannot watch: {error.strerror}", error.errno) from None

    def reported(_events: int) -> None:
        # EOF: the pipe was closed by exec. Else the child wrote one short message and ends.
        message = os.read(report, 4096)
        loop.forget(report)
        os.close(report)
        if not message:
            done(pid, None)
            return
        os.waitpid(pid, 0)
        step, number = json.loads(message)
        done(pid, Failure(step, number))

    loop.watch(report, READ, reported)
    return pid, pidfd


def _close_all(command: Command) -> None:
    for fd in (*command.fds, command.stderr):
        os.close(fd)


def _become(command: Command, report: int) -> NoReturn:
    """In the child: never returns, never raises."""
    step = "prepare"
    try:
        os.setsid()
        report = _place_descriptors(command, report)
        os.umask(0o077)
        resource.setrlimit(resource.RLIMIT_NOFILE, command.nofile)
        try:
            # Neither the daemon's nor the keeper's protection from the OOM killer is the guest's.
            Path("/proc/self/oom_score_adj").write_text("0")
        except OSError:
            pass
        step = "cwd"
        os.chdir(command.cwd)
        for number in _ALL_SIGNALS - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        step = "exec"
        os.execvpe(command.argv[0], command.argv, command.env)  # noqa: S606 (no shell is the point)
    except OSError as error:
        os.write(report, json.dumps([step, error.errno or 0]).encode())
    except BaseException:
        os.write(report, json.dumps([step, 0]).encode())
    finally:
        os._exit(127)


def _place_descriptors(command: Command, report: int) -> int:
    """Move every descriptor to its target, close all others; returns where `report` went."""
    # First above all targets, so that no dup2 overwrites one that is still to be moved.
    above = max((2, *command.targets)) + 1
    sources = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in command.fds]
    report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, above)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    stderr = fcntl.fcntl(command.stderr, fcntl.F_DUPFD_CLOEXEC, above)
    null = fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, above)
    os.dup2(null, 0)
    os.dup2(stderr, 1)
    os.dup2(stderr, 2)
    for source, target in zip(sources, command.targets, strict=True):
        os.dup2(source, target)
    kept = sorted({0, 1, 2, *command.targets, report})
    for low, high in itertools.pairwise(kept):
        os.closerange(low + 1, high)
    os.closerange(kept[-1] + 1, os.sysconf("SC_OPEN_MAX"))
    return report
