"""The house's network, for real: as root and as an ordinary user, with small guests."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from guesthouse.errors import Forbidden, InvalidInput, NotFound, PortTaken
from guesthouse.host.process import is_alive
from guesthouse.model.device import Protocol, Publish
from guesthouse.model.firewall import Action, Firewall, Policy, Rule
from guesthouse.network.ports import reserve, unprivileged_port_start

from ..house_network import (
    ISOLATED,
    TestGuest,
    TestHouse,
    host_address,
    host_echo,
    network,
    test_house,
)
from .keeper_house import until
from .namespace_house import FALLBACKS, need_ids, need_tun, processes_in

pytestmark = pytest.mark.rootless

AM_ROOT = os.geteuid() == 0
GATEWAY, GATEWAY6 = "10.201.1.1", "fd42:201:1::1"


@pytest.fixture(autouse=True)
def _needs() -> None:
    need_ids()
    need_tun()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[TestHouse]:
    async with test_house(tmp_path) as made:
        yield made


async def nobody(*_line: str) -> str:
    raise AssertionError("the house's network needs no monitor")


async def free_port(kind: Protocol = Protocol.TCP, ip: str = "127.0.0.1") -> int:
    port = Publish(host_ip=ip, host_port=0, guest_port=1, protocol=kind)
    return (await reserve(port, {}, privileged=False)).host_port


def answers(ip: str, port: int, kind: int = socket.SOCK_STREAM) -> bool:
    """Whether an echo answers at a port of the host."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, kind) as end:
        end.settimeout(10)
        try:
            end.connect((ip, port))
            end.sendall(b"hello")
            return end.recv(100) == b"hello"
        except OSError:
            return False


async def interfaces(house: TestHouse) -> set[str]:
    listed = json.loads((await house.namespace.run(["ip", "-j", "link"])).out)
    return {link["ifname"] for link in listed} - FALLBACKS - {"lo"}


def services(house: TestHouse) -> dict[str, int]:
    found = house.network._services
    return {name: service.pid for name in found.names if (service := found.of(name))}


# --- names and addresses ----------------------------------------------------------------------


async def test_two_guests_reach_one_another_by_name(house: TestHouse) -> None:
    web, db = await house.boot("web"), await house.boot("db")
    assert await web.ping(db.address)
    assert await web.ping(db.address6)
    for name in ("db", "db.lan.test"):
        assert await web.ask(GATEWAY, name) == f"0 {db.address}"
        assert await web.ask(GATEWAY, name, 6) == f"0 {db.address6}"
    assert await web.ask(GATEWAY6, "web") == f"0 {web.address}"
    assert (await web.ask(GATEWAY, "nobody.lan.test")).startswith("3 ")


async def test_a_card_gets_its_address_by_dhcp(house: TestHouse, tmp_path: Path) -> None:
    await house.boot("db")
    web = await house.boot("web", configure=False)
    script = tmp_path / "got"
    script.write_text('#!/bin/sh\necho "$1 $ip $router $dns $domain $mtu $lease $subnet"\n')
    script.chmod(0o755)
    options = [f"-O{name}" for name in ("router", "dns", "domain", "mtu", "lease")]
    argv = ["busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-s", str(script), *options]
    said = (await web.run(*argv)).text.splitlines()
    wanted = f"bound {web.address} {GATEWAY} {GATEWAY} lan.test 1500 3600 255.255.255.0"
    assert wanted in said


async def test_routers_are_advertised_but_addresses_are_not_made_up(house: TestHouse) -> None:
    web = await house.boot("web", configure=False)

    async def routes() -> list[str]:
        listed = json.loads((await web.run("ip", "-6", "-j", "route", "show", "default")).out)
        return [route["gateway"] for route in listed]

    for _ in range(100):
        if await routes():
            break
        await asyncio.sleep(0.2)
    assert await routes() == ["fe80::1"]
    listed = json.loads((await web.run("ip", "-6", "-j", "address", "show", "dev", "eth0")).out)
    assert {a["scope"] for a in listed[0]["addr_info"]} == {"link"}


