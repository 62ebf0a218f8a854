"""The keeper's life: leave the daemon's session, take the lock, serve, go."""

from __future__ import annotations

import argparse
import fcntl
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from .link import connect_unix
from .loop import READ, Loop, note
from .service import Service
from .wire import BUFFER

EXIT_FAILED = 1
EXIT_ALREADY_RUNNING = 3
EXIT_SOCKET_TAKEN = 4
_LOG_CAP = 256 << 10


class Unstartable(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="keeper", description="Keeper of Guesthouse's guests.")
    parser.add_argument("--state", required=True, type=Path, help="folder for records and lock")
    parser.add_argument("--socket", required=True, type=Path, help="where to listen")
    options = parser.parse_args(arguments)
    # Everything later is done from /, so that the keeper holds no other file system.
    state, path = options.state.absolute(), options.socket.absolute()
    return _detach(state, path)


def _detach(state: Path, path: Path) -> int:
    """Start the keeper two forks away, wait until it serves or failed; returns the exit code."""
    theirs, ours = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.dup2(ours, 3)
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))
            code = EXIT_FAILED
            try:
                code = _serve_or_tell(state, path, ready=3)
            except Exception:
                sys.__excepthook__(*sys.exc_info())
            finally:
                os._exit(code)
        os._exit(0)
    os.close(ours)
    os.wait()
    with os.fdopen(theirs, encoding="utf-8") as pipe:
        answer = pipe.read()
    if answer == "ready":
        return 0
    number, _, message = answer.partition(" ")
    print(f"keeper: {message or 'died while starting'}", file=sys.stderr)  # noqa: T201
    return int(number) if number.isdigit() else EXIT_FAILED


def _serve_or_tell(state: Path, path: Path, ready: int) -> int:
    """Serve until told to stop. `ready` is the pipe on which the starter waits."""
    os.umask(0o077)
    os.chdir("/")
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _lock(state / "keeper.lock")
        listener = _listen(path)
        _redirect(state / "keeper.log")
        loop = Loop()
        service = Service(loop, state, listener, _raise_nofile())
    except Unstartable as why:
        return _tell(ready, why.code, str(why))
    except OSError as error:
        return _tell(ready, EXIT_FAILED, str(error))
    _stop_on_sigterm(loop)
    os.write(ready, b"ready")
    os.close(ready)
    note(f"keeper {os.getpid()} serves {path}")
    loop.run()
    path.unlink(missing_ok=True)
    listener.close()
    service.close()
    note("keeper ends")
    os.close(lock)
    return 0


def _tell(ready: int, code: int, message: str) -> int:
    os.write(ready, f"{code} {message}".encode())
    return code


def _lock(path: Path) -> int:
    """Take the house's lock; held until the process ends, whatever way it does."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, 32).decode().strip() or "unknown"
        os.close(fd)
        message = f"the keeper of this house already runs as process {holder}"
        raise Unstartable(EXIT_ALREADY_RUNNING, message) from None
    try:
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
    except OSError as error:
        # The number is for people; the lock itself holds on a full disk as well.
        note(f"cannot write the pid into the lock: {error}")
    return fd


def _listen(path: Path) -> socket.socket:
    """Bind and listen. A stale socket is replaced, one that answers is somebody else's."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and not path.is_socket():
        raise Unstartable(EXIT_FAILED, f"{path} exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            connect_unix(probe, str(path))
        except OSError:
            pass
        else:
            raise Unstartable(EXIT_SOCKET_TAKEN, f"{path} already answers, for another house")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    # Bound under another name and renamed, so that whoever finds the socket finds it listening.
    unfinished = path.with_name(f".{os.getpid()}.tmp")
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        unfinished.unlink(missing_ok=True)
        listener.bind(f"/proc/self/fd/{folder}/{unfinished.name}")
        unfinished.chmod(0o600)
        listener.listen(128)
        unfinished.replace(path)
    finally:
        os.close(folder)
    return listener


def _redirect(log: Path) -> None:
    """stdin from nowhere, stdout and stderr into the keeper's log, which starts anew when long."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(log, flags, 0o600)
    if os.fstat(fd).st_size > _LOG_CAP:
        os.ftruncate(fd, 0)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(null)
    os.close(fd)


def _raise_nofile() -> tuple[int, int]:
    """Allow the keeper all descriptors it may have; returns the limits its children get."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft, hard


def _stop_on_sigterm(loop: Loop) -> None:
    """SIGTERM: write down what is pending and go; the guests stay."""
    wake, signalled = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)

    def woken(_events: int) -> None:
        os.read(wake, 64)
        loop.stop()

    loop.watch(wake, READ, woken)
