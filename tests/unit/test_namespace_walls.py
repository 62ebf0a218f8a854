"""What the process of a guest cannot do to other guests, the house and its network.

A guest may have taken over its QEMU, so a program of ours stands in for it: with the uid, the
namespaces and the rights of guest A it attacks guest B, the store, the API and the uplink. The
same program with the rights of B, or of the house, succeeds: it could.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from guesthouse.drivers.qemu.identity import Identities, Needs
from guesthouse.host.launcher import Confinement, FdTable, confine
from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.host.namespace.idbook import IdBook
from guesthouse.host.spawn import run

from .keeper_house import House, keeper_house, listener, read_exactly
from .namespace_house import namespace_house

pytestmark = pytest.mark.rootless

AM_ROOT = os.geteuid() == 0
SECRET = "of guest B alone"
ATTACKS = """
import ctypes, fcntl, json, os, signal, socket, struct, sys

on = json.loads(sys.argv[1])
b, libc = on["b"], ctypes.CDLL(None, use_errno=True)

def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result

def trace():
    checked(libc.ptrace(16, b, None, None))  # PTRACE_ATTACH
    os.waitpid(b, 0x40000000)  # __WALL
    checked(libc.ptrace(17, b, None, None))

def memory():
    with open(f"/proc/{b}/mem", "rb", 0) as file:
        first = open(f"/proc/{b}/maps").readline().split("-")[0]
        file.seek(int(first, 16))
        assert file.read(16)

def take_fd():
    os.close(checked(libc.syscall(438, os.pidfd_open(b), 0, 0)))

def connect(family, address):
    with socket.socket(family) as end:
        end.settimeout(5)
        end.connect(address)

def sees_uplink():
    if "tap0" not in [name for _, name in socket.if_nameindex()]:
        raise OSError(19, "no uplink")

def make_tap():
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"t1-0", 0x5002))

def loopback_up():
    with socket.socket() as end:
        fcntl.ioctl(end, 0x8914, struct.pack("16sH22x", b"lo", 1))

attacks = {
    "b-environ": lambda: open(f"/proc/{b}/environ").read().index(on["secret"]),
    "b-memory": memory,
    "b-descriptors": lambda: os.listdir(f"/proc/{b}/fd"),
    "b-files": lambda: os.listdir(f"/proc/{b}/root"),
    "b-signal": lambda: os.kill(b, signal.SIGCONT),
    "b-pidfd-signal": lambda: signal.pidfd_send_signal(os.pidfd_open(b), signal.SIGCONT),
    "b-trace": trace,
    "b-take-fd": take_fd,
    "b-priority": lambda: os.setpriority(os.PRIO_PROCESS, b, 10),
    "b-namespace": lambda: os.open(f"/proc/{b}/ns/net", os.O_RDONLY),
    "b-become": lambda: os.setuid(on["b_uid"]),
    "holder-signal": lambda: os.kill(on["house"][0], signal.SIGCONT),
    "keeper-signal": lambda: os.kill(on["house"][1], signal.SIGCONT),
    "daemon-signal": lambda: os.kill(on["house"][2], signal.SIGCONT),
    "house-namespace": lambda: os.open(f"/proc/{on['house'][0]}/ns/net", os.O_RDONLY),
    "house-become": lambda: os.setuid(0),
    "house-mount": lambda: checked(libc.mount(b"x", b"/mnt", b"tmpfs", 0, None)),
    "store-read": lambda: open(on["store"]).read(),
    "store-write": lambda: open(on["store"], "a"),
    "store-replace": lambda: os.rename(on["store"], on["store"] + "x"),
    "api": lambda: connect(socket.AF_UNIX, on["api"]),
    "host-abstract": lambda: connect(socket.AF_UNIX, "\\0" + on["abstract"]),
    "host-port": lambda: connect(socket.AF_INET, ("127.0.0.1", on["port"])),
    "net-uplink": sees_uplink,
    "net-sniff": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x300).close(),
    "net-raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(),
    "net-tap": make_tap,
    "net-loopback": loopback_up,
}
done = []
for name in on["attacks"] or attacks:
    try:
        attacks[name]()
        done.append(name)
    except (OSError, ValueError):
        pass
