"""A house's network for a test, with guests that are network namespaces of their own.

Each guest has a tap `eth0` in its namespace, and its frames are carried by hand between that tap
and the one that the house gave to its card, as a VMM does. It runs for root and for a user alike.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.host.spawn import Finished
from guesthouse.model.device import Nic, Publish
from guesthouse.model.firewall import AddressSet, Firewall, SecurityGroup
from guesthouse.model.network import Network, NetworkKind, default_range
from guesthouse.network.base import Attachment
from guesthouse.network.house.backend import HouseNetwork
from guesthouse.network.house.seats import Seat

from .firewall_house import ident

PING = """
import os, socket, struct, sys, time
whom, wait, count = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
six = ":" in whom
family, protocol, kind = (socket.AF_INET6, 58, 128) if six else (socket.AF_INET, 1, 8)
with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
    sock.connect((whom, 0))
    for number in range(count):
        data = struct.pack("!BBHHH", kind, 0, 0, os.getpid() & 0xFFFF, number)
        total = sum(struct.unpack("!4H", data))
        total = ~(total + (total >> 16)) & 0xFFFF
        sock.send(data[:2] + struct.pack("!H", 0 if six else total) + data[4:])
        end = time.monotonic() + wait
        while True:
            sock.settimeout(max(0.001, end - time.monotonic()))
            try:
                answer = sock.recv(4096)[0 if six else 20:]
            except TimeoutError:
                sys.exit(1)
            if answer[0] == (129 if six else 0) and answer[4:8] == data[4:8]:
                break
"""
"""Echo requests, one after another; fails at the first without an answer."""

ASK = """
import random, socket, struct, sys
server, name, kind = sys.argv[1], sys.argv[2], int(sys.argv[3])
query = struct.pack("!HHHHHH", random.randrange(65536), 0x100, 1, 0, 0, 0)
query += b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\\0"
query += struct.pack("!HH", kind, 1)
family = socket.AF_INET6 if ":" in server else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as sock:
    sock.settimeout(2.5)
    sock.connect((server, 53))
    for last in (False, True):  # once more, as resolvers do
        sock.send(query)
        try:
            answer = sock.recv(4096)
            break
        except TimeoutError:
            if last:
                raise
count = struct.unpack("!H", answer[6:8])[0]
size = {1: 4, 28: 16}[kind]
address = socket.AF_INET if kind == 1 else socket.AF_INET6
print(answer[3] & 15, socket.inet_ntop(address, answer[-size:]) if count else "-")
"""
"""Asks a DNS server: prints the code of the answer and the last address."""

ECHO = """
import socket, sys, threading
def talk(end):
    with end:
        while data := end.recv(65536):
            end.sendall(data)
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
if sys.argv[3] == "udp":
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((sys.argv[1], int(sys.argv[2])))
    print("ready", flush=True)
    while True:
        data, sender = sock.recvfrom(65536)
        sock.sendto(data, sender)
server = socket.create_server((sys.argv[1], int(sys.argv[2])), family=family)
print("ready", flush=True)
while True:
    threading.Thread(target=talk, args=(server.accept()[0],), daemon=True).start()
"""
"""Answers everything with itself."""

SAY = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as end:
    end.settimeout(10)
    end.sendall(b"hello")
    print(end.recv(100).decode())
"""
"""Says hello to an echo, by TCP, and prints the answer."""


def network(number: int = 1, name: str = "lan", **more: object) -> Network:
    raw: dict[str, object] = {
        "id": ident("network", name),
        "name": name,
        "created_at": 0.0,
        "subnet4": f"10.201.{number}.0/24",
        "subnet6": f"fd42:201:{number}::/64",
        "domain": f"{name}.test",
        "dhcp": default_range(f"10.201.{number}.0/24"),
        **more,
    }
    return Network(**raw)  # type: ignore[arg-type]  # a test's shorthand


