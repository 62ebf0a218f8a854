"""Running other programs: a list of arguments in, an exit code and capped output out.

For tools that do one thing and end (qemu-img, ip, nft …). A guest's process belongs to the
keeper, see keeper_client.py.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec

from guesthouse.errors import DeadlineExceeded, HostLacks, ToolFailed
from guesthouse.host.process import wait_pidfd

_CHUNK = 64 << 10
_STDERR_CAP = 64 << 10
_LAST_LINES = 5

# Which Debian package brings a program that we run.
PACKAGES: Mapping[str, str] = {
    "bridge": "iproute2",
    "dnsmasq": "dnsmasq-base",
    "ip": "iproute2",
    "lxc-attach": "lxc",
    "lxc-start": "lxc",
    "lxc-stop": "lxc",
    "mke2fs": "e2fsprogs",
    "mkfs.ext4": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "newgidmap": "uidmap",
    "newuidmap": "uidmap",
    "nft": "nftables",
    "nsenter": "util-linux",
    "prlimit": "util-linux",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "sfdisk": "fdisk",
    "slirp4netns": "slirp4netns",
    "ssh-keygen": "openssh-client",
    "swtpm": "swtpm",
    "swtpm_setup": "swtpm-tools",
    "tc": "iproute2",
    "unshare": "util-linux",
    "xorriso": "xorriso",
}


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """How a program ended. `code` is negative for a signal, as in subprocess.

    `out` is the beginning of its output, `truncated` says that there was more; `err` the end of
    its stderr.
    """

    argv: tuple[str, ...]
    code: int
    out: bytes
    err: bytes
    truncated: bool

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "replace")


async def run(
    argv: Sequence[str],
    *,
    stdin: bytes | None = None,
    timeout: float = 60.0,
    cap: int = 4 << 20,
    fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
    on_output: Callable[[bytes], None] | None = None,
) -> Finished:
    """Run a program to its end, in a session of its own, for at most `timeout` seconds.

    `fds` are inherited under their own numbers. `cap` bounds what is kept of stdout, in bytes.
    `env` replaces the environment; by default it is ours with LC_ALL=C.UTF-8, as messages are
    read by programs and quoted in errors. With `check` an exit code other than 0 is an error.
    `on_output` is told each piece of stdout as it comes.
    When this is cancelled or late, the program and every process of its group are killed before
    it returns.

    :raise HostLacks: the program is not installed.
    :raise ToolFailed: it could not be run, or ended badly; with its last lines.
    :raise DeadlineExceeded: it was killed after `timeout`.
    """
    process = _start(argv, stdin=stdin is not None, fds=fds, env=env, cwd=cwd)
    out, err = _Capture(cap, tell=on_output), _Capture(_STDERR_CAP, end=True)
    try:
        async with asyncio.timeout(timeout):
            await _converse(process, stdin or b"", out, err)
    except TimeoutError:
        await _kill(process)
        raise DeadlineExceeded(
            f"{_name(argv)} did not finish within {timeout:g} seconds and was killed."
            f"{_quote(err.data)}",
            argv=list(argv),
        ) from None
    except BaseException:
        await _kill(process)
        raise
    finally:
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    process.wait()
    done = Finished(
        argv=tuple(argv),
        code=process.returncode,
        out=bytes(out.data),
        err=bytes(err.data),
        truncated=out.truncated,
    )
    if check:
        ensure_success(done)
    return done


def ensure_success(done: Finished) -> None:
    """:raise ToolFailed: the exit code is not 0."""
    if done.code:
        how = f"exit code {done.code}" if done.code > 0 else f"signal {_signal(-done.code)}"
        raise ToolFailed(
            f"{_name(done.argv)} failed with {how}.{_quote(done.err or done.out)}",
            argv=list(done.argv),
            exit_code=done.code,
            command=shlex.join(done.argv),
        )


def missing(program: str) -> HostLacks:
    """The error for a program that is not installed, naming the package that brings it."""
    name = Path(program).name
    package = PACKAGES.get(name)
    hint = f"Install it: apt install {package}" if package else "Install it and try again."
    return HostLacks(f"{name} is not installed.", hint=hint, capability=name, package=package)


def _start(
    argv: Sequence[str],
    *,
    stdin: bool,
    fds: Sequence[int],
    env: Mapping[str, str] | None,
    cwd: Path | None,
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            pass_fds=fds,
            env={**os.environ, "LC_ALL": "C.UTF-8"} if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        if error.filename == argv[0] and _is_missing(argv[0], error.errno, env):
            raise missing(argv[0]) from None
        raise ToolFailed(
            f"{_name(argv)} cannot be run: {error.strerror}.", argv=list(argv), errno=error.errno
        ) from error


def _is_missing(program: str, number: int | None, env: Mapping[str, str] | None) -> bool:
    """A folder of PATH that we may not search turns "no such file" into "permission denied"."""
    if number == errno.EACCES and "/" not in program:
        return shutil.which(program, path=(os.environ if env is None else env).get("PATH")) is None
    return number == errno.ENOENT


async def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group, then reap its leader.

    In this order: as long as the leader is not reaped, its number cannot be another group's.
    """
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # Gone, or a program that changed its uid: that one we may not kill as an ordinary user.
        pass
    # In a thread, since a process in the middle of a disk access dies only after that.
    await asyncio.shield(asyncio.to_thread(process.wait))


