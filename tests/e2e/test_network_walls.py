"""What the process of a guest can do to the rest of a real house: nothing.

A program of ours stands in for the QEMU of guest web, which web may have taken over: with its uid,
its groups and in its namespaces it attacks db, the daemon, the keeper, the store, and whatever
keeps the networks up. Whoever the house belongs to can do every one of these things.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guesthouse.host.namespace.entering import tool_environment
from tests.unit.namespace_house import need_ids, need_tun
from tests.unit.test_namespace_walls import traceable

from .network_house import NetworkHouse, free_port, network_house
from .qemu_guests import status

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]
ATTACKS = """
import ctypes, json, os, signal, socket, sys

on, done, libc = json.load(sys.stdin), [], ctypes.CDLL(None, use_errno=True)

def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result

def connect(path):
    for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
        with socket.socket(socket.AF_UNIX, kind) as end:
            end.settimeout(5)
            if not end.connect_ex(path):
                return
    raise OSError("refused")

def read(path):
    with open(path, "rb") as file:
        assert file.read(1)

def trace(pid):
    checked(libc.ptrace(16, pid, None, None))  # PTRACE_ATTACH
    os.waitpid(pid, 0x40000000)  # __WALL
    checked(libc.ptrace(17, pid, None, None))

def memory(pid):
    first = int(open(f"/proc/{pid}/maps").readline().split("-")[0], 16)
    with open(f"/proc/{pid}/mem", "rb", 0) as file:
        file.seek(first)
        assert file.read(16)

def sniff(device):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x300) as end:
        end.bind((device, 0))

def become(uid):
    child = os.fork()
    if not child:
        try:
            os.setuid(uid)
        except OSError:
            os._exit(1)
        os._exit(0)
    checked(-os.waitpid(child, 0)[1])

attacks = {
    "connect": connect,
    "read": read,
    "write": lambda path: open(path, "ab").close(),
    "signal": lambda pid: os.kill(pid, signal.SIGCONT),
    "pidfd-signal": lambda pid: signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGCONT),
    "trace": trace,
    "memory": memory,
    "environment": lambda pid: open(f"/proc/{pid}/environ", "rb").close(),
    "descriptors": lambda pid: os.listdir(f"/proc/{pid}/fd"),
    "files": lambda pid: os.listdir(f"/proc/{pid}/root"),
    "take-descriptor": lambda pid: checked(libc.syscall(438, os.pidfd_open(pid), 0, 0)),
    "network": lambda pid: os.close(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)),
    "sniff": sniff,
    "become": become,
}
for kind, targets in on.items():
    for name, target in targets.items():
        try:
            attacks[kind](target)
            done.append(f"{kind} {name}")
        except (OSError, AssertionError):
            pass
