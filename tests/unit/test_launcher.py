"""Dropping privilege: the prefix as data, and what the kernel says of a process behind it."""

from __future__ import annotations

import asyncio
import os
import socket
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from guesthouse.errors import HostLacks, InvalidInput
from guesthouse.host.keeper_client import SerialChannel
from guesthouse.host.launcher import (
    UNCLAIMED_COUNT,
    UNCLAIMED_FIRST,
    Confinement,
    FdTable,
    GuestIdentity,
    Namespaces,
    confine,
    guest_identity,
)
from guesthouse.host.spawn import run

from .keeper_house import House, keeper_house, listener, read_exactly
from .namespace_house import FALLBACKS, identity, namespace_house

CAPS = ["--ambient-caps=-all", "--inh-caps=-all"]
ARGV = ["qemu", "-S"]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with keeper_house(tmp_path) as made:
        yield made


# --- the prefix -------------------------------------------------------------------------------


def test_the_whole_ladder_of_root() -> None:
    confinement = Confinement(
        uid=100001,
        gid=100002,
        limits=(("core", 0), ("nofile", 1024)),
        namespaces=Namespaces(holder=77, empty_network=True),
    )
    assert confine(ARGV, confinement, am_root=True) == [
        "prlimit",
        "--core=0:0",
        "--nofile=1024:1024",
        "--",
        "nsenter",
        "--preserve-credentials",
        "--user",
        "--mount",
        "--target=77",
        "--",
        "unshare",
        "--net",
        "--",
        "setpriv",
        "--reuid=100001",
        "--regid=100002",
        "--clear-groups",
        *CAPS,
        "--bounding-set=-all",
        "--no-new-privs",
        "--",
        "qemu",
        "-S",
    ]


def test_an_ordinary_user_drops_what_it_can() -> None:
    assert confine(ARGV, Confinement(), am_root=False) == [
        "prlimit",
        "--core=0:0",
        "--",
        "setpriv",
        *CAPS,
        "--no-new-privs",
        "--",
        *ARGV,
    ]


def test_a_tool_dies_with_its_parent_a_guest_does_not() -> None:
    """The kernel forgets the wish when the identity changes, so setpriv makes it afterwards."""
    tool = confine(ARGV, Confinement(uid=70000, gid=70000, die_with_parent=True), am_root=True)
    assert tool[tool.index("setpriv") :][-5:-2] == ["--no-new-privs", "--pdeathsig=KILL", "--"]
    assert "--pdeathsig=KILL" not in confine(ARGV, Confinement(), am_root=True)


def test_within_a_house_namespace_the_user_drops_all() -> None:
    inside = Confinement(uid=1001, gid=1001, namespaces=Namespaces(holder=9, empty_network=True))
    assert confine(ARGV, inside, am_root=False) == confine(ARGV, inside, am_root=True)


def test_groups_replace_all_others() -> None:
    argv = confine(ARGV, Confinement(uid=70000, gid=70000, groups=(108, 36)), am_root=True)
    assert "--groups=108,36" in argv
    assert "--clear-groups" not in argv


def test_groups_are_kept_where_their_numbers_cannot_be_said() -> None:
    where = Namespaces(holder=9, mounts=False)
    kept = Confinement(uid=1001, gid=1001, keep_groups=True, namespaces=where)
    argv = confine(ARGV, kept, am_root=False)
    assert "--keep-groups" in argv and "--clear-groups" not in argv
    assert "--user" in argv and "--mount" not in argv


def test_nothing_asked_nothing_done() -> None:
    nothing = Confinement(no_new_privs=False, drop_capabilities=False, limits=())
    assert confine(ARGV, nothing, am_root=True) == ARGV


@pytest.mark.parametrize(
    "wrong",
    [
        Confinement(uid=70000),
        Confinement(gid=70000),
        Confinement(groups=(5,)),
        Confinement(namespaces=Namespaces(empty_network=True)),
    ],
)
def test_what_needs_root_is_refused_without(wrong: Confinement) -> None:
    with pytest.raises(InvalidInput):
        confine(ARGV, wrong, am_root=False)


@pytest.mark.parametrize("limit", [("cores", 0), ("core", -1), ("core=0 --nofile", 1)])
def test_limits_that_do_not_exist(limit: tuple[str, int]) -> None:
    with pytest.raises(InvalidInput, match="limit"):
        confine(ARGV, Confinement(limits=(limit,)), am_root=True)


# --- identities -------------------------------------------------------------------------------

SUBUID = "tester:100000:65536\nroot:200000:10\nguesthouse:300000:2\nguesthouse:400000:3\n"


def test_identities_come_from_our_ranges_in_order() -> None:
    found = [
        guest_identity(am_root=True, index=index, subuid=SUBUID, subgid=SUBUID).uid
        for index in range(5)
    ]
    assert found == [300000, 300001, 400000, 400001, 400002]
    with pytest.raises(HostLacks, match="All 5 ids"):
        guest_identity(am_root=True, index=5, subuid=SUBUID, subgid=SUBUID)


