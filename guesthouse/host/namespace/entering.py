"""Going into the house's namespaces: for one command, or through the porter, who stands inside."""

from __future__ import annotations

import array
import asyncio
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from guesthouse.errors import (
    EngineError,
    GuesthouseError,
    HostLacks,
    InUse,
    InvalidInput,
    NotFound,
    Unavailable,
)
from guesthouse.host.capabilities import of_tun
from guesthouse.host.namespace.inside.porter import BUFFER
from guesthouse.host.spawn import missing

PROGRAM = Path(__file__).parent / "inside" / "__main__.py"
_LONGEST_INTERFACE = 15
_DEADLINE = 15.0


def tool_environment() -> dict[str, str]:
    """Ours, in which administrators' tools are found and messages are English."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    return {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8"}


def require_tool(program: str) -> None:
    """:raise HostLacks: it is not installed; inside, its absence would be nsenter's failure."""
    if shutil.which(program, path=tool_environment()["PATH"]) is None:
        raise missing(program)


class Doors(NamedTuple):
    """Open descriptors of the namespaces. They keep them alive, and no reuse of a pid can make
    them lead elsewhere. `user` None: the host's."""

    user: int | None
    net: int
    mount: int

    @classmethod
    def open(cls, pid: int, *, user: bool) -> Doors:
        """Those of process `pid`. :raise OSError: it has ended, or is not ours."""
        found: list[int] = []
        try:
            for kind in ("net", "mnt", *(["user"] if user else [])):
                found.append(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            for fd in found:
                os.close(fd)
            raise
        return cls(found[2] if user else None, found[0], found[1])

    @property
    def fds(self) -> tuple[int, ...]:
        return tuple(fd for fd in self if fd is not None)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


def through(doors: Doors, argv: Sequence[str]) -> list[str]:
    """`argv` run inside, as root there, by somebody who inherits `doors.fds`."""
    steps = ["nsenter", "--preserve-credentials"]
    if doors.user is not None:
        steps.append(f"--user=/proc/self/fd/{doors.user}")
    steps += [f"--net=/proc/self/fd/{doors.net}", f"--mount=/proc/self/fd/{doors.mount}"]
    return [*steps, "--", *argv]


def beside(pid: int, argv: Sequence[str], *, user: bool) -> list[str]:
    """`argv` run inside, as root there, by somebody who knows only the holder's pid.

    For services that outlive the daemon. A guest's process goes in by the launcher.
    """
    steps = ["nsenter", "--preserve-credentials", *(["--user"] if user else [])]
    return [*steps, "--net", "--mount", f"--target={pid}", "--", *argv]


class Porter:
    """The process inside that does at once what needs no program of its own.

    It ends when this object is closed or our process dies.
    """

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self._process, self._socket = process, connection
        self._one_at_a_time = asyncio.Lock()
        self._broken = False

    @classmethod
    async def start(cls, doors: Doors) -> tuple[Porter, dict[str, Any]]:
        """Let one in; also answers its greeting: `lacks` or `failed` (inside/prepare.py)."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        user = -1 if doors.user is None else doors.user
        numbers = [str(fd) for fd in (theirs.fileno(), user, doors.net, doors.mount)]
        try:
            process = _start_porter(numbers, (theirs.fileno(), *doors.fds))
        except OSError as error:
            ours.close()
            raise EngineError(f"The porter cannot be started: {error.strerror}.") from error
        finally:
            theirs.close()
        porter = cls(process, ours)
        try:
            greeting, _fds = await porter._receive()
        except BaseException:
            await porter.close()
            raise
        return porter, greeting

    @property
    def alive(self) -> bool:
        return not self._broken and self._process.poll() is None

    async def tap(self, name: str) -> int:
        """Open the persistent tap `name`, made if need be; the descriptor is the caller's.

        :raise InvalidInput: no interface can have that name. :raise InUse: it is open elsewhere,
            or another kind of interface has that name. :raise HostLacks: /dev/net/tun is closed
            (capability `tun`). :raise EngineError: :raise Unavailable: the porter died.
        """
        check_interface(name)
        answer, fds = await self._ask({"op": "tap", "name": name})
        if "errno" not in answer:
            return fds[0]
        raise _no_tap(name, answer["errno"])

    async def sniff(self, name: str, *, room: int) -> int:
        """A packet socket that sees all of interface `name` (`kernel.sniff`); it is the caller's.

        :raise NotFound: there is no such interface. :raise EngineError: the kernel refused.
        :raise Unavailable: the porter died.
        """
        answer, fds = await self._ask({"op": "sniff", "name": name, "room": room})
        if "errno" not in answer:
            return fds[0]
        if answer["errno"] == errno.ENODEV:
            raise NotFound(f"There is no interface {name}.", name=name)
        raise EngineError(
            f"Packets of {name} cannot be captured: {os.strerror(answer['errno'])}.",
            errno=answer["errno"],
        )

    async def settings(self, values: Mapping[str, str]) -> None:
        """Write values below /proc/sys/net, by names such as `ipv4/ip_forward`.

        :raise InvalidInput: a name leads elsewhere. :raise EngineError: the kernel refused; values
            before that one are written. :raise Unavailable: the porter died.
        """
        for name in values:
            if ".." in name.split("/") or name.startswith("/"):
                raise InvalidInput(f"{name!r} is no network setting.", field="values")
        answer, _fds = await self._ask({"op": "settings", "values": dict(values)})
        if "errno" in answer:
            raise EngineError(
                f"The kernel refused network settings ({', '.join(values)}): "
                f"{os.strerror(answer['errno'])}.",
                errno=answer["errno"],
            )

    async def netfilter(self, group: int | None) -> tuple[list[int], int]:
        """Sockets of netfilter inside, which are the caller's: of changes of the rules and, unless
        `group` is None, of packets that are logged to that group.

        Second the errno of why the latter is missing, or 0.

        :raise EngineError: :raise Unavailable: the porter died.
        """
        answer, fds = await self._ask({"op": "netfilter", "group": group})
        if "errno" in answer:
            raise EngineError(
                f"The kernel tells nothing of rules: {os.strerror(answer['errno'])}.",
                errno=answer["errno"],
            )
        return fds, answer.get("unlogged", 0)

    async def close(self) -> None:
        """Let it go, and wait for its end."""
        self._socket.close()
        with suppress(ProcessLookupError):
            self._process.kill()
        await asyncio.shield(asyncio.to_thread(self._process.wait))

    async def _ask(self, request: Mapping[str, object]) -> tuple[dict[str, Any], list[int]]:
        async with self._one_at_a_time:
            # A request that is cancelled after it was sent would leave its answer to the next
            # one, so it is finished by itself.
            task = asyncio.ensure_future(self._exchange(json.dumps(request).encode()))
            try:
                return await asyncio.shield(task)
            except Unavailable:
                # Its end is seen at the socket before it is seen at the process.
                self._broken = True
                raise
            except asyncio.CancelledError:
                with suppress(BaseException):
                    _close((await task)[1])
                raise

    async def _exchange(self, data: bytes) -> tuple[dict[str, Any], list[int]]:
        try:
            self._socket.send(data)
        except OSError:
            raise _gone() from None
        return await self._receive()

    async def _receive(self) -> tuple[dict[str, Any], list[int]]:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        try:
            loop.add_reader(self._socket, readable.set)
        except (OSError, ValueError):
            raise _gone() from None
        try:
            async with asyncio.timeout(_DEADLINE):
                await readable.wait()
        except TimeoutError:
            raise _gone() from None
        finally:
            loop.remove_reader(self._socket)
        try:
            data, rights, _flags, _address = self._socket.recvmsg(
                BUFFER, socket.CMSG_SPACE(8), socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            data, rights = b"", []
        if not data:
            raise _gone()
        fds = array.array("i")
        for _level, _kind, content in rights:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        return json.loads(data), fds.tolist()


def _start_porter(numbers: Sequence[str], fds: Sequence[int]) -> subprocess.Popen[bytes]:
    """Returns at once; it says by its greeting that it is inside."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(PROGRAM), "porter", *numbers],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=fds,
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
        cwd="/",
        start_new_session=True,
    )


def check_interface(name: str) -> None:
    """:raise InvalidInput: the kernel takes no such name for an interface."""
    wrong = not name or name in (".", "..") or len(name.encode()) > _LONGEST_INTERFACE
    # A % would be taken as a pattern for the next free number.
    if wrong or any(letter.isspace() or letter in "/:%\0" for letter in name):
        raise InvalidInput(f"{name!r} cannot be the name of an interface.", field="name")


def _no_tap(name: str, number: int) -> GuesthouseError:
    if number == errno.EBUSY:
        return InUse(f"The tap {name} is open in another process.", name=name)
    if number == errno.EINVAL:
        return InUse(f"{name} is an interface of another kind.", name=name)
    if number in (errno.EACCES, errno.ENOENT, errno.ENODEV, errno.ENXIO):
        found = of_tun()
        reason = os.strerror(number) if found.available else found.reason.rstrip(".")
        return HostLacks(
            f"The tap {name} cannot be made: {reason}.", hint=found.cure, capability="tun"
        )
    return EngineError(f"The tap {name} cannot be made: {os.strerror(number)}.", errno=number)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _gone() -> Unavailable:
    return Unavailable(
        "The porter of the house's namespace does not answer.",
        hint="Try again; a new one is let in.",
    )
