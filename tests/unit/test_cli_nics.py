"""`guest nic ls|add|set|rm`, and cards in `guest launch` and `guest info`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from guesthouse.cli.nic_set import complete_cards, complete_change, nic_set
from guesthouse.errors import Conflict

from .cli_room import Room, make_room

ADDED = {"network": "lan", "mac": "", "address4": "", "address6": "", "link": "up"}
NOTHING = {"network": None, "mac": None, "address4": None, "address6": None, "link": None}


@pytest.fixture
def guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Room]:
    yield from make_room(tmp_path, monkeypatch, capfd)


def test_add_ls_and_rm(guest: Room) -> None:
    guest.house.add_network("lan")
    said = guest("nic", "add", "web", "--network", "lan")
    assert said.out == "Card 1 of web is on lan (52:67:68:00:00:99)\n"
    assert guest.bodies("POST", "/v1/guests/web/nics") == [ADDED]
    fixed = ("--address4", "10.150.0.9", "--mac", "52-67-68-AA-00-01", "--no-link")
    assert guest("nic", "add", "web", "--network", "lan", *fixed).code == 0
    assert guest.bodies("POST", "/v1/guests/web/nics")[1] == {
        **ADDED,
        "mac": "52:67:68:aa:00:01",
        "address4": "10.150.0.9",
        "link": "down",
    }
    lines = guest("nic", "ls", "web").out.splitlines()
    assert lines[0].split() == ["CARD", "NETWORK", "IPV4", "IPV6", "MAC", "LINK"]
    assert lines[3].split() == [
        "2",
        "lan",
        "10.150.0.9",
        "(fixed)",
        "-",
        "52:67:68:aa:00:01",
        "down",
    ]
    assert [one["index"] for one in guest.json("nic", "ls", "web")] == [0, 1, 2]
    said = guest("nic", "rm", "web", "1")
    assert said.out == "Removed card 1 of web\n"
    assert guest("nic", "rm", "web", "52:67:68:aa:00:01").code == 0
    said = guest("nic", "rm", "web", "7")
    assert said.code == 3 and "Its cards: 0 (" in said.err
    assert guest("nic", "rm", "web", "0").code == 0
    assert "no network cards" in guest("nic", "ls", "web").err


def test_set_sends_what_was_asked(guest: Room) -> None:
    guest.house.add_network("lan")
    said = guest("nic", "set", "web", "0", "network=lan", "address4=auto", "link=down")
    assert said.out == "Card 0 of web: network=lan address4=auto link=down\n"
    body = {**NOTHING, "network": "lan", "address4": "auto", "link": "down"}
    assert guest.bodies("PATCH", "/v1/guests/web/nics/0") == [body]
    assert guest("nic", "set", "web", "0", "mac=52:67:68:00:00:0A").code == 0
    assert guest.bodies("PATCH", "/v1/guests/web/nics/0")[1]["mac"] == "52:67:68:00:00:0a"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("netwrok=lan", "Did you mean network=…?"),
        ("speed=9", "guest nic set --help"),
        ("link=off", "up or down"),
        ("network=", "changes nothing"),
        ("address4", "changes nothing"),
        ("mac=01:00:5e:00:00:01", "group"),
    ],
)
def test_set_refuses_what_changes_nothing(guest: Room, text: str, word: str) -> None:
    said = guest("nic", "set", "web", "0", text)
    assert said.code == 2 and word in said.err
    assert guest.bodies("PATCH", "/v1/guests/web/nics/0") == []


def test_a_refusal_says_what_to_do(guest: Room) -> None:
    guest.house.add_network("lan")
    guest.house.fail["nic.add"] = Conflict(
        "10.150.0.9 on network lan belongs to card 0 of guest 'db'.", hint="Choose another."
    )
    said = guest("nic", "add", "web", "--network", "lan", "--address4", "10.150.0.9")
    assert said.code == 5 and "guest 'db'" in said.err and "Choose another." in said.err
    assert guest("nic", "add", "web").code == 2


def test_info_shows_the_cards(guest: Room) -> None:
    lan = guest.house.add_network("lan")
    assert "Network: builtin, 52:" in " ".join(guest("info", "web").out.split())
    key, web = next((k, g) for k, g in guest.house.guests.items() if g.name == "web")
    nic = msgspec.structs.replace(web.spec.nics[0], network=lan.id)
    guest.house.guests[key] = msgspec.structs.replace(web, spec=web.spec.with_nic(nic))
    guest("nic", "add", "web", "--network", "lan", "--address4", "10.150.0.9", "--no-link")
    said = " ".join(guest("info", "web").out.split())
    assert f"Card 0: lan, {nic.mac}, 10.150.0.2" in said
    assert "Card 1: lan, 52:67:68:00:00:99, 10.150.0.9 (fixed), link down" in said


def test_launch_sends_what_is_fixed(guest: Room) -> None:
    words = ("--network", "lan,address4=10.1.0.9,mac=52:67:68:00:00:01", "--network", "builtin")
    assert guest("launch", "debian/12", "db", *words).code == 0
    [body] = guest.bodies("POST", "/v1/guests")
    assert body["networks"] == [] and body["nics"] == [
        {**ADDED, "address4": "10.1.0.9", "mac": "52:67:68:00:00:01"},
        {**ADDED, "network": "builtin"},
    ]
    said = guest("launch", "debian/12", "x", "--network", "lan,speed=9")
    assert said.code == 2 and "speed=9" in said.err


def test_completion_knows_cards_and_what_can_change(guest: Room) -> None:
    guest.house.add_network("lan")
    guest("nic", "add", "web", "--network", "lan")
    context = click.Context(nic_set, info_name="set")
    context.params = {"name": "web"}
    (card,) = (one for one in nic_set.params if one.name == "card")
    found = complete_cards(context, card, "")
    assert [one.value for one in found] == ["0", "1"] and "lan, 52:" in str(found[1].help)
    for begun, ends in (
        ("net", ["network="]),
        ("network=", ["network=lan", "network=builtin"]),
        ("link=d", ["link=down"]),
        ("address4=", ["address4=auto"]),
        ("speed=", []),
    ):
        assert [one.value for one in complete_change(context, card, begun)] == ends
    context.params["changes"] = ("network=lan", "link=up")
    assert [one.value for one in complete_change(context, card, "")][:3] == [
        "address4=",
        "address6=",
        "mac=",
    ]