SOLICIT = """
import socket, struct, sys, time
mac = bytes.fromhex(sys.argv[1].replace(":", ""))
def option(code, data):
    return struct.pack("!HH", code, len(data)) + data
wanted = option(1, b"\\0\\3\\0\\1" + mac) + option(3, struct.pack("!III", 7, 0, 0))
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
    sock.settimeout(1)
    sock.bind(("::", 546))
    for _ in range(20):
        try:
            sock.sendto(b"\\1abc" + wanted, ("ff02::1:2%eth0", 547))
            data = sock.recv(4096)
            break
        except OSError:
            time.sleep(0.3)  # at first there is no address to send from
at, found = 4, {}
while at < len(data):
    code, size = struct.unpack("!HH", data[at:at + 4])
    found[code] = data[at + 4:at + 4 + size]
    at += 4 + size
print(data[0], socket.inet_ntop(socket.AF_INET6, found[3][16:32]), found[2].hex())
"""
"""Asks for an IPv6 address (RFC 8415): prints what is offered, and who the server says it is."""


async def test_a_card_is_offered_its_ipv6_address(house: TestHouse) -> None:
    web = await house.boot("web", configure=False)
    said = (await web.run("python3", "-c", SOLICIT, web.nic.mac)).text.split()
    assert said[:2] == ["2", web.address6]
    # To another server one would not turn for a renewal.
    os.kill(services(house)[f"names-{house.records.own[0].bridge}"], signal.SIGKILL)
    assert (await web.run("python3", "-c", SOLICIT, web.nic.mac)).text.split() == said


async def test_names_of_another_network_are_not_told(tmp_path: Path) -> None:
    async with test_house(tmp_path, network(1, "lan"), network(2, "dmz")) as house:
        web, app = await house.boot("web", "lan"), await house.boot("app", "dmz")
        assert (await web.ask(GATEWAY, "app.dmz.test")).split()[1] == "-"
        assert await app.ask("10.201.2.1", "app") == f"0 {app.address}"
        assert not await web.ping(app.address, wait=1)


# --- inside and outside -----------------------------------------------------------------------


async def test_the_host_is_reached_only_as_allowed(house: TestHouse) -> None:
    address = host_address()
    web = await house.boot("web")
    port = await free_port(ip="0.0.0.0")
    async with host_echo("0.0.0.0", port):
        assert await web.say(address, port, wait=1) == ""
        assert await web.say("10.0.2.2", port, wait=1) == ""
        house.records.own[0] = network(host_access=True)
        await house.network.refresh()
        assert await web.say(address, port) == "hello"
        assert await web.say("10.0.2.2", port, wait=1) == "", "loopback of the host stays shut"


async def test_an_isolated_network_has_no_way_out(tmp_path: Path) -> None:
    async with test_house(tmp_path, network(kind=ISOLATED, host_access=True)) as house:
        web, db = await house.boot("web"), await house.boot("db")
        assert await web.ping(db.address)
        assert await web.ask(GATEWAY, "db") == f"0 {db.address}"
        assert "tap0" not in await interfaces(house)
        port = await free_port()
        with pytest.raises(InvalidInput, match="isolated"):
            asked = Publish(host_port=port, guest_port=80)
            await house.network.publish(web.id, 0, asked, nobody)


async def test_rules_hold_between_guests_and_follow_a_change(house: TestHouse) -> None:
    closed = Firewall(policy=Policy(incoming=Action.DROP))
    house.records.firewalls["db"] = closed
    web, db = await house.boot("web"), await house.boot("db")
    assert not await web.ping(db.address, wait=1)
    assert await db.ping(web.address)
    opened = Firewall(rules=(Rule(name="all", sources=(web.address,)),), policy=closed.policy)
    await house.network.update(type(db.seat)(**{**_fields(db), "firewall": opened}))
    assert await web.ping(db.address)
    counts = await house.network.counters()
    assert counts[f"guest/{db.id}/all"].packets > 0