def test_uid_and_gid_may_lie_in_different_ranges() -> None:
    identity = guest_identity(
        am_root=True, index=1, subuid="root:200000:10", subgid="guesthouse:500000:10", kvm_gid=108
    )
    assert identity == GuestIdentity(200001, 500001, (108,))


@pytest.mark.parametrize("table", ["", "# nothing\n", "root:x:y\nguesthouse\n", "other:1:2"])
def test_without_a_range_the_unclaimed_one_is_used(table: str) -> None:
    first = guest_identity(am_root=True, index=0, subuid=table, subgid=table)
    assert first == GuestIdentity(UNCLAIMED_FIRST, UNCLAIMED_FIRST)
    with pytest.raises(HostLacks):
        guest_identity(am_root=True, index=UNCLAIMED_COUNT, subuid=table, subgid=table)


def test_no_identity_among_real_users() -> None:
    low = "guesthouse:1000:65000\n"
    first = guest_identity(am_root=True, index=0, subuid=low, subgid=low)
    assert first.uid == 65536
    wholly_low = "guesthouse:1000:1000\nroot:70000:5\n"
    assert guest_identity(am_root=True, index=0, subuid=wholly_low, subgid=wholly_low).uid == 70000


def test_a_personal_house_keeps_its_user() -> None:
    identity = guest_identity(am_root=False, index=3, subuid=SUBUID, subgid=SUBUID, kvm_gid=108)
    assert identity == GuestIdentity(None, None)


def test_indices_are_not_negative() -> None:
    with pytest.raises(InvalidInput):
        guest_identity(am_root=True, index=-1, subuid=SUBUID, subgid=SUBUID)


# --- descriptors ------------------------------------------------------------------------------


def test_a_table_closes_our_copies_even_after_an_error() -> None:
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    with pytest.raises(RuntimeError), FdTable() as table:
        assert [table.add(fd) for fd in fds] == [3, 4, 5]
        assert table.fds == tuple(fds)
        assert table.targets == (3, 4, 5)
        raise RuntimeError
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


# --- what the kernel says ---------------------------------------------------------------------


def facts(status: str) -> dict[str, str]:
    lines = (line.split(":", 1) for line in status.splitlines())
    return {name: " ".join(value.split()) for name, value in lines}


def status_of(pid: int) -> dict[str, str]:
    return facts(Path(f"/proc/{pid}/status").read_text())


