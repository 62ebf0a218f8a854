"""The host's interface in a bridge and back, for real: confirmed or not, and whoever is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guesthouse.errors import Conflict, HostLacks, InvalidInput, NotFound
from guesthouse.model.ids import new_id
from guesthouse.model.network import Network, NetworkKind
from guesthouse.network.bridged import abilities, attaching
from guesthouse.network.bridged.attaching import HostBridges, check_vlan
from guesthouse.network.bridged.hostlink import look_at
from guesthouse.network.bridged.moves import Moves, batch
from guesthouse.network.bridged.plan import Names, move_plan

from ..bridged_host import ADDRESS, GATEWAY6, MAC, BridgedHost, in_host
from .keeper_house import until

pytestmark = pytest.mark.root


@pytest.fixture
def host() -> Iterator[BridgedHost]:
    with in_host() as made:
        yield made


async def waits(moves: Moves, network: str) -> None:
    await until(lambda: moves.confirm_by(network) is not None)


async def test_moved_confirmed_and_given_back(host: BridgedHost, tmp_path: Path) -> None:
    before, network, moves = host.state(), new_id(), Moves(tmp_path / "moves")
    names = Names.of(network)
    await moves.move(network, await look_at("eth0"))
    await waits(moves, network)
    until = moves.confirm_by(network)
    assert until is not None and 25 < until - time.time() <= 30
    moves.confirm(network)
    assert await moves.settled(network) == "" and moves.state(network) == "kept"
    moves.confirm(network)
    now = host.state()
    assert now["eth0"]["addresses"] == [] and now["eth0"]["master"] == names.bridge
    assert now[names.bridge]["mac"] == MAC
    strip = lambda found: [{**one, "label": ""} for one in found]  # noqa: E731
    assert strip(now[names.bridge]["addresses"]) == strip(before["eth0"]["addresses"])
    renamed = [route.replace(names.bridge, "eth0") for route in now["-4"]]
    assert sorted(renamed) == before["-4"]
    assert host.reaches() and host.reaches(GATEWAY6)
    # What the host's administrator did to the bridge meanwhile goes to the interface.
    host.host.ok("ip", "address", "add", "192.0.2.77/24", "dev", names.bridge)
    await moves.give_back(network)
    host.host.ok("ip", "address", "delete", "192.0.2.77/24", "dev", "eth0")
    assert host.state() == before
    assert host.reaches() and host.reaches(GATEWAY6)
    assert list((tmp_path / "moves").iterdir()) == []
    await moves.give_back(network)


async def test_without_a_word_all_is_as_it_was(host: BridgedHost, tmp_path: Path) -> None:
    before, network, moves = host.state(), new_id(), Moves(tmp_path, confirm_seconds=0.5)
    await moves.move(network, await look_at("eth0"))
    assert "nobody confirmed it within 0.5 seconds" in await moves.settled(network)
    assert host.state() == before and host.reaches()
    with pytest.raises(Conflict, match="nothing to confirm"):
        moves.confirm(network)


async def test_a_host_that_loses_its_gateway_has_it_back_at_once(
    host: BridgedHost, tmp_path: Path
) -> None:
    before, network, moves = host.state(), new_id(), Moves(tmp_path)
    rules = "table bridge t {\nchain c {\ntype filter hook input priority 0; policy drop;\n}\n}\n"
    host.host.ok("nft", "-f", "-", text=rules)
    await moves.move(network, await look_at("eth0"))
    why = await moves.settled(network)
    assert "the gateway 192.0.2.1 answered on eth0, and does not any more" in why
    assert host.state() == before and host.reaches()


async def test_a_gateway_that_never_answered_is_no_obstacle(
    host: BridgedHost, tmp_path: Path
) -> None:
    host.lan.ok("ip", "link", "set", "port0", "nomaster")
    network, moves = new_id(), Moves(tmp_path)
    await moves.move(network, await look_at("eth0"), unattended=True)
    assert await moves.settled(network) == "" and moves.state(network) == "kept"
    await moves.give_back(network)


def movers(folder: Path) -> list[int]:
    """Processes that were told of that folder."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in words and any(w.endswith(b"mover.py") for w in words):
            found.append(int(process.name))
    return found


async def test_who_dies_while_nobody_has_confirmed(host: BridgedHost, tmp_path: Path) -> None:
    """The daemon: its mover takes back. The mover: the daemon does. Both: the next daemon."""
    before, network, moves = host.state(), new_id(), Moves(tmp_path, confirm_seconds=1.0)
    await moves.move(network, await look_at("eth0"))
    await waits(moves, network)
    assert await Moves(tmp_path).mend() == [], "somebody is at work on it"
    await until(lambda: not moves.state(network))  # nobody but the mover acts
    assert host.state() == before

    moves = Moves(tmp_path)
    await moves.move(network, await look_at("eth0"))
    await waits(moves, network)
    waiting = asyncio.create_task(moves.settled(network))
    [pid] = movers(tmp_path)
    os.kill(pid, signal.SIGKILL)
    assert "killed" in await waiting
    assert host.state() == before

    await moves.move(network, await look_at("eth0"))
    await waits(moves, network)
    [pid] = movers(tmp_path)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not movers(tmp_path))
    assert await Moves(tmp_path).mend() == [network]
    assert host.state() == before and host.reaches()


