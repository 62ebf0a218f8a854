"""The house's network: how fast bytes go through it, and how soon a card is ready.

Two micro guests on a network of the house; beside them two on the same kinds of bridge, taps and
slirp4netns, set up by hand with no rule of ours; and one with QEMU's builtin network. All have the
same engine, devices and confinement, so what differs is the network alone. Transfers take turns.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from socket import AF_INET, SOCK_STREAM, socket
from typing import NamedTuple

from benchmarks.figures import OURS, Budget, Figure
from guesthouse.drivers.base import Running
from guesthouse.guestos.agent import Agent
from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.model.device import Nic
from guesthouse.model.firewall import Direction, Firewall, Rule
from guesthouse.network.base import Attachment
from guesthouse.network.builtin import Builtin, netdev_id
from guesthouse.network.house.uplink import command
from tests.contract.driver_house import DriverHouse, driver_house, nic, own_identities
from tests.e2e.qemu_guests import ended, micro_guest, up
from tests.house_network import TestHouse, host_address, test_house

BY_HAND = "set up by hand"
BUILTIN = "QEMU's builtin network"
ROUNDS, QUICK_ROUNDS = 7, 3
MEBIBYTES, QUICK_MEBIBYTES = 64, 8
CARDS = 6
PATIENCE = 300.0
READY = Budget(30.0)
SLOWER = Budget(1 / 0.95, BY_HAND)
"""Of times: five percent less throughput."""

_NAT = (
    "table ip hand {\nchain out {\ntype nat hook postrouting priority srcnat;\n"
    'oifname "tap0" masquerade\n}\n}\n'
)


class Hand(Builtin):
    """A bridge, taps, NAT and slirp4netns, and nothing else."""

    name = "hand"

    def __init__(self, space: HouseNamespace) -> None:
        self._space = space
        self._uplink: asyncio.subprocess.Process | None = None
        self.taps = 0

    async def begin(self) -> None:
        facts = await self._space.ensure()
        await self._ip(
            "link add hand0 type bridge stp_state 0 forward_delay 0", "link set hand0 up"
        )
        await self._ip("address add 10.202.1.1/24 dev hand0")
        await self._space.run(["nft", "-f", "-"], input=_NAT.encode())
        argv = command(facts.pid, Path("unused"), user=self._space.plan.mapped, ipv6=False)
        argv = [word for word in argv if not word.startswith(("--ready", "--exit", "--api"))]
        self._uplink = await asyncio.create_subprocess_exec(*argv, stdout=-3, stderr=-3)

    async def attach(self, guest: str, nic: Nic, index: int, *, hostname: str) -> Attachment:
        self.taps += 1
        tap = f"hand{self.taps}"
        fd = await self._space.tap(tap)
        await self._ip(f"link set {tap} master hand0", f"link set {tap} up")
        return Attachment(f"tap,id={netdev_id(index)},fd={{fd}}", fd)

    async def end(self) -> None:
        if self._uplink is not None:
            self._uplink.kill()
            await self._uplink.wait()
        await self._space.dissolve()

    async def _ip(self, *lines: str) -> None:
        await self._space.run(["ip", "-batch", "-"], input="\n".join([*lines, ""]).encode())


class Guest(NamedTuple):
    running: Running
    agent: Agent

    async def does(self, script: str) -> str:
        done = await self.agent.exec(["sh", "-c", script], timeout=PATIENCE)
        return (done.stdout + done.stderr).decode(errors="replace")

    async def sends(self, mebibytes: int, whom: str, port: int) -> float:
        """Seconds that it takes, by the guest's own clock, with the connection."""
        said = await self.does(
            "read begun _ </proc/uptime;"
            f"dd if=/dev/zero bs=65536 count={mebibytes * 16} 2>/dev/null | nc {whom} {port};"
            "read ended _ </proc/uptime; echo took $begun $ended"
        )
        found = re.search(r"took ([0-9.]+) ([0-9.]+)", said)
        if not found:
            raise RuntimeError(f"nothing was sent to {whom}: {said}")
        return float(found[2]) - float(found[1])

    async def receives(self, port: int) -> None:
        await self.does(f"nc -l -p {port} -e sh -c 'cat >/dev/null' >/dev/null 2>&1 & sleep 0.3")


class Sink:
    """A port of the host that takes everything."""

    def __init__(self) -> None:
        self._socket = socket(AF_INET, SOCK_STREAM)
        self._socket.bind(("0.0.0.0", 0))
        self._socket.listen()
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                end, _ = self._socket.accept()
                with end:
                    while end.recv(1 << 20):
                        pass

    def close(self) -> None:
        self._socket.close()


class Bench(NamedTuple):
    ours: tuple[Guest, Guest]
    hand: tuple[Guest, Guest]
    builtin: Guest
    address: str
    """Of the second of ours."""


