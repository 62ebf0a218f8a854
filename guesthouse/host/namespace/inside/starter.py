"""Makes the holder of the house's namespaces, or finds the one that lives.

A specification (JSON) on stdin, the answer (JSON) on stdout. It is a program of its own so that
whoever asks may die at any moment: the lock, the holder and its record are made here as one whole.

The holder does nothing but exist: it keeps the namespaces alive when nobody else is in them. What
becomes of it is sleep(1), because that is the smallest process there is.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, NoReturn

from guesthouse.host.keeper.procfs import boot_id, read_stat
from guesthouse.host.namespace.inside import kernel, prepare, ways
from guesthouse.host.namespace.inside.prepare import Failed, step
from guesthouse.host.namespace.inside.record import FORMAT, Record, holds, identity, load, save

_HOLDER = "/run/gh-holder"
"""In the /run of the namespace."""
_SLEEP = ("/usr/bin/sleep", "/bin/sleep")
_NO_SUCH_PROGRAM = 127


class Specification(NamedTuple):
    """What is wanted.

    `record`: path of the record; the lock lies beside it. `uids` and `gids`: lines of the id maps
    (inside, outside, count) of a new user namespace; none where the host's is used. `members`:
    (pid, start ticks) of processes through which a lost holder's namespaces may be found, `net`
    and `mount` descriptors of them that were passed, `known` the content of the record for the
    case that its file was removed. `trial`: make everything, keep nothing, and
    open a tap as well.
    """

    record: str
    uids: Sequence[Sequence[int]] = ()
    gids: Sequence[Sequence[int]] = ()
    members: Sequence[Sequence[int]] = ()
    net: int | None = None
    mount: int | None = None
    known: dict[str, Any] | None = None
    trial: bool = False


def main() -> int:
    """Read, act, answer. Returns the exit code: 0 whenever there is an answer."""
    wanted = Specification(**json.load(sys.stdin))
    try:
        answer = _trial(wanted) if wanted.trial else _ensure(wanted)
    except Failed as why:
        answer = {"failed": {"step": why.step, "number": why.number, "said": why.said}}
    print(json.dumps(answer), flush=True)  # noqa: T201
    return 0


def _ensure(wanted: Specification) -> dict[str, Any]:
    with _locked(wanted.record + ".lock"):
        known = load(wanted.record)
        if known is None and wanted.known is not None:
            known = Record(**wanted.known)
            if holds(known):
                with step("record"):
                    save(wanted.record, known)
        if known is not None and holds(known):
            return {"record": known._asdict(), "origin": "found"}
        if known is not None:
            try:
                return _kept(_Birth(wanted, known), "regained")
            except Failed as why:
                if why.step != ways.NO_WAY:
                    raise
        return _kept(_Birth(wanted, None), "made")


def _kept(holder: _Birth, origin: str) -> dict[str, Any]:
    return {"record": holder.keep()._asdict(), "origin": origin}


def _trial(wanted: Specification) -> dict[str, Any]:
    return {"lacks": _Birth(wanted, None).lacks}


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """The kernel lets go of it when we die; the holder does not inherit it (close-on-exec aside,
    it closes everything)."""
    with step("record"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


class _Birth:
    """A holder that is being made: a child that waits for our word at each step.

    If we die it reads the end of its pipe and ends, so there is never a holder without a record.
    It makes namespaces, or goes back into those of `lost`, whose holder died.
    """

    def __init__(self, wanted: Specification, lost: Record | None) -> None:
        self._wanted = wanted
        heard, told = os.pipe2(os.O_CLOEXEC)
        hears, tells = os.pipe2(os.O_CLOEXEC)
        with step("fork"):
            self._pid = os.fork()
        if self._pid == 0:
            os.close(heard)
            os.close(tells)
            _be_holder(wanted, lost, hears, told)
        os.close(hears)
        os.close(told)
        self._heard, self._tells = os.fdopen(heard, encoding="ascii"), tells
        try:
            self.lacks: list[str] = self._answers()
        except Failed:
            os.waitpid(self._pid, 0)
            raise

    def keep(self) -> Record:
        """Write the record, then let the child become the holder."""
        user = None
        with step("record"):
            if identity(self._pid, "user") != os.stat("/proc/self/ns/user").st_ino:  # noqa: PTH116
                user = identity(self._pid, "user")
            record = Record(
                format=FORMAT,
                boot=boot_id(),
                pid=self._pid,
                ticks=read_stat(self._pid)[1],
                user=user,
                net=identity(self._pid, "net"),
                mount=identity(self._pid, "mnt"),
                lacks=self.lacks,
            )
            save(self._wanted.record, record)
            os.write(self._tells, b"k")
        # Its pipe is silent when it has become what it should.
        said = self._said()
        if said is not None:
            raise Failed(*said["failed"])
        if not holds(record):
            raise Failed("holder", 0, "it died at once")
        return record

    def _answers(self) -> list[str]:
        """Until it is ready; maps its ids when it asks for that."""
        while True:
            said = self._said()
            if said is None:
                raise Failed("holder", 0, "it died at once")
            if "failed" in said:
                raise Failed(*said["failed"])
            if "lacks" in said:
                return list(said["lacks"])
            try:
                _map_ids(self._pid, "uid", self._wanted.uids)
                _map_ids(self._pid, "gid", self._wanted.gids)
            except Failed:
                os.close(self._tells)
                raise
            os.write(self._tells, b"m")

    def _said(self) -> dict[str, Any] | None:
        line = self._heard.readline()
        return json.loads(line) if line else None


def _map_ids(pid: int, kind: str, lines: Sequence[Sequence[int]]) -> None:
    """By newuidmap(1) and newgidmap(1), which may map what /etc/subuid and /etc/subgid give us."""
    # Here, because root's house does not pay for its import.
    import subprocess

    program = f"new{kind}map"
    numbers = [str(number) for line in lines for number in line]
    try:
        done = subprocess.run([program, str(pid), *numbers], capture_output=True, check=False)
    except FileNotFoundError:
        raise Failed(program, _NO_SUCH_PROGRAM, f"{program} is not installed") from None
    except OSError as error:
        raise Failed(program, error.errno or 0) from error
    if done.returncode:
        raise Failed(program, 0, done.stderr.decode("utf-8", "replace").strip())


def _be_holder(wanted: Specification, lost: Record | None, hears: int, tells: int) -> NoReturn:
    """In the child. Never returns, never raises."""
    try:
        os.setsid()
        os.umask(0o077)
        try:
            lacks = _new(wanted, hears, tells) if lost is None else _again(wanted, lost)
            lacks += prepare.network(new=True)
            if wanted.trial:
                with step("tap"):
                    os.close(kernel.open_tap("trial", persist=False))
            _tell(tells, {"lacks": lacks})
            if os.read(hears, 1) == b"k":
                _hold(tells)
        except Failed as why:
            _tell(tells, {"failed": [why.step, why.number, why.said]})
    finally:
        os._exit(1)


def _new(wanted: Specification, hears: int, tells: int) -> list[str]:
    user = kernel.NEWUSER if wanted.uids else 0
    with step("unshare"):
        kernel.unshare(user | kernel.NEWNET | kernel.NEWNS)
    if user:
        with step("identity"):
            # newuidmap wants to see that we are its caller's.
            kernel.stay_visible()
            _tell(tells, {"unshared": True})
            if os.read(hears, 1) != b"m":
                os._exit(1)
            kernel.become_root()
    return prepare.mounts()


def _again(wanted: Specification, known: Record) -> list[str]:
    if ways.go_back(known, wanted.members, wanted.net, wanted.mount):
        return []
    with step("unshare"):
        kernel.unshare(kernel.NEWNS)
    return prepare.mounts()


def _hold(tells: int) -> NoReturn:
    """Become sleep(1), under our own name. SIGTERM ends it; it has no terminal."""
    with step("holder"):
        os.chdir("/")
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        program = next((path for path in _SLEEP if os.path.exists(path)), _SLEEP[0])  # noqa: PTH110
        # ps(1) shows the last part of the path that was executed.
        with suppress(FileExistsError):
            os.symlink(program, _HOLDER)  # noqa: PTH211
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        top = os.sysconf("SC_OPEN_MAX")
        os.closerange(3, tells)
        os.closerange(tells + 1, top)
        # The pipe closes by itself when it has become that program.
        os.execv(_HOLDER, ["sleep", "infinity"])  # noqa: S606


def _tell(fd: int, message: dict[str, Any]) -> None:
    os.write(fd, json.dumps(message).encode() + b"\n")