print(json.dumps(done))
"""
OF_PROCESSES = ("signal", "pidfd-signal", "environment", "descriptors", "files", "network")
BY_TRACING = ("trace", "memory", "take-descriptor")


class Scene:
    def __init__(self, house: NetworkHouse) -> None:
        self.house = house
        runtime, state = house.runtime, house.state
        self.web, self.db = house.pid("web"), house.pid("db")
        processes = {"db": self.db, "daemon": house.daemon_pid, "holder": house.holder}
        processes |= house.services
        processes |= {"keeper": int(status(self.db)["PPid"])}
        db = runtime / "guests" / house.json("info", "db")["id"]
        sockets = {path.name: str(path) for path in (*runtime.glob("*.sock"), *db.glob("*.sock"))}
        names = {"api.sock", "keeper.sock", "uplink.sock", "qmp.sock", "agent.sock", "ssh.sock"}
        assert names <= {*sockets}
        store = state / "guesthouse.db"
        records = [store, *runtime.glob("*.json")]
        assert store.exists() and {path.name for path in records} == {
            store.name, "namespace.json", "network-services.json", "network-rules.json",
            "network-impairments.json",
        }  # fmt: skip
        files = {path.name: str(path) for path in records}
        bridge = next(
            one["ifname"]
            for one in json.loads(house.inside("ip", "-j", "link"))
            if one["ifname"].startswith("br-")
        )
        self.attacks: dict[str, dict[str, Any]] = {
            "connect": sockets,
            "read": files,
            "write": files,
            **dict.fromkeys((*OF_PROCESSES, *BY_TRACING), processes),
            "sniff": {name: name for name in (bridge, "tap0", *self.taps())},
            "become": {"root": 0, "db": self.inside_uid(self.db)},
        }

    def taps(self) -> list[str]:
        links = json.loads(self.house.inside("ip", "-j", "link"))
        taps = [
            one["ifname"] for one in links if one["ifname"].startswith("t") and "-" in one["ifname"]
        ]
        assert len(taps) == 2
        return taps

    def inside_uid(self, pid: int) -> int:
        """Of a process, as its own user namespace calls it."""
        argv = [*self.entered(pid, "--user"), "stat", "--format=%u", f"/proc/{pid}"]
        return int(subprocess.run(argv, check=True, capture_output=True).stdout)

    def entered(self, pid: int, *spaces: str) -> list[str]:
        if os.geteuid() == 0:  # there is no user namespace but the host's
            spaces = tuple(one for one in spaces if one != "--user")
        how = ["--preserve-credentials"] if "--user" in spaces else []
        return ["nsenter", f"--target={pid}", *spaces, *how, "--"] if spaces else []

    def tried(self, *prefix: str) -> set[str]:
        # One that every uid may run; the interpreter of the tests may lie in somebody's home.
        python = shutil.which("python3", path="/usr/bin:/bin") or "python3"
        argv = [*prefix, python, "-I", "-S", "-c", ATTACKS]
        known = json.dumps(self.attacks).encode()
        done = subprocess.run(
            argv, input=known, env=tool_environment(), capture_output=True, cwd="/", check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return set(json.loads(done.stdout))

    def as_web(self) -> set[str]:
        uid = self.inside_uid(self.web)
        walls = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all"]
        walls += ["--bounding-set=-all", "--no-new-privs", "--"]
        return self.tried(*self.entered(self.web, "--user", "--net", "--mount"), *walls)

    def as_owner(self) -> set[str]:
        """Of the house: outside, and as the root inside."""
        return self.tried() | self.tried(*self.entered(self.house.holder, "--user", "--net"))


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    need_ids()
    need_tun()
    with network_house() as house:
        house.run("network", "create", "lan")
        house.launch("web", "lan")
        house.launch("db", "lan", "--publish", f"{free_port()}:80/udp")
        yield Scene(house)


def test_the_stand_in_is_where_the_guest_is(scene: Scene) -> None:
    """With nothing of its own but what it was given."""
    mine, house = status(scene.web), scene.house
    assert {int(uid) for uid in mine["Uid"].split()}.isdisjoint({0, os.geteuid()})
    assert mine["Uid"] != status(scene.db)["Uid"]
    assert int(mine["CapBnd"], 16) == int(mine["CapEff"], 16) == int(mine["CapPrm"], 16) == 0
    assert (mine["NoNewPrivs"], mine["Seccomp"]) == ("1", "2")
    argv = [*scene.entered(scene.web, "--user", "--net"), "ip", "-j", "link"]
    links = subprocess.run(argv, env=tool_environment(), check=True, capture_output=True).stdout
    assert "tap0" not in links.decode() and "br-" not in links.decode()
    assert Path(f"/proc/{house.holder}").exists()


def test_a_guest_can_do_nothing_to_the_house(scene: Scene) -> None:
    assert scene.as_web() == set()


def test_its_owner_can(scene: Scene) -> None:
    """The control: nothing but the walls stopped web."""
    wanted = {f"{kind} {name}" for kind, targets in scene.attacks.items() for name in targets}
    if not traceable():
        wanted = {one for one in wanted if one.split()[0] not in BY_TRACING}
    assert wanted - scene.as_owner() == set()
