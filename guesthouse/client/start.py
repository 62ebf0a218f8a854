"""Which daemon a client reaches, and how a personal one is started.

The order (see also `model.folders.socket_candidates`):

1. GUESTHOUSE_SOCKET, and then nothing else: whoever names a socket means that daemon.
2. The personal daemon's socket, if a daemon of the same user (or root) answers there.
3. The system's socket, if the caller may open it; not when GUESTHOUSE_STATE names a personal house.
4. A personal daemon, started now. It belongs to no terminal and outlives the client.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from guesthouse.client.problems import error_from
from guesthouse.client.transport import Transport, connect
from guesthouse.errors import (
    Conflict,
    DaemonUnreachable,
    DeadlineExceeded,
    Forbidden,
    GuesthouseError,
)
from guesthouse.model.folders import Folders, resolve, socket_candidates

READY_TIMEOUT = 90.0
"""Seconds for a started daemon to say that it is ready; recovery after a crash is part of it."""

_LOG_LIMIT = 4 << 20


class Reached(NamedTuple):
    """:ivar started: this call started the daemon."""

    transport: Transport
    started: bool


Environment = Mapping[str, str]
Tell = Callable[[str], None]


def find(env: Environment | None = None) -> Transport | None:
    """The daemon that answers, best first, or None.

    :raise InvalidInput: the environment names an impossible place.
    :raise Forbidden: another user's process listens where the personal daemon should.
    """
    env = os.environ if env is None else env
    owners = None if env.get("GUESTHOUSE_SOCKET") else frozenset({0, os.geteuid()})
    for path in socket_candidates(env, uid=os.geteuid()):
        try:
            connect(path, owners=owners).close()
        except DaemonUnreachable:
            continue
        return Transport(path, owners=owners)
    return None


def reach(env: Environment | None = None, *, tell: Tell = lambda _: None) -> Reached:
    """The daemon that answers, or else a personal one, started now.

    :param tell: takes a sentence for the user when something is worth telling.
    :raise DaemonUnreachable: it cannot be started, or GUESTHOUSE_SOCKET names one that is away.
    :raise GuesthouseError: why the daemon refused to start.
    """
    env = os.environ if env is None else env
    found = find(env)
    if found:
        return Reached(found, started=False)
    if env.get("GUESTHOUSE_SOCKET") and not env.get("GUESTHOUSE_STATE"):
        path = socket_candidates(env, uid=os.geteuid())[0]
        raise DaemonUnreachable(
            f"No daemon answers at {path}, which GUESTHOUSE_SOCKET names.",
            hint="Start it there with 'guest daemon start', or unset GUESTHOUSE_SOCKET.",
            socket=path,
        )
    return start_personal(env, tell=tell)


def start_personal(env: Environment | None = None, *, tell: Tell = lambda _: None) -> Reached:
    """Start a personal daemon and wait until it is ready.

    When another client was faster, its daemon is the one that is reached. Raises as `reach`.
    """
    env = os.environ if env is None else env
    folders = resolve(env, uid=os.geteuid())
    owners = frozenset({0, os.geteuid()})
    transport = Transport(str(folders.socket), owners=owners)
    problem = _run_daemon(env, folders)
    if problem is not None:
        # "Already running" is the usual end of a race; its winner may still be coming up.
        patience = READY_TIMEOUT if isinstance(problem, Conflict) else 0.0
        if not _answers(transport, patience):
            raise problem
        return Reached(transport, started=False)
    if not _answers(transport, 5.0):
        raise DaemonUnreachable(
            f"The daemon said that it is ready, but nobody answers at {folders.socket}.",
            hint=f"See the end of its log: {folders.state}/daemon.log",
        )
    if os.geteuid() == 0:
        tell(
            f"started a personal daemon for root (state in {folders.state}); "
            "a daemon for the whole machine is 'systemctl start guesthouse', where it is installed"
        )
    return Reached(transport, started=True)


def _answers(transport: Transport, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            transport.connect().close()
            return True
        except DaemonUnreachable:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)


def daemon_argv(word: int) -> list[str]:
    """:param word: the descriptor on which the daemon says that it is ready, or why not."""
    # -P: a folder called `guesthouse` in the working folder must not be imported.
    return [sys.executable, "-P", "-m", "guesthouse.daemon", "--ready-fd", str(word)]


def _run_daemon(env: Environment, folders: Folders) -> GuesthouseError | None:
    """Start the daemon and wait for its word: None is ready, else why it is not."""
    log = folders.state / "daemon.log"
    log_fd = _open_log(log)
    try:
        before = os.fstat(log_fd).st_size
        ready, word = os.pipe()
        try:
            process = subprocess.Popen(
                daemon_argv(word),
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                pass_fds=(word,),
                start_new_session=True,
                cwd="/",
                env=dict(env),
                umask=0o077,
            )
            # It outlives us; while we live, somebody must reap it should it die first.
            threading.Thread(target=process.wait, daemon=True).start()
        finally:
            os.close(word)
        try:
            said = _listen(ready)
        finally:
            os.close(ready)
        return _verdict(said, log, before)
    finally:
        os.close(log_fd)


def _open_log(path: Path) -> int:
    """:raise Forbidden: the state folder or the log cannot be written."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > _LOG_LIMIT:
            path.replace(path.with_suffix(".log.1"))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, 0o600)
    except OSError as error:
        raise Forbidden(
            f"The daemon cannot be started: its log {path} cannot be written: {error.strerror}.",
            hint="Check the folder's owner, or set GUESTHOUSE_STATE to a folder of your own.",
            path=str(path),
        ) from error


def _listen(ready: int) -> bytes | None:
    """What the daemon said up to its first newline or its end; None after the deadline."""
    said = b""
    deadline = time.monotonic() + READY_TIMEOUT
    poller = select.poll()
    poller.register(ready, select.POLLIN | select.POLLHUP)
    while b"\n" not in said:
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            return None
        piece = os.read(ready, 65536)
        if not piece:
            break
        said += piece
    return said


def _verdict(said: bytes | None, log: Path, before: int) -> GuesthouseError | None:
    if said is None:
        return DeadlineExceeded(
            f"The daemon was started but is not ready after {READY_TIMEOUT:.0f} seconds.",
            hint=f"It may still be recovering; see the end of {log} and try again.",
        )
    if said.strip() == b"ok":
        return None
    try:
        problem = json.loads(said)
    except ValueError:
        problem = None
    if isinstance(problem, dict):
        return error_from(problem)
    last = _last_words(log, before)
    return DaemonUnreachable(
        f"The daemon ended while it started: {last}" if last else "The daemon ended at its start.",
        hint=f"See the end of its log: {log}",
    )


def _last_words(log: Path, before: int) -> str:
    """The last line that the daemon wrote after the byte `before` of its log."""
    try:
        with log.open("rb") as file:
            file.seek(max(before, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