async def _converse(
    process: subprocess.Popen[bytes], stdin: bytes, out: _Capture, err: _Capture
) -> None:
    """Until the program has ended and nobody holds its output any more."""
    pidfd = os.pidfd_open(process.pid)
    try:
        async with asyncio.TaskGroup() as tasks:
            if process.stdin is not None:
                tasks.create_task(_feed(process.stdin, stdin))
            if process.stdout is not None and process.stderr is not None:
                tasks.create_task(_read(process.stdout.fileno(), out))
                tasks.create_task(_read(process.stderr.fileno(), err))
            tasks.create_task(wait_pidfd(pidfd))
    finally:
        os.close(pidfd)


def _name(argv: Sequence[str]) -> str:
    return Path(argv[0]).name


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _quote(output: bytes | bytearray) -> str:
    """The last lines of a program's messages, as the end of ours."""
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines()]
    last = [line for line in lines if line][-_LAST_LINES:]
    return f" It said: {' / '.join(last)}" if last else ""


class _Capture:
    """Keeps at most `cap` bytes of a stream: its beginning, or its end."""

    def __init__(
        self, cap: int, *, end: bool = False, tell: Callable[[bytes], None] | None = None
    ) -> None:
        self.data = bytearray()
        self.truncated = False
        self._cap, self._end, self._tell = cap, end, tell

    def add(self, data: bytes) -> None:
        if self._tell is not None:
            self._tell(data)
        self.data += data
        excess = len(self.data) - self._cap
        if excess > 0:
            self.truncated = True
            if self._end:
                del self.data[:excess]
            else:
                del self.data[-excess:]


async def _read(fd: int, into: _Capture) -> None:
    os.set_blocking(fd, False)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def ready() -> None:
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return
        if data:
            into.add(data)
        else:
            ended.set()
            loop.remove_reader(fd)

    loop.add_reader(fd, ready)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)


async def _feed(stream: IO[bytes], data: bytes) -> None:
    """Write `data` and close; a program that does not want all of it is not at fault."""
    fd = stream.fileno()
    os.set_blocking(fd, False)
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    rest = memoryview(data)

    def ready() -> None:
        nonlocal rest
        try:
            rest = rest[os.write(fd, rest[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            rest = rest[:0]
        if not rest:
            loop.remove_writer(fd)
            done.set()

    if data:
        loop.add_writer(fd, ready)
        try:
            await done.wait()
        finally:
            loop.remove_writer(fd)
    stream.close()