def _fields(guest: TestGuest) -> dict[str, object]:
    return {name: getattr(guest.seat, name) for name in guest.seat.__struct_fields__}


async def test_rules_that_were_lost_are_loaded_again(house: TestHouse) -> None:
    await house.boot("web")
    await house.namespace.run(["nft", "flush", "ruleset"])
    db = await house.boot("db")  # and the next difference finds what it expects
    assert db.address in (await house.namespace.run(["nft", "list", "ruleset"])).text
    await house.namespace.run(["nft", "flush", "ruleset"])
    last = await house.boot("last")  # or all is loaded, if it does not
    listed = (await house.namespace.run(["nft", "list", "ruleset"])).text
    assert db.address in listed and last.address in listed


# --- published ports --------------------------------------------------------------------------


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("kind", list(Protocol))
async def test_a_port_is_published_live(house: TestHouse, ip: str, kind: Protocol) -> None:
    web = await house.boot("web")
    await web.echo(80, kind=kind.value)
    sort = socket.SOCK_STREAM if kind is Protocol.TCP else socket.SOCK_DGRAM
    port = Publish(host_ip=ip, host_port=await free_port(kind, ip), guest_port=80, protocol=kind)
    assert not await asyncio.to_thread(answers, ip, port.host_port, sort)
    await house.network.publish(web.id, 0, port, nobody)
    assert await asyncio.to_thread(answers, ip, port.host_port, sort)
    await house.daemon_dies()
    await house.another_daemon_with(web, port)
    assert await asyncio.to_thread(answers, ip, port.host_port, sort), "found again"
    await house.network.unpublish(web.id, 0, port, nobody)
    assert not await asyncio.to_thread(answers, ip, port.host_port, sort)


async def test_ports_rest_with_their_guest(house: TestHouse) -> None:
    number = await free_port()
    port = Publish(host_port=number, guest_port=80)
    web = await house.boot("web", "", port)
    await web.echo(80)
    assert await asyncio.to_thread(answers, "127.0.0.1", number)
    await house.network.rest(web.id, 0)
    with socket.create_server(("127.0.0.1", number)):
        with pytest.raises(PortTaken, match="process python"):
            await web.attach(port)
    await web.attach(port)
    assert await asyncio.to_thread(answers, "127.0.0.1", number)


async def test_two_ports_of_one_number_on_two_addresses(house: TestHouse) -> None:
    web, db = await house.boot("web"), await house.boot("db")
    await web.echo(80)
    number = await free_port(ip="0.0.0.0")
    for guest, ip in ((db, "127.0.0.1"), (web, "127.0.0.2")):
        await house.network.publish(
            guest.id, 0, Publish(host_ip=ip, host_port=number, guest_port=80), nobody
        )
    assert await asyncio.to_thread(answers, "127.0.0.2", number)
    assert not await asyncio.to_thread(answers, "127.0.0.1", number), "db listens on nothing"


async def test_who_has_a_port_is_said(house: TestHouse) -> None:
    web, db = await house.boot("web"), await house.boot("db")
    port = Publish(host_port=await free_port(), guest_port=80)
    await house.network.publish(web.id, 0, port, nobody)
    with pytest.raises(PortTaken, match="guest web"):
        await house.network.publish(db.id, 0, port, nobody)
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = Publish(host_port=server.getsockname()[1], guest_port=80)
        with pytest.raises(PortTaken, match="process python"):
            await house.network.publish(db.id, 0, taken, nobody)
    with pytest.raises(NotFound):
        await house.network.publish(db.id, 1, port, nobody)
    if not AM_ROOT and unprivileged_port_start() > 81:
        with pytest.raises(Forbidden, match="privileged"):
            await house.network.publish(db.id, 0, Publish(host_port=81, guest_port=80), nobody)


