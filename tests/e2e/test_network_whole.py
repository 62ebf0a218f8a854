"""Whoever of the house is killed: two guests talk on, and everything is whole again after."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from tests.house_network import host_address
from tests.unit.namespace_house import need_ids, need_tun

from .conftest import gone, until
from .network_house import ECHO, SAY, TALK, NetworkHouse, answers, free_port, network_house
from .test_networks import host_echo

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]
UDP = socket.SOCK_DGRAM


class Town:
    """web talks to db all the time; db has ports of the host, one of each kind."""

    def __init__(self, house: NetworkHouse) -> None:
        self.house = house
        self.ports = [
            ("127.0.0.1", free_port(), socket.SOCK_STREAM),
            ("127.0.0.1", free_port(kind=UDP), UDP),
            ("::1", free_port("::1"), socket.SOCK_STREAM),
        ]

    def begin(self) -> None:
        house = self.house
        house.run("network", "create", "lan", "--host-access")
        for name in ("web", "db"):
            house.launch(name, "lan")
        for ip, port, kind in self.ports:
            place = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
            house.run("publish", "db", f"{place}:7{'/udp' if kind is UDP else ''}")
        house.begin("db", ECHO, "7")
        house.reaches("web", "db")
        house.begin("web", TALK, house.card("db", "lan")["address4"], "7")
        self.talks_on()

    def said(self) -> str:
        return self.house.sh("web", "cat /tmp/talk", ok=False).strip()

    def talks_on(self) -> None:
        """On the same connection, and nothing of what was said was lost or changed."""

        def number() -> int:
            said = self.said()
            assert "broken" not in said, said
            return int(said or 0)

        before = number()
        until(lambda: number() > before, seconds=120, say=f"more than {before} lines")

    def is_whole(self, port: int) -> None:
        """Names, ports and the way out. :param port: of an echo on the host."""
        house = self.house
        card = house.card("db", "lan")
        until(
            lambda: house.asks("web", "db") == {card["address4"], card["address6"]},
            say="names resolve",
        )
        for place in self.ports:
            until(lambda place=place: answers(*place), say=f"{place} answers")
        out = (host_address(), str(port), "10")
        until(lambda: house.perl("web", SAY, *out) == "hello", say="the way out is there")


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    need_ids()
    need_tun()
    with network_house() as house:
        made = Town(house)
        made.begin()
        yield made


def killed(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid), say=f"{pid} is gone")


def test_whoever_is_killed_guests_talk_on_and_all_is_whole_again(town: Town) -> None:
    house = town.house
    net = house.record("namespace.json")["net"]
    before = house.services
    kinds = sorted(name.split("-")[0] for name in before)
    assert kinds == ["names", "relay", "relay", "uplink", "uplink"]
    with host_echo() as port:
        town.is_whole(port)
        for name in before:
            until(lambda name=name: name in house.services, say=name)
            pid = house.services[name]  # some go with another one, as the uplink with its watch
            killed(pid)
            town.talks_on()
            until(lambda name=name, pid=pid: house.services.get(name, pid) != pid, say=name)
            town.is_whole(port)
        holder, uplink = house.holder, house.services["uplink"]
        killed(holder)
        town.talks_on()
        until(lambda: house.holder != holder, say="another holder")
        assert house.record("namespace.json")["net"] == net, "of the same namespace"
        # It ends with the holder, within a second.
        until(lambda: house.services.get("uplink", uplink) != uplink, say="another uplink")
        until(lambda: set(house.services) == set(before), say="all services")
        town.is_whole(port)
        town.talks_on()


def test_a_daemon_that_is_killed_is_missed_by_nobody(town: Town) -> None:
    house = town.house
    before = house.services
    handles = house.inside("nft", "-a", "-n", "list", "chains")
    with host_echo() as port:
        house.kill_daemon()
        for place in town.ports:
            assert answers(*place), "while no daemon runs"
        # Whatever we ask starts another one.
        town.talks_on()
        assert house.services == before
        assert house.inside("nft", "-a", "-n", "list", "chains") == handles
        town.is_whole(port)
        house.run("daemon", "restart")
        assert house.services == before
        assert house.inside("nft", "-a", "-n", "list", "chains") == handles
        town.talks_on()


def test_daemon_holder_and_services_all_at_once(town: Town) -> None:
    house = town.house
    net = house.record("namespace.json")["net"]
    with host_echo() as port:
        victims = [house.holder, *house.services.values()]
        house.kill_daemon()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        town.talks_on()
        assert house.record("namespace.json")["net"] == net
        town.is_whole(port)
        town.talks_on()
    house.sh("web", "touch /tmp/hush")
    until(lambda: town.said() == "whole", say="the talk ends well")
