"""One dnsmasq for each network, inside: started, told of changes, replaced."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from guesthouse.errors import EngineError, GuesthouseError, NotFound
from guesthouse.host.launcher import GuestIdentity
from guesthouse.host.namespace.entering import require_tool
from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.host.process import ProcessHandle
from guesthouse.model.network import Network
from guesthouse.network.house import dnsmasq
from guesthouse.network.house.resolver import Resolver, servers_text
from guesthouse.network.house.seats import Seat
from guesthouse.network.house.services import Services

PREFIX = "names-"
_END_SECONDS = 5.0


log = logging.getLogger(__name__)


class _Due(NamedTuple):
    """What a network's server is to become. :ivar again: it runs, and is to read its files again.

    :ivar tags: it has been told of tags of cards.
    """

    network: Network
    configuration: str
    made_of: str
    again: bool
    tags: bool


class Naming:
    """Servers come and change beside everything else: a guest asks for its address long after its
    card is there.

    :param failed: called when one did not come; `settle` is to be tried again.
    """

    def __init__(
        self, namespace: HouseNamespace, services: Services, failed: Callable[[], None]
    ) -> None:
        self._namespace, self._services, self._failed = namespace, services, failed
        self._due: dict[str, _Due | None] = {}
        self._worker: asyncio.Task[None] | None = None

    async def enter(self) -> None:
        """Once for every holder. :raise ToolFailed:"""
        await self._namespace.run(dnsmasq.folder_command(self._who))

    async def settle(
        self, networks: Sequence[Network], seats: Sequence[Seat], resolver: Resolver
    ) -> None:
        """Exactly these networks get a server, and it knows exactly these cards.

        :param resolver: of the host; when it changes, what the servers remember is forgotten.
        :raise HostLacks: dnsmasq is not installed.
        """
        if networks:
            require_tool("dnsmasq")
        wanted = {PREFIX + network.bridge for network in networks}
        ended = {n for n in self._services.names if n.startswith(PREFIX)} | {*self._due}
        self._due |= dict.fromkeys(ended - wanted)
        again = await self._ask(resolver)
        own = {n.id: [seat for seat in seats if seat.network == n.id] for n in networks}
        await asyncio.gather(*(self._one(n, own[n.id], again=again) for n in networks))
        if self._due and (self._worker is None or self._worker.done()):
            self._worker = asyncio.create_task(self._work(), name="names of networks")
        if ended - wanted:
            await self.finish()

    async def finish(self) -> None:
        """Wait for the servers that are on their way."""
        if self._worker is not None:
            await asyncio.gather(asyncio.shield(self._worker), return_exceptions=True)

    @property
    def _who(self) -> GuestIdentity:
        return self._namespace.plan.service(dnsmasq.SERVICE)

    async def _ask(self, resolver: Resolver) -> bool:
        """Whether whom to ask is another than before, or answers differently now."""
        ipv6 = "ipv6" not in self._namespace.facts.lacks
        # With a sign of what it was made of, so that a new daemon sees what it has missed.
        sign = hashlib.sha256(repr(resolver.stamp).encode()).hexdigest()[:16]
        text = f"# {sign}\n{servers_text(resolver, ipv6=ipv6)}"
        return await asyncio.to_thread(self._write, {dnsmasq.SERVERS: text})

    async def _one(self, network: Network, seats: Sequence[Seat], *, again: bool) -> None:
        """:param again: it has to forget what it remembers."""
        options = dnsmasq.options(seats)
        texts = {
            dnsmasq.cards_file(network): dnsmasq.cards(seats),
            dnsmasq.options_file(network): options,
            dnsmasq.names_file(network): dnsmasq.names(network, seats),
        }
        name = PREFIX + network.bridge
        cards = dnsmasq.cards_file(network)
        if await asyncio.to_thread(self._gives_up, cards, texts[cards]):
            await self._services.stop(name)  # before the file: or nobody would know any more
        changed = await asyncio.to_thread(self._write, texts)
        ipv6 = "ipv6" not in self._namespace.facts.lacks
        configuration = dnsmasq.configuration(network, ipv6=ipv6)
        made_of = self._made_of(configuration)
        running = self._services.of(name)
        if running is None or running.made_of != made_of or changed or again:
            due = _Due(network, configuration, made_of, changed or again, bool(options))
            self._due[name] = due

    async def _work(self) -> None:
        """Until nothing is due; what comes to be due meanwhile is done as well."""
        while self._due:
            name, due = self._due.popitem()
            try:
                if due is None:
                    await self._services.stop(name)
                else:
                    await self._serve(name, due)
            except (GuesthouseError, OSError) as error:
                log.warning("%s of the house's network did not come: %s", name, error)
                self._failed()

    async def _serve(self, name: str, due: _Due) -> None:
        running = self._services.of(name)
        if running is not None and running.made_of == due.made_of:
            if not due.again:
                return
            # At SIGHUP dnsmasq 2.90 frees the tags of its dhcp-hostsfile. Once it has answered a
            # card, these are chained to others that it never allocated, and it crashes.
            if not due.tags and self._services.send(name, signal.SIGHUP):
                return
        await self._services.stop(name)
        await self._end_stray(due.network)
        await self._namespace.run(dnsmasq.command(self._who), input=due.configuration.encode())
        pid = self._pid(due.network)
        if pid is None:
            raise EngineError(f"The names of network {due.network.name} have no server.")
        await self._services.add(name, pid, due.made_of)

    def _made_of(self, configuration: str) -> str:
        """A server that lives in another mount namespace than the holder reads other files."""
        holder = self._namespace.facts.pid
        mounts = Path(f"/proc/{holder}/ns/mnt").stat().st_ino
        return f"{hashlib.sha256(configuration.encode()).hexdigest()[:16]}.{mounts}"

    def _inside(self, path: str) -> Path:
        """A file in the house's own /run, as we see it."""
        return Path(f"/proc/{self._namespace.facts.pid}/root{path}")

    def _gives_up(self, path: str, text: str) -> bool:
        with suppress(OSError):
            return dnsmasq.gives_up(self._inside(path).read_text(), text)
        return False

    def _write(self, texts: dict[str, str]) -> bool:
        changed = False
        for path, text in texts.items():
            file = self._inside(path)
            with suppress(OSError):
                if file.read_text() == text:
                    continue
            new = file.with_suffix(".new")
            new.write_text(text)
            new.chmod(0o644)
            new.replace(file)
            changed = True
        return changed

    def _pid(self, network: Network) -> int | None:
        """Of the server that wrote its pid file; guests' processes could write one too."""
        try:
            pid = int(self._inside(dnsmasq.pid_file(network)).read_text())
            process = Path(f"/proc/{pid}")
            right = (process / "ns" / "net").stat().st_ino == self._namespace.facts.net
            return pid if right and (process / "comm").read_text() == "dnsmasq\n" else None
        except (OSError, ValueError):
            return None

    async def _end_stray(self, network: Network) -> None:
        """A server that was started by a daemon that died before it could write that down."""
        pid = self._pid(network)
        if pid is None or pid == os.getpid():
            return
        with suppress(NotFound), ProcessHandle.open(pid) as handle:
            handle.send_signal(signal.SIGKILL)
            await handle.wait(_END_SECONDS)
