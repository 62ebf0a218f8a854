"""The way out: slirp4netns, with a tap `tap0` in the house's network and its sockets on the host.

It reaches what its user reaches, so Docker's or firewalld's rules for forwarded packets are of no
concern. It outlives the daemon and ends with the holder of the namespace.

Facts: slirp4netns(1) and its API (1.2.0); libslirp reads the host's resolv.conf again whenever it
has changed.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from guesthouse.errors import EngineError, NotFound
from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.host.process import ProcessHandle
from guesthouse.model.document import Noun
from guesthouse.network.house.links import BATCH
from guesthouse.network.house.services import Services, end_child, start

DEVICE = "tap0"
ADDRESS = "10.0.2.100"
"""Of the house, on the uplink; ports are led to it."""
MTU = 65520
SERVICE = "uplink"
WATCH = "uplink-watch"

_READY_SECONDS = 10.0
_ANSWER_SECONDS = 10.0
# Its own IPv6 address and route, by hand: a router ignores advertisements, also slirp's.
_IPV6 = f"address replace fd00::100/64 dev {DEVICE} nodad\nroute replace default via fd00::2\n"


class Forward(Noun, kw_only=True, frozen=True):
    """A port of the host that the uplink listens on. :ivar id: what it calls it.

    :ivar guest_port: at `ADDRESS`, where the rules lead it on.
    """

    id: int
    proto: str
    host_addr: str
    host_port: int
    guest_addr: str
    guest_port: int


class Refused(Exception):
    """slirp4netns did not listen on a port. It does not say why."""


def command(holder: int, socket: Path, *, user: bool, ipv6: bool) -> list[str]:
    """:param user: the namespace belongs to a user namespace of its own.

    Descriptor 3 is its `--ready-fd`, 4 its `--exit-fd`.
    """
    argv = ["slirp4netns", "--configure", f"--mtu={MTU}", "--ready-fd=3", "--exit-fd=4"]
    argv += [f"--api-socket={socket}", "--disable-host-loopback"]
    argv += ["--enable-sandbox", "--enable-seccomp"]
    if ipv6:
        argv.append("--enable-ipv6")
    if user:
        argv.append(f"--userns-path=/proc/{holder}/ns/user")
    return [*argv, str(holder), DEVICE]


def watch_command(holder: int) -> list[str]:
    """It ends when the holder does (it looks each second), and then hangs up on slirp4netns, which
    can only wait for a hang-up: a pidfd makes none before Linux 6.9. Of the programs that are
    everywhere it is the smallest."""
    return ["tail", f"--pid={holder}", "--follow", os.devnull]


class Uplink:
    """:param socket: of its API."""

    def __init__(self, namespace: HouseNamespace, services: Services, socket: Path) -> None:
        self._namespace, self._services, self._socket = namespace, services, socket

    @property
    def runs(self) -> bool:
        """Whether it runs, for the holder that there is."""
        service = self._services.of(SERVICE)
        return service is not None and service.made_of == self._made_of

    def _end_strays(self) -> None:
        """One of ours that nobody wrote down has the device, and ours could not get it."""
        wanted = f"--api-socket={self._socket}".encode()
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with suppress(OSError, NotFound):
                    words = (folder / "cmdline").read_bytes().split(b"\0")
                    if words[0] == b"slirp4netns" and wanted in words:
                        with ProcessHandle.open(int(folder.name)) as handle:
                            handle.send_signal(signal.SIGKILL)

    async def ensure(self) -> bool:
        """Start it unless it runs; whether it was started, and so has lost all ports.

        :raise HostLacks: slirp4netns is not installed. :raise EngineError: it does not start.
        """
        if self.runs:
            return False
        await self.stop()
        facts = self._namespace.facts
        ipv6 = "ipv6" not in facts.lacks
        argv = command(facts.pid, self._socket, user=self._namespace.plan.mapped, ipv6=ipv6)
        try:
            await self._start(facts.pid, argv)
        except EngineError:
            # Once more: another one had the device, and is gone by now.
            await self.stop()
            await self._start(facts.pid, argv)
        if ipv6:
            await self._namespace.settings({f"ipv6/conf/{DEVICE}/accept_ra": "0"})
            await self._namespace.run(["ip", "-6", *BATCH[1:]], input=_IPV6.encode())
        return True

    async def stop(self) -> None:
        await self._services.stop(SERVICE)
        await self._services.stop(WATCH)
        self._socket.unlink(missing_ok=True)

    async def forwards(self) -> list[Forward]:
        """:raise EngineError: its API does not answer."""
        answer = await self._ask("list_hostfwd", {})
        return msgspec.convert(answer.get("entries") or [], list[Forward], strict=False)

    async def add(self, proto: str, host: str, port: int, uplink_port: int) -> int:
        """Listen on a port of the host, and lead it to one of `ADDRESS`; answers its id.

        :raise Refused: :raise EngineError: its API does not answer.
        """
        where = {"host_addr": host, "host_port": port}
        where |= {"guest_addr": ADDRESS, "guest_port": uplink_port}
        answer = await self._ask("add_hostfwd", {"proto": proto, **where})
        return int(answer["id"])

    async def remove(self, ident: int) -> None:
        """Stop listening; nothing happens when it does not. :raise EngineError:"""
        try:
            await self._ask("remove_hostfwd", {"id": ident})
        except Refused:
            return

    @property
    def _made_of(self) -> str:
        facts = self._namespace.facts
        return f"{facts.pid}.{facts.ticks}"

    async def _start(self, holder: int, argv: list[str]) -> None:
        ready, says = os.pipe2(os.O_CLOEXEC)
        exits, watches = os.pipe2(os.O_CLOEXEC)
        try:
            # Both at once: what is written down of the first takes as long as the second's start.
            watch = start(watch_command(holder), {}, output=watches)
            pid = start(argv, {3: says, 4: exits})
            for fd in (says, exits, watches):
                os.close(fd)
            says = exits = watches = -1
            try:
                await self._services.add(WATCH, watch, self._made_of)
                if not await _said(ready):
                    raise EngineError(
                        "slirp4netns did not bring up the house's way out.",
                        hint=f"See what it says: {_by_hand(argv)}",
                    )
                await self._services.add(SERVICE, pid, self._made_of)
            except BaseException:
                await asyncio.shield(asyncio.to_thread(end_child, pid))
                await asyncio.to_thread(self._end_strays)
                raise
        finally:
            for fd in (ready, says, exits, watches):
                if fd >= 0:
                    os.close(fd)

    async def _ask(self, execute: str, arguments: dict[str, Any]) -> dict[str, Any]:
        request: dict[str, Any] = {"execute": execute, "arguments": arguments}
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    writer.write(msgspec.json.encode(request))
                    writer.write_eof()
                    answer = msgspec.json.decode(await reader.read(), type=dict[str, Any])
                finally:
                    writer.close()
        except (OSError, TimeoutError, msgspec.DecodeError) as error:
            raise EngineError(
                f"The house's way out does not answer: {error}.",
                hint="It is started again by itself; try again.",
            ) from error
        if "error" in answer:
            raise Refused(str(answer["error"].get("desc", "")))
        found = answer.get("return", answer)  # list_hostfwd of 1.2 answers without that word
        return found if isinstance(found, dict) else {}


def _by_hand(argv: list[str]) -> str:
    """The command without the descriptors that only we can give it."""
    return shlex.join(word for word in argv if not word.startswith(("--ready-fd", "--exit-fd")))


async def _said(ready: int) -> bool:
    """Whether the other end of a pipe said something before it was closed."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(ready, readable.set)
    try:
        async with asyncio.timeout(_READY_SECONDS):
            await readable.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(ready)
    return bool(os.read(ready, 1))
