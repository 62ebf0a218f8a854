"""The house's namespace, made for real: as root with root's rights, as a user with sub-ids."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import struct
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from guesthouse.errors import EngineError, HostLacks, InUse, InvalidInput, ToolFailed, Unavailable
from guesthouse.host.launcher import UNCLAIMED_FIRST, Confinement, FdTable, confine
from guesthouse.host.namespace import holder, probing
from guesthouse.host.namespace.entering import PROGRAM
from guesthouse.host.namespace.holder import Member
from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.host.process import is_alive, start_ticks
from guesthouse.network.house.backend import HouseNetwork

from ..house_network import TestRecords
from .keeper_house import keeper_house, until
from .namespace_house import FALLBACKS, identity, namespace_house, need_ids, need_tun, processes_in

pytestmark = pytest.mark.rootless

AM_ROOT = os.geteuid() == 0
TUNGETIFF = 0x800454D2


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[HouseNamespace]:
    async with namespace_house(tmp_path) as made:
        yield made


async def inside(house: HouseNamespace, *argv: str) -> str:
    return (await house.run(argv)).text.strip()


async def kill_holder(house: HouseNamespace) -> None:
    os.kill(house.facts.pid, signal.SIGKILL)
    await asyncio.wait_for(house.holder_ended(), 60)


# --- making -----------------------------------------------------------------------------------


async def test_it_is_made_ready(house: HouseNamespace) -> None:
    before = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    facts = house.facts
    assert facts.origin == "made"
    assert is_alive(facts.pid, facts.ticks)
    for kind, own in (("net", True), ("mnt", True), ("user", not AM_ROOT), ("pid", False)):
        assert (identity(kind, facts.pid) != identity(kind)) is own, kind
    assert await inside(house, "id", "-u") == "0"
    links = json.loads(await inside(house, "ip", "-j", "link"))
    up = {link["ifname"]: "UP" in link["flags"] for link in links}
    assert {name: value for name, value in up.items() if name not in FALLBACKS} == {"lo": True}
    settings = ["ipv4/ip_forward"]
    if "ipv6" not in facts.lacks:
        settings += ["ipv6/conf/all/forwarding", "ipv6/conf/default/forwarding"]
    for name in settings:
        assert await inside(house, "cat", f"/proc/sys/net/{name}") == "1"
    script = "for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ -e $f ] && cat $f; done; true"
    assert set((await inside(house, "sh", "-c", script)).split()) <= {"0"}
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == before


async def test_its_run_is_its_own_and_its_sys_shows_its_network(house: HouseNamespace) -> None:
    assert await inside(house, "ls", "/run") == "gh-holder"
    await house.run(["touch", "/run/only-here"])
    assert not Path("/run/only-here").exists()
    if "sysfs" not in house.facts.lacks:
        seen = set((await inside(house, "ls", "/sys/class/net")).split())
        assert seen - FALLBACKS == {"lo"}
        groups = await inside(house, "ls", "/sys/fs/cgroup")
        assert groups.split() == sorted(os.listdir("/sys/fs/cgroup")), "groups are still there"


async def test_the_holder_is_tiny_and_belongs_to_nobody(house: HouseNamespace) -> None:
    pid = house.facts.pid
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Name:\tgh-holder\n" in status
    size = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert size < 4096, "KiB"
    assert os.getsid(pid) == pid
    assert {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()} == {"/dev/null"}
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    # Neither a hang-up nor somebody's Ctrl-C ends it.
    for number in (signal.SIGHUP, signal.SIGINT):
        os.kill(pid, number)
    assert is_alive(pid)


async def test_all_ids_of_the_plan_are_there(house: HouseNamespace) -> None:
    plan = house.plan
    assert plan.vm_count > 0
    last = plan.vm_count - 1
    for number in (0, last):
        who = plan.vm(number)
        argv = ["setpriv", f"--reuid={who.uid}", f"--regid={who.gid}", "--clear-groups"]
        assert await inside(house, *argv, "id", "-u") == str(who.uid)
    if not AM_ROOT:
        lines = (await inside(house, "cat", "/proc/self/uid_map")).splitlines()
        assert [tuple(map(int, line.split())) for line in lines] == list(plan.uids)


async def test_ensure_again_changes_nothing(house: HouseNamespace) -> None:
    facts = house.facts
    assert await house.ensure() == facts


async def test_a_line_added_later_waits_for_the_next_namespace(
    house: HouseNamespace, tmp_path: Path
) -> None:
    """What counts for guests is the map that there is, not what the files say by now."""
    etc = tmp_path / "etc"
    etc.mkdir()
    for name in ("subuid", "subgid"):
        (etc / name).write_text(f"{probing.owners()[0]}:1000000:500000\n")
    another = HouseNamespace(tmp_path, etc=etc)
    assert (await another.ensure()).origin == "found"
    assert (another.plan == house.plan) is not AM_ROOT
    await another.close()


async def test_without_ids_there_is_no_namespace_but_for_root(tmp_path: Path) -> None:
    house = HouseNamespace(tmp_path, etc=tmp_path)
    if AM_ROOT:
        await house.ensure()
        assert house.plan.vm(0).uid == UNCLAIMED_FIRST + 999
        await house.dissolve()
        return
    with pytest.raises(HostLacks) as caught:
        await house.ensure()
    assert caught.value.detail["capability"] == "subids"
    assert not (tmp_path / "namespace.json").exists()


# --- the daemon's death, and others -------------------------------------------------------------


async def test_it_survives_whoever_made_it(tmp_path: Path) -> None:
    need_ids()
    code = """