@asynccontextmanager
async def bench(folder: Path) -> AsyncIterator[Bench]:
    (folder / "net").mkdir()
    (folder / "hand").mkdir()
    hand = Hand(HouseNamespace(folder / "hand"))
    async with driver_house("qemu", folder) as drivers, test_house(folder / "net") as nets:
        drivers.identities = own_identities(nets.namespace, folder)
        to_host = Rule(name="host", direction=Direction.OUT, destinations=("host",))
        nets.records.firewalls["web"] = Firewall(rules=(to_host,))
        networks = {"lan": nets.network, "hand": hand, "builtin": Builtin()}
        drivers.driver = drivers.qemu(networks)
        guests: list[Guest] = []
        try:
            await hand.begin()
            on = ("lan", "lan", "hand", "hand", "builtin")
            for number, (name, net) in enumerate(
                zip(("web", "db", "a", "b", "c"), on, strict=True)
            ):
                guests.append(await _guest(drivers, name, number, net))
            for number, guest in enumerate(guests[2:4], 11):
                await guest.does(
                    "kill $(cat /run/network.eth0/pid); ip address flush dev eth0;"
                    f"ip address add 10.202.1.{number}/24 dev eth0;"
                    "ip route add default via 10.202.1.1"
                )
            for guest in (*guests[:2], guests[4]):
                await _until_route(guest)
            yield Bench(
                (guests[0], guests[1]), (guests[2], guests[3]), guests[4], _address(nets, "db")
            )
        finally:
            for guest in guests:
                await guest.agent.close()
                await guest.running.kill()
                await ended(guest.running)
            await hand.end()


async def _guest(drivers: DriverHouse, name: str, number: int, net: str) -> Guest:
    wanted = micro_guest(name=name, number=20 + number, nics=(nic(network=net),))
    running = await up(drivers, wanted)
    return Guest(running, Agent(drivers.resources(wanted).runtime / "agent.sock"))


async def _until_route(guest: Guest) -> None:
    # Within the guest, which may be asked again only when it has answered.
    await guest.does("until ip route | grep -q default; do sleep 0.5; done")


def _address(nets: TestHouse, name: str) -> str:
    return next(s.address(4) for s in nets.records.seats.values() if s.name == name)


async def throughput(rounds: int, size: int, say: Callable[[str], None]) -> list[Figure]:
    between = Figure(f"{size} MiB from guest to guest", "s", SLOWER)
    out = Figure(f"{size} MiB from guest to host", "s", SLOWER)
    host, sink = host_address(), Sink()
    folder = Path(tempfile.mkdtemp(prefix="gn-"))
    say("five guests come up")
    try:
        async with bench(folder) as guests:
            for turn in range(rounds):
                say(f"transfers, round {turn + 1} of {rounds}")
                port = 5001 + turn
                for name, pair, whom in (
                    (OURS, guests.ours, guests.address),
                    (BY_HAND, guests.hand, "10.202.1.12"),
                ):
                    await pair[1].receives(port)
                    between.add(name, await pair[0].sends(size, whom, port))
                if not host:
                    continue  # but for loopback this host has no address
                out.add(OURS, await guests.ours[0].sends(size, host, sink.port))
                out.add(BY_HAND, await guests.hand[0].sends(size, host, sink.port))
                out.add(BUILTIN, await guests.builtin.sends(size, host, sink.port))
    finally:
        sink.close()
    return [figure for figure in (between, out) if figure.values]


async def readiness(rounds: int, say: Callable[[str], None]) -> list[Figure]:
    """Cards in a house whose namespace is there, as it is while any guest has a card."""
    first = Figure("the first card of a house ready", "ms", READY)
    later = Figure("a later card ready", "ms", READY)
    for turn in range(rounds):
        say(f"cards, round {turn + 1} of {rounds}")
        with tempfile.TemporaryDirectory(prefix="gn-") as name:
            folder = Path(name)
            (folder / "hand").mkdir()
            hand = Hand(HouseNamespace(folder / "hand"))
            async with test_house(folder) as nets:
                try:
                    await hand.begin()
                    for number in range(CARDS):
                        card = nets.guest(f"g{number}")
                        (later if number else first).add(OURS, await _timed(card.attach()))
                        if number:
                            one = Nic(mac="52:67:68:00:00:01")
                            begun = hand.attach("", one, 0, hostname="")
                            later.add(BY_HAND, await _timed(begun))
                finally:
                    await hand.end()
    return [first, later]


async def _timed(doing: Awaitable[Attachment]) -> float:
    """Milliseconds."""
    begun = time.perf_counter()
    await doing
    return (time.perf_counter() - begun) * 1000


def measure(quick: bool, say: Callable[[str], None]) -> list[Figure]:
    rounds, size = (QUICK_ROUNDS, QUICK_MEBIBYTES) if quick else (ROUNDS, MEBIBYTES)

    async def both() -> list[Figure]:
        return [*await throughput(rounds, size, say), *await readiness(rounds, say)]

    return asyncio.run(both())
