"""`guest network ls|create|info|rm`, and networks in `guest launch` and `guest info`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from guesthouse.model.device import Nic
from guesthouse.model.network import NetworkKind

from .cli_room import Room, make_room


@pytest.fixture
def guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Room]:
    yield from make_room(tmp_path, monkeypatch, capfd)


def test_create_sends_what_was_asked(guest: Room) -> None:
    said = guest("network", "create", "lan", "--kind", "isolated", "--subnet6", "none",
                 "--dhcp", "10.1.0.100 - 10.1.0.200", "--no-lan-access")  # fmt: skip
    assert said.out.startswith("Created network lan (isolated, 10.150.0.0/24 and fd12:")
    assert guest.bodies("POST", "/v1/networks") == [
        {
            "name": "lan",
            "kind": "isolated",
            "subnet4": None,
            "subnet6": "",
            "dhcp": {"first": "10.1.0.100", "last": "10.1.0.200"},
            "domain": "",
            "mtu": 1500,
            "uplink": "",
            "vlan": 0,
            "host_access": False,
            "lan_access": False,
        }
    ]


@pytest.mark.parametrize(
    "wrong", [("LAN",), ("lan", "--kind", "magic"), ("lan", "--dhcp", "10.0.0.1")]
)
def test_create_refuses_what_cannot_be(guest: Room, wrong: tuple[str, ...]) -> None:
    assert guest("network", "create", *wrong).code == 2
    assert guest.bodies("POST", "/v1/networks") == []


def test_ls_info_and_rm(guest: Room) -> None:
    assert "no networks yet" in guest("network", "ls").err
    lan = guest.house.add_network("lan", NetworkKind.ISOLATED)
    guest.house.add_network("default")
    guest.house.add("db", nics=(Nic(mac="52:67:68:00:00:09", network=lan.id),))
    address = f"10.150.0.{25 + len(guest.house.guests) - 1}"
    lines = guest("network", "ls").out.splitlines()
    assert lines[0].split() == ["NAME", "KIND", "IPV4", "IPV6", "GUESTS"]
    row = ["lan", "isolated", "10.150.0.0/24", "fd12:3456:789a:1::/64", "db"]
    assert lines[1].split() == row
    assert [one["name"] for one in guest.json("network", "ls")] == ["lan", "default"]
    info = guest("network", "info", "lan").out
    assert "isolated: each other alone" in info and "the house is 10.150.0.1" in info
    assert f"db     0     52:67:68:00:00:09  {address}" in info
    assert guest.json("network", "info", "lan")["members"][0]["guest"] == "db"
    assert "lan, 52:67:68:00:00:09" in guest("info", "db").out
    said = guest("network", "rm", "--yes", "default", "nowhere")
    assert said.code == 3 and "Nothing was removed" in said.err
    assert guest("network", "rm", "--yes", "default").out == "Removed network default\n"
    assert guest.house.seen[-2][:2] == ("DELETE", "/v1/networks/default")
    assert [one["name"] for one in guest.json("network", "ls")] == ["lan"]


def test_launch_sends_the_networks(guest: Room) -> None:
    args = ("launch", "micro", "box", "--network", "lan", "--network", "builtin")
    assert guest(*args).code == 0
    assert guest.bodies("POST", "/v1/guests")[0]["networks"] == ["lan", "builtin"]


def test_launch_sends_the_groups(guest: Room) -> None:
    assert guest("launch", "micro", "box", "--group", "shop", "--group", "ssh").code == 0
    assert guest("launch", "micro", "fox").code == 0
    sent = [body["groups"] for body in guest.bodies("POST", "/v1/guests")]
    assert sent == [["shop", "ssh"], []]


def test_set_changes_what_was_named(guest: Room) -> None:
    guest.house.add_network("lan")
    said = guest("network", "set", "lan", "mtu=1400", "lan-access=off", "dhcp=10.1.0.5-10.1.0.9",
                 "name=office", "domain=")  # fmt: skip
    assert said.out.startswith("office: mtu=1400 lan-access=off")
    assert guest.bodies("PATCH", "/v1/networks/lan") == [
        {
            "name": "office",
            "dhcp": {"first": "10.1.0.5", "last": "10.1.0.9"},
            "domain": "",
            "mtu": 1400,
            "host_access": None,
            "lan_access": False,
            "connected": None,
        }
    ]
    assert guest.json("network", "info", "office")["mtu"] == 1400


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("mtu=big", "not a number"),
        ("host-access=maybe", "on or off"),
        ("mtu", "write KEY=VALUE"),
        ("mtus=1", "Did you mean mtu="),
        ("subnet=10.0.0.0/24", "make another network"),
        ("dhcp=10.0.0.1", "not a range"),
    ],
)
def test_set_refuses_what_changes_nothing(guest: Room, change: str, word: str) -> None:
    guest.house.add_network("lan")
    said = guest("network", "set", "lan", change)
    assert said.code == 2 and word in said.err
    assert guest.bodies("PATCH", "/v1/networks/lan") == []


def test_a_clash_is_shown(guest: Room) -> None:
    lan = guest.house.add_network("lan")
    guest.house.clashes[lan.id] = ("10.0.0.0/8",)
    listed = guest("network", "ls")
    assert listed.out.splitlines()[1].startswith("lan") and "route of its own" in listed.err
    assert "Out of reach" in guest("network", "info", "lan").out


CONFIRM = "/v1/networks/office/confirm"


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSH_CONNECTION", "SSH_TTY", "SSH_CLIENT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("near")
def test_at_this_machine_a_bridged_network_is_confirmed(guest: Room) -> None:
    said = guest("network", "create", "office", "--bridge-host", "eth0", "--vlan", "7")
    assert said.out == "Created network office (bridged, eth0, VLAN 7)\n"
    [body] = guest.bodies("POST", "/v1/networks")
    assert (body["kind"], body["uplink"], body["vlan"]) == ("bridged", "eth0", 7)
    assert len(guest.bodies("POST", CONFIRM)) == 1
    info = guest("network", "info", "office").out
    assert "eth0, VLAN 7" in info and "given out by that network" in info


@pytest.mark.usefixtures("near")
def test_from_afar_somebody_must_say_so(guest: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.9 50000 192.0.2.5 22")
    said = guest("network", "create", "office", "--bridge-host", "eth0")
    assert "from a new connection: guest network confirm office" in said.err
    assert guest.bodies("POST", CONFIRM) == []
    assert "guest network confirm office" in guest("network", "info", "office").out
    assert guest("network", "confirm", "office").out == "Confirmed network office\n"
    assert "Given back" not in guest("network", "info", "office").out
    guest.house.networks.clear()
    guest("network", "create", "office", "--bridge-host", "eth0", "--yes")
    assert len(guest.bodies("POST", CONFIRM)) == 2
    assert guest("network", "confirm", "nowhere").code == 3


def test_a_vlan_that_cannot_be(guest: Room) -> None:
    assert guest("network", "create", "office", "--bridge-host", "eth0", "--vlan", "5000").code == 2


def test_connect_and_disconnect(guest: Room) -> None:
    guest.house.add_network("lan")
    said = guest("network", "connect", "lan")
    assert said.out.startswith("Connected this host to network lan: 10.150.0.0/24 and fd12")
    assert "this host has a route there" in guest("network", "info", "lan").out
    said = guest("network", "disconnect", "lan")
    assert said.out == "Disconnected this host from network lan\n"
    sent = guest.bodies("PATCH", "/v1/networks/lan")
    assert [one["connected"] for one in sent] == [True, False]
