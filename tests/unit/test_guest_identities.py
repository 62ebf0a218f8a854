"""Who guests' processes are: ids from the book, the house's namespace, and what hosts lack."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from guesthouse.drivers.qemu import identity as identity_room
from guesthouse.drivers.qemu.identity import Identities, Needs
from guesthouse.errors import HostLacks
from guesthouse.host.launcher import Confinement, FdTable, Namespaces, confine
from guesthouse.host.namespace.holder import Member
from guesthouse.host.namespace.house import Facts, HouseNamespace
from guesthouse.host.namespace.idbook import IdBook
from guesthouse.host.namespace.idplan import FIRST_VM

from .keeper_house import keeper_house
from .namespace_house import identity, namespace_house

pytestmark = pytest.mark.rootless
AM_ROOT = os.geteuid() == 0
QEMU = Path("/usr/bin/qemu")
CARDS = Needs(QEMU, host_network=True)
TAPS = Needs(QEMU, host_network=False)
TELL = """
import json, os, sys
kinds = ("net", "mnt", "user")
told = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
told["fd"] = os.read(int(sys.argv[1]), 100).decode()
told["again"] = open(f"/proc/self/fd/{sys.argv[2]}").read()
with open(sys.argv[3], "r+") as memory:
    memory.write("m")
os.write(int(sys.argv[1]), json.dumps(told).encode())
os.read(int(sys.argv[1]), 1)
sys.exit(7)
"""


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[HouseNamespace]:
    async with namespace_house(tmp_path) as made:
        yield made


def identities(house: HouseNamespace, folder: Path, **fields: object) -> Identities:
    book = IdBook(folder / "ids", folder)
    return Identities(house, lambda: book, **{"am_root": AM_ROOT, **fields})


async def test_each_guest_has_its_own_ids_and_keeps_them(
    house: HouseNamespace, tmp_path: Path
) -> None:
    who = identities(house, tmp_path)
    first, second = [await who.confinement(name, TAPS) for name in ("a", "b")]
    assert [first.uid, second.uid] == [house.plan.vm(0).uid, house.plan.vm(1).uid]
    assert first.gid != second.gid
    assert first.namespaces == house.launch
    assert await identities(house, tmp_path).confinement("b", TAPS) == second, "a new daemon"
    await who.give_back("a")
    assert (await who.confinement("c", TAPS)).uid == first.uid
    await who.keep_only(["c"])
    assert (await who.confinement("d", TAPS)).uid == second.uid


async def test_a_card_of_the_builtin_network_needs_the_host(
    house: HouseNamespace, tmp_path: Path
) -> None:
    found = await identities(house, tmp_path).confinement("a", CARDS)
    assert not found.namespaces.empty_network
    assert found.namespaces.holder == house.launch.holder
    assert AM_ROOT or not found.namespaces.mounts, "the resolver's address is in the host's /run"


@pytest.mark.parametrize("needs", [CARDS, TAPS])
async def test_the_keeper_watches_that_very_process(
    house: HouseNamespace, tmp_path: Path, needs: Needs
) -> None:
    """Its pid, its descriptors, files that it opens again through them, and its exit code."""
    frozen = tmp_path / "kernel"
    frozen.write_text("kernel")
    frozen.chmod(0o444)
    tmp_path.chmod(0o700)
    ours, theirs = socket.socketpair()
    confined = await identities(house, tmp_path).confinement("a", needs)
    async with keeper_house(tmp_path) as keeper:
        with FdTable() as table, ours:
            end = table.add(theirs.detach())
            kernel = table.add(os.open(frozen, os.O_RDONLY))
            memory = f"/proc/self/fd/{table.add(os.memfd_create('ram'))}"
            command = ["/usr/bin/python3", "-I", "-S", "-c", TELL, str(end), str(kernel), memory]
            argv = confine(command, confined, am_root=AM_ROOT)
            key, spawned = await keeper.spawn(*argv, fds=table)
            table.close()
            ours.settimeout(60)
            ours.sendall(b"hello")  # before it is even there
            said = await asyncio.to_thread(ours.recv, 4096)
            assert said, keeper.errors.read_text()
            told = json.loads(said)
            status = Path(f"/proc/{spawned.pid}/status").read_text()
            # The daemon measures it, and may end it.
            assert "Pss" in Path(f"/proc/{spawned.pid}/smaps_rollup").read_text()
            os.kill(spawned.pid, signal.SIGCONT)
            ours.sendall(b".")
        outside = house.plan.outside(FIRST_VM)
        for name, number in zip(("Uid", "Gid"), outside, strict=True):
            assert f"{name}:\t" + "\t".join([str(number)] * 4) in status
        assert "CapEff:\t" + "0" * 16 in status
        assert (told["fd"], told["again"]) == ("hello", "kernel")
        assert (told["net"] == identity("net")) == needs.host_network
        assert told["net"] != f"net:[{house.facts.net}]", "not in the house's network"
        if not AM_ROOT:
            assert told["user"] == identity("user", house.facts.pid)
            assert (told["mnt"] == identity("mnt")) == needs.host_network
        ended = await keeper.record(key)
        assert (ended.pid, ended.exit_code) == (spawned.pid, 7)


class Refused(HouseNamespace):
    """On a host whose user has no subordinate ids."""

    async def ensure(self, members: Iterable[Member] = ()) -> Facts:
        raise HostLacks("No ids.", hint="Add a line to /etc/subuid.", capability="subids")


async def test_without_a_namespace_guests_stay_the_user(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    who = identities(Refused(tmp_path), tmp_path, am_root=False)
    for guest in ("a", "b"):
        found = await who.confinement(guest, TAPS)
        assert (found.uid, found.namespaces) == (None, Namespaces())
    assert who.lacks is not None and who.lacks.detail["capability"] == "subids"
    assert [record.getMessage() for record in caplog.records] == [
        "guests run as the user, not apart: No ids. Add a line to /etc/subuid."
    ]
    assert not (tmp_path / "ids").exists(), "no number is taken for nothing"


async def test_a_host_that_was_cured_is_noticed(
    house: HouseNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity_room, "_LOOK_AGAIN_SECONDS", 0.0)
    who = identities(Refused(tmp_path), tmp_path, am_root=False)
    assert (await who.confinement("a", TAPS)).uid is None
    who._namespace = house
    assert (await who.confinement("a", TAPS)).uid == house.plan.vm(0).uid
    assert who.lacks is None


async def test_without_a_place_for_the_book_guests_stay_the_user(
    house: HouseNamespace, tmp_path: Path
) -> None:
    """A user without a home; two houses would not know of each other's ids."""

    def nowhere() -> IdBook:
        raise HostLacks("No home.", capability="guest-ids")

    who = Identities(house, nowhere, am_root=False)
    assert (await who.confinement("a", TAPS)).uid is None
    blocked = IdBook(Path("/proc/ids"), tmp_path)
    who = Identities(house, lambda: blocked, am_root=False)
    assert (await who.confinement("a", TAPS)).uid is None
    assert who.lacks is not None