class TestRecords:
    """Records in memory. Cards are numbered in the order in which they come."""

    __test__ = False

    def __init__(self, *networks: Network) -> None:
        self.own = list(networks)
        self.own_groups: list[SecurityGroup] = []
        self.own_sets: list[AddressSet] = []
        self.firewalls: dict[str, Firewall] = {}
        self.seats: dict[tuple[str, int], Seat] = {}

    def networks(self) -> Sequence[Network]:
        return self.own

    def groups(self) -> Sequence[SecurityGroup]:
        return self.own_groups

    def sets(self) -> Sequence[AddressSet]:
        return self.own_sets

    async def seat(self, guest: str, nic: Nic, index: int, *, hostname: str) -> Seat:
        found = next(n for n in self.own if n.name == nic.network)
        before = self.seats.get((guest, index))
        number = before.number if before else 1 + len(self.seats)
        four = found.subnet4.replace("0/24", str(10 + number))
        six = found.subnet6.replace("/64", str(1000 + number))
        seat = Seat(
            guest=guest,
            index=index,
            name=hostname,
            number=number,
            mac=nic.mac,
            network=found.id,
            addresses=tuple(address for address in (four, six) if address),
            any_address=found.kind is NetworkKind.BRIDGED,
            firewall=self.firewalls.get(hostname, Firewall()),
            ports=nic.ports,
        )
        self.seats[guest, index] = seat
        return seat


class TestGuest:
    """A guest with one card, whose inside is a network namespace."""

    __test__ = False

    def __init__(self, house: HouseNetwork, records: TestRecords, name: str, net: str) -> None:
        self.name, self.id = name, ident("guest", name)
        self._house, self._records = house, records
        number = 1 + len(records.seats)
        self.nic = Nic(mac=f"52:67:68:00:00:{number:02x}", network=net)
        self._space: HouseNamespace | None = None
        self._fds: list[int] = []
        self._servers: list[asyncio.subprocess.Process] = []

    @property
    def seat(self) -> Seat:
        return self._records.seats[self.id, 0]

    @property
    def address(self) -> str:
        return self.seat.address(4)

    @property
    def address6(self) -> str:
        return self.seat.address(6)

    @property
    def space(self) -> HouseNamespace:
        assert self._space is not None
        return self._space

    async def attach(self, *ports: Publish) -> Attachment:
        nic = msgspec.structs.replace(self.nic, ports=ports)
        return await self._house.attach(self.id, nic, 0, hostname=self.name)

    async def boot(self, folder: Path, *ports: Publish, configure: bool = True) -> None:
        """Attach the card, and carry frames from then on."""
        attached = await self.attach(*ports)
        await self._house._naming.finish()  # it asks for names sooner than a real guest could
        assert attached.fd is not None
        folder.mkdir(exist_ok=True)
        self._space = HouseNamespace(folder)
        await self._space.ensure()
        inner = await self._space.tap("eth0")
        self.carry(inner, os.dup(attached.fd))
        lines = [f"link set dev eth0 address {self.nic.mac}", "link set dev eth0 up"]
        if configure:
            lines += [f"address add {self.address}/24 dev eth0"]
            lines += [f"route add default via {self.address.rpartition('.')[0]}.1"]
            if self.address6:
                lines += [f"address add {self.address6}/64 dev eth0 nodad"]
                lines += ["route add default via fe80::1 dev eth0"]
        # It is no router, whatever a house's namespace is.
        await self.space.settings({"ipv6/conf/all/forwarding": "0", "ipv4/ip_forward": "0"})
        await self.space.run(["ip", "-batch", "-"], input="\n".join([*lines, ""]).encode())

    def carry(self, inner: int, outer: int) -> None:
        loop = asyncio.get_running_loop()
        self._fds = [inner, outer]
        for fd in self._fds:
            os.set_blocking(fd, False)

        def move(source: int, target: int) -> None:
            with suppress(OSError):
                for _ in range(64):
                    os.write(target, os.read(source, 70000))

        loop.add_reader(inner, move, inner, outer)
        loop.add_reader(outer, move, outer, inner)

    def crash(self) -> None:
        """Nobody carries frames any more; what is inside goes on."""
        for fd in self._fds:
            asyncio.get_running_loop().remove_reader(fd)
        for fd in self._fds[1:]:
            os.close(fd)
        del self._fds[1:]

    async def end(self) -> None:
        self.crash()
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        for server in self._servers:
            server.kill()
            await server.wait()
        if self._space is not None:
            await self._space.dissolve()

    async def run(self, *argv: str, check: bool = True) -> Finished:
        return await self.space.run(argv, check=check, timeout=30)

    async def ping(self, whom: str, *, wait: float = 5.0, count: int = 1) -> bool:
        argv = ["python3", "-c", PING, whom, str(wait), str(count)]
        return not (await self.run(*argv, check=False)).code

    async def ask(self, server: str, name: str, version: int = 4) -> str:
        kind = {4: "1", 6: "28"}[version]
        return (await self.run("python3", "-c", ASK, server, name, kind)).text.strip()

    async def say(self, whom: str, port: int, *, wait: float = 5.0) -> str:
        """What an echo there answers; empty if nobody is reached."""
        done = await self.run("python3", "-c", SAY, whom, str(port), str(wait), check=False)
        return done.text.strip()

    async def echo(self, port: int, *, kind: str = "tcp", ip: str = "0.0.0.0") -> None:
        argv = self.space.service(["python3", "-c", ECHO, ip, str(port), kind])
        self._servers.append(await started(argv))