@pytest.mark.parametrize("way", ["forward", "back"])
async def test_killed_after_any_line_the_host_has_its_addresses(
    host: BridgedHost, tmp_path: Path, way: str
) -> None:
    before, network = host.state(), new_id()
    plan = move_plan(await look_at("eth0"), Names.of(network))
    lines = plan.forward if way == "forward" else plan.back
    for count in range(len(lines) + 1):
        moves = Moves(tmp_path)
        moves._begin(network, plan)
        if way == "back":
            await batch(list(plan.forward))
            moves._file(network, "moving").rename(moves._file(network, "returning"))
        await batch(list(lines[:count]), go_on=True)
        assert await Moves(tmp_path).mend() == [network]
        assert host.state() == before, f"killed after {lines[:count][-1:]}"
        assert moves.state(network) == ""
    assert host.reaches()


async def test_a_record_of_an_earlier_boot_says_nothing(
    host: BridgedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, network, moves = host.state(), new_id(), Moves(tmp_path)
    moves._begin(network, move_plan(await look_at("eth0"), Names.of(network)))
    monkeypatch.setattr("guesthouse.network.bridged.moves.boot_id", lambda: "another")
    assert moves.state(network) == "" and await moves.mend() == []
    assert host.state() == before and list(tmp_path.iterdir()) == []


def bridged(uplink: str, network: str = "", **more: object) -> Network:
    return Network(
        id=network or new_id(),
        name="lan",
        kind=NetworkKind.BRIDGED,
        uplink=uplink,
        created_at=0.0,
        **more,
    )


async def test_what_cannot_be_bridged(
    host: BridgedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridges = HostBridges(tmp_path / "moves")
    with pytest.raises(NotFound, match="no interface 'eth7'") as missing:
        await bridges.check(bridged("eth7"))
    assert "eth0" in missing.value.hint
    with pytest.raises(InvalidInput, match="no Ethernet frames"):
        await bridges.check(bridged("lo"))
    lines = ["link add br0 type bridge", "link add p0 type veth peer name p1",
             "link set p0 master br0"]  # fmt: skip
    await batch(lines)
    with pytest.raises(Conflict, match="p0 is a port of br0") as enslaved:
        await bridges.check(bridged("p0"))
    assert "--bridge-host br0" in enslaved.value.hint
    with pytest.raises(Conflict, match="p1 is down"):
        await bridges.check(bridged("p1"))
    assert (await bridges.check(bridged("br0"))).kind == "bridge"
    host.host.ok("ip", "route", "add", "10.8.0.0/16", "nexthop", "via", "192.0.2.1", "dev", "eth0",
                 "nexthop", "via", "192.0.2.2", "dev", "eth0")  # fmt: skip
    with pytest.raises(Conflict, match=r"10\.8\.0\.0/16 leads over eth0 and others"):
        await bridges.check(bridged("eth0"))
    host.host.ok("ip", "route", "delete", "10.8.0.0/16")
    first = bridged("eth0")
    await bridges.moves.move(first.id, await look_at("eth0"), unattended=True)
    assert await bridges.moves.settled(first.id) == ""
    assert (await bridges.check(first)).master == Names.of(first.id).bridge
    for name in ("eth0", Names.of(first.id).bridge):
        with pytest.raises(Conflict, match="another network of this house"):
            await bridges.check(bridged(name))
    await bridges.remove(first.id)
    monkeypatch.setattr(attaching, "check_may_change", lacks)
    with pytest.raises(HostLacks):
        await bridges.check(bridged("eth0"))


def lacks() -> None:
    raise HostLacks("not here")


async def test_what_doctor_says(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_vlan() -> None:
        raise HostLacks("no VLANs", hint="modprobe 8021q")

    async def fine() -> None:
        pass

    monkeypatch.setattr(abilities, "check_may_change", lambda: None)
    monkeypatch.setattr(abilities, "check_vlan", fine)
    assert [(one.name, one.available) for one in await abilities.capabilities()] == [
        ("bridging", True),
        ("vlan", True),
    ]
    monkeypatch.setattr(abilities, "check_vlan", no_vlan)
    bridging, vlan = await abilities.capabilities()
    assert bridging.available and not vlan.available
    assert (vlan.reason, vlan.cure) == ("no VLANs", "modprobe 8021q")
    monkeypatch.setattr(abilities, "check_may_change", lacks)
    [bridging] = await abilities.capabilities()
    assert not bridging.available and bridging.reason == "not here"


async def test_a_vlan_where_the_kernel_has_them(host: BridgedHost, tmp_path: Path) -> None:
    """Else it is refused by name, with the cure."""
    before, bridges, network = host.state(), HostBridges(tmp_path), bridged("eth0", vlan=7)
    try:
        await check_vlan()
    except HostLacks as error:
        assert error.detail["capability"] == "vlan" and "modprobe 8021q" in error.hint
        with pytest.raises(HostLacks, match="no VLANs"):
            await bridges.check(network)
        return
    await bridges.settle(network, host.lan.pid, there=False)
    assert ADDRESS in str(host.state()["eth0"]), "the untagged frames stay the host's"
    await bridges.remove(network.id)
    assert host.state() == before
