"""One dnsmasq for each network, inside: started, told of changes, replaced."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from guesthouse.errors import EngineError, NotFound
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


class Naming:
    def __init__(self, namespace: HouseNamespace, services: Services) -> None:
        self._namespace, self._services = namespace, services
        self._resolver: Resolver | None = None

    async def enter(self) -> None:
        """Once for every holder. :raise ToolFailed:"""
        await self._namespace.run(dnsmasq.folder_command(self._who))

    async def settle(
        self, networks: Sequence[Network], seats: Sequence[Seat], resolver: Resolver
    ) -> None:
        """Exactly these networks have a server, and it knows exactly these cards.

        :param resolver: of the host; when it changes, what the servers remember is forgotten.
        :raise HostLacks: dnsmasq is not installed. :raise ToolFailed: it does not start.
        """
        wanted = {PREFIX + network.bridge for network in networks}
        for name in self._services.names:
            if name.startswith(PREFIX) and name not in wanted:
                await self._services.stop(name)
        known = self._services.names
        if await self._ask(resolver):
            for name in wanted.intersection(known):
                self._services.send(name, signal.SIGHUP)
        own = {n.id: [seat for seat in seats if seat.network == n.id] for n in networks}
        await asyncio.gather(*(self._one(network, own[network.id]) for network in networks))

    @property
    def _who(self) -> GuestIdentity:
        return self._namespace.plan.service(dnsmasq.SERVICE)

    async def _ask(self, resolver: Resolver) -> bool:
        """Whether whom to ask is another than before, or answers differently now."""
        ipv6 = "ipv6" not in self._namespace.facts.lacks
        text = servers_text(resolver, ipv6=ipv6)
        changed = await asyncio.to_thread(self._write, {dnsmasq.SERVERS: text})
        before, self._resolver = self._resolver, resolver
        return changed or before != resolver

    async def _one(self, network: Network, seats: Sequence[Seat]) -> None:
        texts = {
            dnsmasq.cards_file(network): dnsmasq.cards(seats),
            dnsmasq.options_file(network): dnsmasq.options(seats),
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
        if running is not None and running.made_of == made_of:
            if changed:
                self._services.send(name, signal.SIGHUP)
            return
        await self._services.stop(name)
        await self._end_stray(network)
        require_tool("dnsmasq")  # here, since it would be setpriv's failure
        await self._namespace.run(dnsmasq.command(self._who), input=configuration.encode())
        pid = self._pid(network)
        if pid is None:
            raise EngineError(f"The names of network {network.name} have no server.")
        await self._services.add(name, pid, made_of)

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