async def started(argv: Sequence[str]) -> asyncio.subprocess.Process:
    server = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert server.stdout
    assert await asyncio.wait_for(server.stdout.readline(), 30) == b"ready\n"
    return server


@asynccontextmanager
async def host_echo(ip: str, port: int) -> AsyncIterator[None]:
    """An echo on the host."""
    server = await started([sys.executable, "-c", ECHO, ip, str(port), "tcp"])
    try:
        yield
    finally:
        server.kill()
        await server.wait()


def host_address() -> str:
    """An IPv4 address of the host that is not loopback; empty if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("198.51.100.1", 9))
        except OSError:
            return ""
        return str(sock.getsockname()[0])


class TestHouse:
    """A house with networks, and guests by name."""

    __test__ = False

    def __init__(self, folder: Path, *networks: Network) -> None:
        self.folder = folder
        self.records = TestRecords(*networks)
        self.namespace = HouseNamespace(folder)
        self.log = folder / "firewall.log"
        self.network = HouseNetwork(self.namespace, self.records, folder, self.log)
        self.guests: dict[str, TestGuest] = {}
        self.namespace_pid = self.net = 0

    def guest(self, name: str, net: str = "") -> TestGuest:
        home = net or self.records.own[0].name
        found = TestGuest(self.network, self.records, name, home)
        self.guests[name] = found
        return found

    async def boot(
        self, name: str, net: str = "", *ports: Publish, configure: bool = True
    ) -> TestGuest:
        guest = self.guest(name, net)
        await guest.boot(self.folder / name, *ports, configure=configure)
        return guest

    async def daemon_dies(self) -> None:
        """Everything of it is gone but what it started; nothing is told."""
        self.namespace_pid, self.net = self.namespace.facts.pid, self.namespace.facts.net
        await self.network._let_go()
        await self.namespace.close()

    async def another_daemon_with(self, guest: TestGuest, *ports: Publish) -> None:
        """One that was told of these ports of the guest."""
        self.records.seats[guest.id, 0] = msgspec.structs.replace(guest.seat, ports=ports)
        await self.another_daemon()

    async def another_daemon(self) -> None:
        self.namespace = HouseNamespace(self.folder)
        self.network = HouseNetwork(self.namespace, self.records, self.folder, self.log)
        for guest in self.guests.values():
            guest._house = self.network
        await self.network.open(self.records.seats.values())
        await self.network._naming.finish()


@asynccontextmanager
async def test_house(folder: Path, *networks: Network) -> AsyncIterator[TestHouse]:
    """Gone at the end, with its guests."""
    house = TestHouse(folder, *(networks or (network(),)))
    await house.network.open()
    try:
        yield house
    finally:
        try:
            for guest in house.guests.values():
                await guest.end()
        finally:
            await house.network.dissolve()


test_house.__test__ = False  # type: ignore[attr-defined]  # it is no test
ISOLATED = NetworkKind.ISOLATED