@pytest.mark.root
async def test_root_becomes_nobody_special(house: House) -> None:
    confinement = Confinement(
        uid=UNCLAIMED_FIRST + 5,
        gid=UNCLAIMED_FIRST + 6,
        groups=(70123,),
        limits=(("core", 0), ("nofile", 512)),
        namespaces=Namespaces(empty_network=True),
    )
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with FdTable() as table:
        number = table.add(theirs.detach())
        argv = ["sh", "-c", f"echo up >&{number}; exec sleep 1000"]
        _, spawned = await house.spawn(*confine(argv, confinement, am_root=True), fds=table)
    # It can write, so every step before it is done; the keeper's pid is its own.
    assert await read_exactly(ours, 3) == b"up\n"
    status = status_of(spawned.pid)
    uid, gid = str(UNCLAIMED_FIRST + 5), str(UNCLAIMED_FIRST + 6)
    assert status["Uid"] == " ".join([uid] * 4)
    assert status["Gid"] == " ".join([gid] * 4)
    assert status["Groups"] == "70123"
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    limits = Path(f"/proc/{spawned.pid}/limits").read_text().splitlines()
    assert [line.split()[4:6] for line in limits if "core file" in line] == [["0", "0"]]
    assert [line.split()[3:5] for line in limits if "open files" in line] == [["512", "512"]]
    interfaces = Path(f"/proc/{spawned.pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    own = os.readlink("/proc/self/ns/net")
    assert os.readlink(f"/proc/{spawned.pid}/ns/net") != own
    ours.close()


@pytest.mark.root
async def test_no_setuid_program_gives_anything_back() -> None:
    confinement = Confinement(uid=UNCLAIMED_FIRST, gid=UNCLAIMED_FIRST)
    argv = [
        "sh",
        "-c",
        "cp /bin/id ./x 2>/dev/null; su root -c id; mount -t tmpfs none /mnt; id -u",
    ]
    done = await run(confine(argv, confinement, am_root=True), cwd=Path("/"))
    assert done.text.split() == [str(UNCLAIMED_FIRST)]


@pytest.mark.root
async def test_even_uid_0_keeps_no_capability() -> None:
    done = await run(confine(["cat", "/proc/self/status"], Confinement(), am_root=True))
    status = facts(done.text)
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"


@pytest.mark.rootless
async def test_the_ordinary_ladder_runs_without_rights() -> None:
    prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    argv = confine(["cat", "/proc/self/status"], Confinement(), am_root=False)
    done = await run([*prefix, *argv] if os.geteuid() == 0 else argv)
    status = facts(done.text)
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"


@pytest.mark.root
async def test_a_house_namespace_is_joined_without_a_fork(house: House) -> None:
    holder = await asyncio.create_subprocess_exec(
        *["unshare", "--user", "--mount", "sh", "-c", "echo up; exec sleep 1000"], stdout=PIPE
    )
    try:
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"up\n"
        # As the house maps them: its own user is root inside, the guests are sub-uids.
        for kind in ("uid", "gid"):
            Path(f"/proc/{holder.pid}/{kind}_map").write_text("0 0 1\n1 300000 65536\n")
        confinement = Confinement(
            uid=1001, gid=1001, namespaces=Namespaces(holder=holder.pid, empty_network=True)
        )
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with FdTable() as table:
            number = table.add(theirs.detach())
            argv = ["sh", "-c", f"echo up >&{number}; exec sleep 1000"]
            _, spawned = await house.spawn(*confine(argv, confinement, am_root=True), fds=table)
        assert await read_exactly(ours, 3) == b"up\n", house.errors.read_text()
        status = status_of(spawned.pid)
        assert status["Uid"] == " ".join(["301000"] * 4), "a sub-uid, seen from outside"
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        for kind, same in (("user", True), ("mnt", True), ("net", False)):
            theirs_ns = os.readlink(f"/proc/{holder.pid}/ns/{kind}")
            assert (os.readlink(f"/proc/{spawned.pid}/ns/{kind}") == theirs_ns) is same, kind
        ours.close()
    finally:
        holder.kill()
        await holder.wait()


@pytest.mark.rootless
@pytest.mark.parametrize("number", [0, 7])
async def test_guest_number_n_has_an_id_and_an_empty_network_of_its_own(
    house: House, tmp_path: Path, number: int
) -> None:
    """In the house's namespace as it is made for real, by an ordinary user as by root."""
    am_root = os.geteuid() == 0
    async with namespace_house(tmp_path) as namespace:
        who = namespace.plan.vm(number)
        confinement = Confinement(uid=who.uid, gid=who.gid, namespaces=namespace.launch)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with FdTable() as table:
            target = table.add(theirs.detach())
            argv = ["sh", "-c", f"id -u >&{target}; exec sleep 1000"]
            _, spawned = await house.spawn(*confine(argv, confinement, am_root=am_root), fds=table)
        said = f"{who.uid}\n".encode()
        assert await read_exactly(ours, len(said)) == said, house.errors.read_text()
        ours.close()
        status = status_of(spawned.pid)
        uid, gid = namespace.plan.outside(1000 + number)
        assert status["Uid"] == " ".join([str(uid)] * 4)
        assert status["Gid"] == " ".join([str(gid)] * 4)
        assert uid != os.getuid()
        assert status["Groups"] == ""
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == 0, name
        assert status["NoNewPrivs"] == "1"
        holder = namespace.facts.pid
        where = {kind: identity(kind, spawned.pid) for kind in ("user", "mnt", "net")}
        assert (where["user"] == identity("user", holder)) is True
        assert (where["mnt"] == identity("mnt", holder)) is not am_root
        assert where["net"] not in (identity("net", holder), identity("net"))
        interfaces = Path(f"/proc/{spawned.pid}/net/dev").read_text().splitlines()[2:]
        assert {line.split(":")[0].strip() for line in interfaces} - FALLBACKS == {"lo"}


@pytest.mark.root
@pytest.mark.qemu
async def test_a_real_qemu_behind_the_whole_prefix(house: House) -> None:
    """Unprivileged, without a network, under seccomp, and everything it needs by descriptor."""
    confinement = Confinement(
        uid=UNCLAIMED_FIRST, gid=UNCLAIMED_FIRST, namespaces=Namespaces(empty_network=True)
    )
    with FdTable() as table:
        number = table.add(listener(house.folder / "q").detach())
        argv = ["qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none"]
        argv += ["-chardev", f"socket,id=q,fd={number},server=on,wait=off"]
        argv += ["-mon", "chardev=q,mode=control"]
        argv += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"]
        serial = SerialChannel(socket=house.folder / "q", log=house.folder / "greeting")
        _, spawned = await house.spawn(
            *confine(argv, confinement, am_root=True), fds=table, serial=serial
        )
    # Its greeting, caught as if it were a serial port, says that it is up.
    reader = await house.client.console("guest.1", replay=4096)
    assert b"QMP" in await read_exactly(reader, 10)
    reader.close()
    status = status_of(spawned.pid)
    assert status["Name"].startswith("qemu-system")
    assert status["Uid"] == " ".join([str(UNCLAIMED_FIRST)] * 4)
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