async def test_a_qemu_that_is_the_users_alone_runs_as_the_user(
    house: HouseNamespace, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    home.chmod(0o700)
    who = identities(house, tmp_path, am_root=False)
    found = await who.confinement("a", TAPS._replace(program=home / "bin" / "qemu"))
    assert (found.uid, found.namespaces) == (None, Namespaces())


async def test_kvm_by_path_without_descriptor(house: HouseNamespace, tmp_path: Path) -> None:
    kvm = tmp_path / "kvm"
    kvm.touch()
    who = identities(house, tmp_path, kvm=kvm, am_root=False)
    needs = TAPS._replace(kvm_by_path=True)
    kept = {}
    for mode in (0o666, 0o660, 0o600):
        kvm.chmod(mode)
        found: Confinement = await who.confinement("a", needs)
        kept[mode] = (found.uid is not None, found.keep_groups)
    of_group = kvm.stat().st_gid in os.getgroups()
    assert kept == {
        0o666: (True, False),
        0o660: (of_group, of_group),
        0o600: (False, False),
    }


@pytest.mark.root
async def test_root_gives_the_group_of_kvm_and_says_when_ids_are_used_up(tmp_path: Path) -> None:
    for table in ("subuid", "subgid"):
        (tmp_path / table).write_text("guesthouse:200000:1000\n")
    who = identities(HouseNamespace(tmp_path), tmp_path, etc=tmp_path)
    found = await who.confinement("a", TAPS._replace(kvm_by_path=True, kvm_group=108))
    assert (found.uid, found.gid, found.groups) == (200999, 200999, (108,))
    assert found.namespaces == Namespaces(empty_network=True)
    with pytest.raises(HostLacks, match="all are taken"):
        await who.confinement("b", TAPS)