print(json.dumps(done))
"""


class Scene:
    """A house with two guests and things worth attacking; `where` is what the attacker knows."""

    def __init__(self, house: HouseNamespace, where: dict[str, Any]) -> None:
        self.house, self.where = house, where
        # One that every uid may run; the interpreter of the tests may lie in somebody's home.
        self.python = shutil.which("python3", path="/usr/bin:/bin") or "python3"

    def _argv(self, attacks: tuple[str, ...]) -> list[str]:
        known = json.dumps({**self.where, "attacks": attacks})
        return [self.python, "-I", "-S", "-c", ATTACKS, known]

    async def as_guest(self, slot: int, *attacks: str) -> set[str]:
        """What succeeds with the rights of that guest; without names all is tried."""
        return await self.behind(confinement(self.house, slot), *attacks)

    async def behind(self, walls: Confinement, *attacks: str) -> set[str]:
        argv = confine(self._argv(attacks), walls, am_root=AM_ROOT)
        return set(json.loads((await run(argv, cwd=Path("/"))).out))

    async def as_house(self, *attacks: str) -> set[str]:
        return set(json.loads((await self.house.run(self._argv(attacks))).out))

    async def as_daemon(self, *attacks: str) -> set[str]:
        return set(json.loads((await run(self._argv(attacks), cwd=Path("/"))).out))


def confinement(house: HouseNamespace, slot: int) -> Confinement:
    who = house.plan.vm(slot)
    return Confinement(uid=who.uid, gid=who.gid, namespaces=house.launch)


async def start_guest(keeper: House, house: HouseNamespace, slot: int) -> int:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with FdTable() as table:
        number = table.add(theirs.detach())
        script = f"echo up >&{number}; exec sleep 1000"
        argv = confine(["sh", "-c", script], confinement(house, slot), am_root=AM_ROOT)
        env = {"PATH": os.environ["PATH"], "SECRET": SECRET}
        _, spawned = await keeper.spawn(*argv, fds=table, env=env)
    assert await read_exactly(ours, 3) == b"up\n", keeper.errors.read_text()
    ours.close()
    return spawned.pid


@asynccontextmanager
async def scene_in(tmp_path: Path, open_folder: Path) -> AsyncIterator[Scene]:
    store, api = open_folder / "guesthouse.db", open_folder / "api.sock"
    # Only its own mode protects it here, not that of the folders above.
    store.touch(mode=0o600)
    async with namespace_house(tmp_path) as house, keeper_house(tmp_path) as keeper:
        await house.run(["ip", "link", "add", "tap0", "type", "bridge"])
        await house.run(["ip", "addr", "add", "10.0.2.100/24", "dev", "tap0"])
        await house.run(["ip", "link", "set", "tap0", "up"])
        b = await start_guest(keeper, house, 1)
        with listener(api), socket.socket() as port, socket.socket(socket.AF_UNIX) as abstract:
            api.chmod(0o600)
            port.bind(("127.0.0.1", 0))
            port.listen()
            abstract.bind(f"\0{open_folder}")
            abstract.listen()
            where = {
                "b": b,
                "b_uid": house.plan.vm(1).uid,
                "secret": SECRET,
                "house": [house.facts.pid, keeper.client.pid, os.getpid()],
                "store": str(store),
                "api": str(api),
                "abstract": str(open_folder),
                "port": port.getsockname()[1],
            }
            yield Scene(house, where)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        async with scene_in(tmp_path, Path(folder)) as made:
            yield made


async def test_guest_a_can_do_nothing_to_anybody(scene: Scene) -> None:
    assert await scene.as_guest(0) == set()


async def test_with_a_builtin_card_it_reaches_the_host_and_nothing_else(
    scene: Scene, tmp_path: Path
) -> None:
    book = IdBook(tmp_path / "ids", tmp_path)
    who = Identities(scene.house, lambda: book, am_root=AM_ROOT)
    needs = Needs(Path(scene.python), host_network=True)
    walls = await who.confinement("a", needs)
    assert await scene.behind(walls) == {"host-abstract", "host-port"}


async def test_nor_can_a_service_of_the_house(scene: Scene) -> None:
    """dnsmasq and the like: in the house's network, but as nobody special."""
    who = scene.house.plan.service(0)
    argv = ["setpriv", f"--reuid={who.uid}", f"--regid={who.gid}", "--clear-groups"]
    argv += ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"]
    done = await scene.house.run([*argv, *scene._argv(())])
    # It does see what it serves.
    assert set(json.loads(done.out)) == {"net-uplink"}


async def test_the_same_program_succeeds_as_b(scene: Scene) -> None:
    """The control: nothing but the walls stopped A."""
    wanted = ["environ", "descriptors", "files", "signal", "pidfd-signal", "namespace", "priority"]
    if traceable():
        wanted += ["memory", "trace", "take-fd"]
    names = {f"b-{name}" for name in wanted}
    assert await scene.as_guest(1, *names) == names


async def test_the_same_program_succeeds_as_the_house(scene: Scene) -> None:
    names = {"net-uplink", "net-sniff", "net-raw", "net-loopback", "holder-signal", "b-signal"}
    names |= {"store-read", "store-write", "house-become", "house-namespace"}
    assert await scene.as_house(*names) == names
    names = {"store-read", "store-write", "api", "host-abstract", "host-port"}
    names |= {"holder-signal", "keeper-signal", "daemon-signal"}
    assert await scene.as_daemon(*names) == names
    assert "store-replace" in await scene.as_daemon("store-replace")


def traceable() -> bool:
    """Whether the kernel lets a process trace others of its uid (Yama)."""
    try:
        return Path("/proc/sys/kernel/yama/ptrace_scope").read_text().strip() == "0"
    except FileNotFoundError:
        return True