# --- what lives on, and what is left -------------------------------------------------------------


class Talk:
    """A connection from one guest to another, by which one can be asked again and again."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def begin(cls, one: TestGuest, other: TestGuest) -> Talk:
        await other.echo(7777)
        program = (
            "import socket, sys\n"
            "end = socket.create_connection((sys.argv[1], 7777), 10)\n"
            "end.settimeout(60)\n"
            "for line in sys.stdin:\n"
            "    end.sendall(line.encode()); print(end.recv(100).decode(), end='', flush=True)\n"
        )
        process = await asyncio.create_subprocess_exec(
            *one.space.service(["python3", "-u", "-c", program, other.address]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        one._servers.append(process)
        return cls(process)

    async def says(self, text: str) -> bool:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{text}\n".encode())
        line = await asyncio.wait_for(self._process.stdout.readline(), 60)
        return line == f"{text}\n".encode()


async def test_everything_is_whole_again_whoever_is_killed(house: TestHouse) -> None:
    port = Publish(host_port=await free_port(), guest_port=7777)
    six = Publish(host_ip="::1", host_port=await free_port(ip="::1"), guest_port=7777)
    web, db = await house.boot("web"), await house.boot("db", "", port, six)
    talk = await Talk.begin(web, db)
    assert await talk.says("before")
    before = services(house)
    kinds = {name.partition("-")[0] for name in before}
    assert kinds == {"names", "uplink", "relay"} and len(before) == 4
    for name in before:
        pid = services(house)[name]
        os.kill(pid, signal.SIGKILL)
        await until(lambda name=name, pid=pid: services(house).get(name, pid) != pid)
        await until(lambda: set(services(house)) == set(before))
        assert await talk.says(f"after {name}")
    holder = house.namespace.facts.pid
    os.kill(holder, signal.SIGKILL)
    await until(lambda: house.namespace.facts.pid != holder)
    assert house.namespace.facts.origin == "regained"
    assert await talk.says("after the holder")
    # slirp4netns notices within a second that its holder is gone.
    await until(lambda: services(house).get("uplink") not in (None, before["uplink"]))
    await until(lambda: set(services(house)) == set(before))

    async def whole() -> bool:
        return await asyncio.to_thread(answers, "127.0.0.1", port.host_port) and (
            await asyncio.to_thread(answers, "::1", six.host_port)
        )

    for _ in range(100):
        if await whole():
            break
        await asyncio.sleep(0.1)
    assert await whole()
    assert await web.ask(GATEWAY, "db") == f"0 {db.address}"


async def test_a_new_daemon_finds_all_and_touches_nothing(house: TestHouse) -> None:
    port = Publish(host_port=await free_port(), guest_port=7777)
    web, db = await house.boot("web"), await house.boot("db", "", port)
    talk = await Talk.begin(web, db)
    assert await talk.says("before")
    listing = ["nft", "-a", "-n", "list", "chains"]
    handles = ["nft", "-a", "list", "table", "inet"]
    tables = (await house.namespace.run(["nft", "list", "tables"])).text
    name = next(line.split()[2] for line in tables.splitlines() if " inet " in line)
    before = (
        services(house),
        await interfaces(house),
        (await house.namespace.run(listing)).text,
        _handles((await house.namespace.run([*handles, name])).text),
    )
    await house.daemon_dies()
    assert await talk.says("while no daemon runs")
    await house.another_daemon()
    after = (
        services(house),
        await interfaces(house),
        (await house.namespace.run(listing)).text,
        _handles((await house.namespace.run([*handles, name])).text),
    )
    assert after == before
    assert await talk.says("after")
    assert await asyncio.to_thread(answers, "127.0.0.1", port.host_port)


def _handles(text: str) -> list[str]:
    """A rule that is loaded again has a new one."""
    return [word for line in text.splitlines() if "# handle" in line for word in [line.split()[-1]]]


async def test_what_died_while_no_daemon_ran_is_whole_with_the_next(house: TestHouse) -> None:
    port = Publish(host_port=await free_port(), guest_port=7777)
    six = Publish(host_ip="::1", host_port=await free_port(ip="::1"), guest_port=7777)
    web, db = await house.boot("web"), await house.boot("db", "", port, six)
    talk = await Talk.begin(web, db)
    before, holder = services(house), house.namespace.facts
    await house.daemon_dies()
    os.kill(before["uplink"], signal.SIGKILL)
    os.kill(holder.pid, signal.SIGKILL)
    await until(lambda: not is_alive(before["uplink"]) and not is_alive(holder.pid))
    assert await talk.says("while nobody is there")
    await house.another_daemon()
    assert (house.namespace.facts.origin, house.namespace.facts.net) == ("regained", holder.net)
    assert await talk.says("after")
    assert await asyncio.to_thread(answers, "127.0.0.1", port.host_port)
    assert await asyncio.to_thread(answers, "::1", six.host_port)
    assert await web.ask(GATEWAY, "db") == f"0 {db.address}"


async def test_a_house_that_is_gone_is_built_anew(house: TestHouse) -> None:
    """After a crash of everything, or when somebody removed the runtime folder."""
    web = await house.boot("web")
    before = services(house)
    await house.daemon_dies()
    for pid in (*before.values(), house.namespace_pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    web.crash()
    await until(lambda: not processes_in(house.net))
    await house.another_daemon()
    assert house.namespace.facts.origin == "made"
    await web.end()
    assert await (await house.boot("db")).ping(GATEWAY)


async def test_many_at_once(house: TestHouse) -> None:
    guests = [house.guest(f"g{number}") for number in range(8)]
    for number, guest in enumerate(guests, 1):
        guest.nic = msgspec.structs.replace(guest.nic, mac=f"52:67:68:00:01:{number:02x}")
    await asyncio.gather(*(guest.attach() for guest in guests))
    bridge = house.records.own[0].bridge
    assert await interfaces(house) == {*(guest.seat.tap for guest in guests), bridge, "tap0"}
    await asyncio.gather(*(house.network.detach(guest.id, 0) for guest in guests))
    assert await interfaces(house) == set()


async def test_a_cancelled_attach_is_no_obstacle_to_the_next(house: TestHouse) -> None:
    """Wherever it is stopped: with half of the links, rules or services there."""
    guest = house.guest("web")
    for milliseconds in (0, 1, 2, 4, 7, 10, 13, 16, 20, 25, 30, 40):
        task = asyncio.create_task(guest.attach())
        await asyncio.sleep(milliseconds / 1000)
        task.cancel()
        done = await asyncio.gather(task, return_exceptions=True)
        assert not isinstance(done[0], Exception)
    await guest.boot(house.folder / "web")
    assert await guest.ping(GATEWAY)
    assert await guest.ask(GATEWAY, "web") == f"0 {guest.address}"
    wanted = {guest.seat.tap, house.records.own[0].bridge, "tap0"}
    assert await interfaces(house) == wanted
    await house.network.detach(guest.id, 0)
    assert await interfaces(house) == set()
    here = processes_in(house.namespace.facts.net)
    assert sorted(map(name_of, here)) == ["gh-holder", "gh-porter"]


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


async def test_services_that_nobody_wrote_down_are_replaced(house: TestHouse) -> None:
    web, db = await house.boot("web"), await house.boot("db")
    before = services(house)
    await house.daemon_dies()
    (house.folder / "network-services.json").unlink()
    await house.another_daemon()
    after = services(house)
    assert set(after) == set(before)
    assert not any(is_alive(pid) for name, pid in before.items() if name.startswith("names"))
    assert await web.ask(GATEWAY, "db") == f"0 {db.address}"


async def test_a_guest_that_crashed_keeps_its_connections(house: TestHouse) -> None:
    web, db = await house.boot("web"), await house.boot("db")
    talk = await Talk.begin(web, db)
    assert await talk.says("before")
    inner = db._fds[0]
    db.crash()
    await house.network.rest(db.id, 0)
    attached = await db.attach()
    assert attached.fd is not None
    db.carry(inner, os.dup(attached.fd))
    assert await talk.says("after")


async def test_nothing_is_left_of_what_went(house: TestHouse) -> None:
    web, db = await house.boot("web"), await house.boot("db")
    assert await interfaces(house) == {
        web.seat.tap,
        db.seat.tap,
        house.records.own[0].bridge,
        "tap0",
    }
    await house.network.detach(web.id, 0)
    assert await interfaces(house) == {db.seat.tap, house.records.own[0].bridge, "tap0"}
    assert (await db.ask(GATEWAY, "web")).split()[1] == "-"
    await house.network.detach(db.id, 0)
    await house.network.detach(db.id, 0)
    assert await interfaces(house) == set()
    assert not services(house)
    await web.end()
    await db.end()
    net = house.namespace.facts.net
    await house.network.close()
    assert not processes_in(net)
    files = {file.name for file in house.folder.iterdir() if not file.is_dir()}
    assert files == {"namespace.json.lock"}
    await house.network.open()
    assert await (await house.boot("again")).ping(GATEWAY)


async def test_a_house_whose_guests_rest_goes_with_its_daemon(house: TestHouse) -> None:
    web, db = await house.boot("web"), await house.boot("db")
    net = house.namespace.facts.net
    await house.network.rest(web.id, 0)
    await house.daemon_dies()
    await house.another_daemon()
    await house.network.rest(web.id, 0)
    await house.network.close()
    assert processes_in(net), "db runs"
    await house.another_daemon()
    for guest in (web, db):
        await guest.end()
        await house.network.rest(guest.id, 0)
    await house.network.close()
    assert not processes_in(net)


async def test_the_namespace_stays_while_guests_without_a_card_live(house: TestHouse) -> None:
    web = await house.boot("web")
    facts = house.namespace.facts
    argv = house.namespace.service(["sleep", "1000"])
    process = await asyncio.create_subprocess_exec(*argv)
    try:
        await until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
        await web.end()
        await house.network.rest(web.id, 0)
        await house.network.close()
        if os.geteuid() == 0:  # whose guests are in the host's user namespace
            assert not is_alive(facts.pid, facts.ticks)
            return
        assert is_alive(facts.pid, facts.ticks)
        await house.another_daemon()
        await house.network.rest(web.id, 0)
        assert house.namespace.facts[:2] == facts[:2], "a new guest gets the same"
        assert await (await house.boot("again")).ping(GATEWAY)
        await house.guests["again"].end()
        await house.network.rest(house.guests["again"].id, 0)
    finally:
        process.kill()
        await process.wait()
    await house.network.close()
    assert not is_alive(facts.pid, facts.ticks)


async def test_a_network_that_changed_changes_on_the_kernel(house: TestHouse) -> None:
    web = await house.boot("web")
    house.records.own[0] = network(mtu=1400, domain="new.test")
    await house.network.refresh()
    listed = json.loads((await house.namespace.run(["ip", "-j", "link"])).out)
    mtus = {link["ifname"]: link["mtu"] for link in listed}
    assert mtus[web.seat.tap] == mtus[house.records.own[0].bridge] == 1400
    assert await web.ask(GATEWAY, "web.new.test") == f"0 {web.address}"
    assert await web.ping(GATEWAY)


async def test_a_card_that_cannot_be_leaves_nothing(house: TestHouse) -> None:
    guest = house.guest("web")
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(PortTaken):
            await guest.attach(Publish(host_port=server.getsockname()[1], guest_port=80))
    await house.network.refresh()
    assert await interfaces(house) == set()