import asyncio, os, sys
from pathlib import Path
from guesthouse.host.namespace.house import HouseNamespace
async def main():
    house = HouseNamespace(Path(sys.argv[1]))
    facts = await house.ensure()
    print(facts.pid, facts.ticks, facts.net, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""
    daemon = await asyncio.create_subprocess_exec(
        *[sys.executable, "-c", code, str(tmp_path)], stdout=PIPE
    )
    house = HouseNamespace(tmp_path)
    try:
        assert daemon.stdout is not None
        pid, ticks, net = map(int, (await daemon.stdout.readline()).split())
        porters = [other for other in processes_in(net) if other != pid]
        assert len(porters) == 1
        daemon.kill()
        await daemon.wait()
        facts = await house.ensure()
        assert (facts.pid, facts.ticks, facts.net, facts.origin) == (pid, ticks, net, "found")
        await until(lambda: not is_alive(porters[0]))
        assert "lo" in await inside(house, "ip", "link")
    finally:
        if daemon.returncode is None:
            daemon.kill()
            await daemon.wait()
        await house.dissolve()
    assert not is_alive(pid, ticks)
    await until(lambda: not processes_in(net))


async def test_who_leaves_last_ends_the_holder(tmp_path: Path) -> None:
    """A daemon whose guests all have networks of their own never opens the house's network."""
    need_ids()
    house = HouseNamespace(tmp_path)
    network = HouseNetwork(house, TestRecords(), tmp_path)
    facts = await house.ensure()
    who = house.plan.vm(0)
    argv = ["setpriv", f"--reuid={who.uid}", f"--regid={who.gid}", "--clear-groups", "sleep", "99"]
    guest = await asyncio.create_subprocess_exec(*house.service(argv))
    try:
        await until(lambda: Path(f"/proc/{guest.pid}/comm").read_text() == "sleep\n")
        await network.close()
        assert is_alive(facts.pid, facts.ticks), "the guest lives"
        assert (await house.ensure()).origin == "found"
    finally:
        guest.kill()
        await guest.wait()
    await network.close()
    # Of root's house the kernel does not tell: a guest may have a tap, and the database be lost.
    assert is_alive(facts.pid, facts.ticks) is AM_ROOT
    await house.leave(only_ours=False)
    assert not is_alive(facts.pid, facts.ticks)
    assert await house.leave(), "nobody is there"


async def test_two_at_once_get_the_same(tmp_path: Path) -> None:
    need_ids()
    houses = [HouseNamespace(tmp_path) for _ in range(4)]
    try:
        facts = await asyncio.gather(*(house.ensure() for house in houses))
        assert len({(found.pid, found.net) for found in facts}) == 1
        assert sorted(found.origin for found in facts).count("made") == 1
    finally:
        await asyncio.gather(*(house.close() for house in houses))
        await houses[0].dissolve()


async def test_an_unfinished_holder_ends_with_its_starter(tmp_path: Path) -> None:
    fake = tmp_path / "newuidmap"
    fake.write_text("#!/bin/sh\nexec sleep 1000\n")
    fake.chmod(0o755)
    wanted = {"record": str(tmp_path / "record"), "uids": [[0, os.getuid(), 1]]}
    starter = await asyncio.create_subprocess_exec(
        *[sys.executable, "-I", "-S", str(PROGRAM), "start"],
        stdin=PIPE,
        stdout=PIPE,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        start_new_session=True,
    )
    assert starter.stdin is not None
    starter.stdin.write(json.dumps(wanted).encode())
    starter.stdin.close()
    children = Path(f"/proc/{starter.pid}/task/{starter.pid}/children")
    try:
        await until(lambda: len(children.read_text().split()) == 2)
        pids = [int(pid) for pid in children.read_text().split()]
        starter.kill()
        await starter.wait()
        await until(lambda: sum(is_alive(pid) for pid in pids) <= 1)
    finally:
        os.killpg(starter.pid, signal.SIGKILL)
    assert not (tmp_path / "record").exists()


@pytest.mark.parametrize(
    "change",
    [{"boot": "another"}, {"format": 99}, {"ticks": 1}, {"pid": 1}, {"net": 1}, {"surplus": 1}],
    ids=str,
)
async def test_a_record_that_names_another_is_not_believed(
    tmp_path: Path, change: dict[str, object]
) -> None:
    async with namespace_house(tmp_path) as house:
        file = tmp_path / "namespace.json"
        true = file.read_text()
        file.write_text(json.dumps({**json.loads(true), **change}))
        assert await holder.living(file) is None
        file.write_text("{")
        assert await holder.living(file) is None
        file.write_text(true)
        found = await holder.living(file)
        assert found is not None
        assert found.pid == house.facts.pid


async def test_before_ensure_and_after_close_nothing_is_done(tmp_path: Path) -> None:
    house = HouseNamespace(tmp_path)
    with pytest.raises(Unavailable):
        await house.run(["true"])
    with pytest.raises(Unavailable):
        _ = house.launch
    await house.close()


# --- the holder's death -------------------------------------------------------------------------


async def test_a_dead_holder_is_replaced_through_our_own_descriptors(house: HouseNamespace) -> None:
    before = house.facts
    await house.run(["ip", "link", "add", "br0", "type", "bridge"])
    await house.run(["touch", "/run/kept"])
    await kill_holder(house)
    assert await inside(house, "ip", "-o", "link", "show", "br0"), "it works meanwhile"
    after = await house.ensure()
    assert after.origin == "regained"
    assert after.net == before.net
    assert after.pid != before.pid
    assert await inside(house, "ip", "-o", "link", "show", "br0")
    assert await inside(house, "ls", "/run/kept")
    assert await inside(house, "id", "-u") == "0"


async def test_a_record_that_was_removed_is_written_again(
    house: HouseNamespace, tmp_path: Path
) -> None:
    """Somebody cleans up /tmp; the daemon lives and knows better than to make all anew."""
    before, file = house.facts, tmp_path / "namespace.json"
    file.unlink()
    assert await house.ensure() == before
    assert json.loads(file.read_text())["pid"] == before.pid
    file.unlink()
    await kill_holder(house)
    after = await house.ensure()
    assert (after.origin, after.net) == ("regained", before.net)


async def test_a_dead_holder_is_replaced_through_a_service(house: HouseNamespace) -> None:
    net = house.facts.net
    await house.run(["ip", "link", "add", "br0", "type", "bridge"])
    service = await asyncio.create_subprocess_exec(*house.service(["sleep", "1000"]))
    try:
        await until(lambda: service.pid in processes_in(net))
        await kill_holder(house)
        await house.close()
        # What is no member leads nowhere, and does no harm.
        members = [
            Member(os.getpid(), 1),
            Member(1, 1),
            Member(service.pid, start_ticks(service.pid)),
        ]
        facts = await house.ensure(members)
        assert (facts.origin, facts.net) == ("regained", net)
        assert await inside(house, "ip", "-o", "link", "show", "br0")
        assert await inside(house, "ls", "/run/gh-holder"), "the mounts are the same too"
    finally:
        service.kill()
        await service.wait()


async def test_a_dead_holder_is_replaced_through_a_guest_with_a_tap(tmp_path: Path) -> None:
    """Nobody is left in the network namespace; the guest's is empty, its tap leads there."""
    need_tun()
    async with running_guest(tmp_path) as (house, pid):
        net = house.facts.net
        await house.run(["ip", "link", "add", "br0", "type", "bridge"])
        await house.run(["ip", "link", "set", "t0-0", "master", "br0", "up"])
        await kill_holder(house)
        await house.close()
        await until(lambda: not processes_in(net))
        facts = await house.ensure([Member(pid, start_ticks(pid))])
        assert (facts.origin, facts.net) == ("regained", net)
        assert "master br0" in await inside(house, "ip", "-o", "link", "show", "t0-0")
        assert await inside(house, "id", "-u") == "0"
        assert (await inside(house, "ls", "/run")) == "gh-holder"


async def test_without_any_way_back_all_is_new(house: HouseNamespace) -> None:
    before = house.facts
    await house.run(["ip", "link", "add", "br0", "type", "bridge"])
    await kill_holder(house)
    await house.close()
    after = await house.ensure()
    assert after.origin == "made"
    assert "br0" not in await inside(house, "ip", "link")
    assert after.pid != before.pid


# --- running ------------------------------------------------------------------------------------


async def test_a_program_gets_its_input_and_fails_under_its_own_name(house: HouseNamespace) -> None:
    assert (await house.run(["cat"], input=b"hello")).text == "hello"
    table = b"table inet guesthouse {\n}\n"
    await house.run(["nft", "-f", "-"], input=table)
    assert "table inet guesthouse" in await inside(house, "nft", "list", "ruleset")
    with pytest.raises(ToolFailed, match=r"^nft failed") as caught:
        await house.run(["nft", "-f", "-"], input=b"nonsense\n")
    assert caught.value.detail["argv"] == ["nft", "-f", "-"]
    assert (await house.run(["false"], check=False)).code == 1
    with pytest.raises(HostLacks, match="no-such-tool is not installed"):
        await house.run(["no-such-tool"])


async def test_settings_are_written_inside_alone(house: HouseNamespace) -> None:
    await house.settings({"ipv4/conf/all/rp_filter": "2", "ipv4/tcp_mtu_probing": "2"})
    assert await inside(house, "cat", "/proc/sys/net/ipv4/tcp_mtu_probing") == "2"
    for wrong in ("../kernel/hostname", "/proc/sys/net/ipv4/ip_forward"):
        with pytest.raises(InvalidInput):
            await house.settings({wrong: "1"})
    with pytest.raises(EngineError, match="refused"):
        await house.settings({"ipv4/no_such": "1"})


async def test_a_porter_that_was_killed_is_followed_by_another(house: HouseNamespace) -> None:
    porters = [pid for pid in processes_in(house.facts.net) if pid != house.facts.pid]
    assert len(porters) == 1
    os.kill(porters[0], signal.SIGKILL)
    await house.settings({"ipv4/tcp_mtu_probing": "1"})
    assert await inside(house, "cat", "/proc/sys/net/ipv4/tcp_mtu_probing") == "1"
    await asyncio.gather(*(house.settings({"ipv4/tcp_mtu_probing": "1"}) for _ in range(20)))


async def test_a_cancelled_request_leaves_its_answer_to_nobody(house: HouseNamespace) -> None:
    for _ in range(10):
        request = asyncio.create_task(house.settings({"ipv4/no_such": "1"}))
        await asyncio.sleep(0)
        request.cancel()
        await house.settings({"ipv4/tcp_mtu_probing": "1"})
        with pytest.raises(asyncio.CancelledError):
            await request


# --- taps ---------------------------------------------------------------------------------------


async def test_a_tap_stays_when_it_is_closed(house: HouseNamespace) -> None:
    need_tun()
    tap = await house.tap("t1-0")
    name, flags = struct.unpack("16sH22x", fcntl.ioctl(tap, TUNGETIFF, bytes(40)))
    assert name.rstrip(b"\0") == b"t1-0"
    assert flags & 0xFFFF & ~0x0800 == 0x0002 | 0x1000 | 0x4000, (
        "TAP, NO_PI, VNET_HDR (and PERSIST)"
    )
    assert not os.get_inheritable(tap)
    with pytest.raises(InUse):
        await house.tap("t1-0")
    facts = json.loads(await inside(house, "ip", "-j", "-d", "link", "show", "t1-0"))[0]
    address = facts["address"]
    details = facts["linkinfo"]["info_data"]
    assert details["persist"] is True
    assert details["user"] in (0, "0", "root"), "nobody else may attach to it"
    assert not Path("/sys/class/net/t1-0").exists(), "the host does not see it"
    os.close(tap)
    facts = json.loads(await inside(house, "ip", "-j", "link", "show", "t1-0"))[0]
    assert facts["address"] == address
    os.close(await house.tap("t1-0"))
    await house.drop_tap("t1-0")
    await house.drop_tap("t1-0")
    assert "t1-0" not in await inside(house, "ip", "link")


async def test_frames_go_from_tap_to_tap(house: HouseNamespace) -> None:
    need_tun()
    taps = [await house.tap(name) for name in ("t1-0", "t2-0")]
    await house.run(["ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0"])
    for name in ("t1-0", "t2-0"):
        await house.run(["ip", "link", "set", name, "master", "br0", "up"])
    await house.run(["ip", "link", "set", "br0", "up"])
    frame = b"\xff" * 6 + bytes.fromhex("5254000000aa") + b"\x88\xb5" + b"from one to the other"
    header = bytes(10)  # struct virtio_net_hdr
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    os.set_blocking(taps[1], False)

    def look() -> None:
        if frame in os.read(taps[1], 65536):
            arrived.set()

    loop.add_reader(taps[1], look)
    async with asyncio.timeout(60):
        while not arrived.is_set():
            os.write(taps[0], header + frame)
            await asyncio.sleep(0.05)
    loop.remove_reader(taps[1])
    for tap in taps:
        os.close(tap)


async def test_names_that_no_tap_can_have(house: HouseNamespace) -> None:
    for wrong in ("", "a" * 16, "a b", "a/b", "t%d", ".."):
        with pytest.raises(InvalidInput):
            await house.tap(wrong)
    if AM_ROOT or os.access("/dev/net/tun", os.R_OK | os.W_OK):
        await house.run(["ip", "link", "add", "br0", "type", "bridge"])
        with pytest.raises(InUse, match="another kind"):
            await house.tap("br0")


async def test_a_closed_tun_is_told_with_its_cure(house: HouseNamespace) -> None:
    if os.access("/dev/net/tun", os.R_OK | os.W_OK):
        # Out of sight, in the mount namespace of the house alone.
        await house.run(["mount", "--bind", "/dev/null", "/dev/net/tun"])
        with pytest.raises(EngineError):
            await house.tap("t1-0")
        return
    with pytest.raises(HostLacks, match="/dev/net/tun") as caught:
        await house.tap("t1-0")
    assert caught.value.hint == "sudo chmod 0666 /dev/net/tun (the usual mode)"
    assert caught.value.detail["capability"] == "tun"


@asynccontextmanager
async def running_guest(folder: Path) -> AsyncIterator[tuple[HouseNamespace, int]]:
    """A process launched as the guest with number 0, with the tap t0-0, by a keeper."""
    async with namespace_house(folder) as house, keeper_house(folder) as keeper:
        who = house.plan.vm(0)
        confinement = Confinement(uid=who.uid, gid=who.gid, namespaces=house.launch)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with FdTable() as table:
            table.add(await house.tap("t0-0"))
            number = table.add(theirs.detach())
            argv = confine(
                ["sh", "-c", f"echo up >&{number}; exec sleep 1000"], confinement, am_root=AM_ROOT
            )
            _, spawned = await keeper.spawn(*argv, fds=table)
        async with asyncio.timeout(60):
            said = await asyncio.get_running_loop().sock_recv(ours, 3)
        assert said == b"up\n", keeper.errors.read_text()
        ours.close()
        yield house, spawned.pid
