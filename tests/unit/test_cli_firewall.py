"""`guest firewall`: rules as people say them, tables, groups, sets, the dry run and the log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guesthouse.errors import InUse

from .cli_room import Room, make_room

RULES = "/v1/guests/web/firewall/rules"


@pytest.fixture
def guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Room]:
    yield from make_room(tmp_path, monkeypatch, capfd)


def sent(guest: Room, *words: str) -> dict[str, Any]:
    """What of a rule was sent that is not as it is by default."""
    before = len(guest.bodies("POST", RULES))
    assert guest("firewall", "add", "web", *words).code == 0
    body = guest.bodies("POST", RULES)[before]
    plain = {"direction": "in", "action": "accept", "protocol": "any", "enabled": True}
    return {key: value for key, value in body.items() if value and plain.get(key) != value}


def test_rules_are_said_as_elsewhere(guest: Room) -> None:
    ssh = {"protocol": "tcp", "ports": ["22"]}
    assert sent(guest, "allow", "in", "tcp", "22") == ssh
    assert sent(guest, "allow", "in", "22/tcp") == ssh
    assert sent(guest, "accept", "in", "tcp", "22", "--name", "x") == {**ssh, "name": "x"}
    said = sent(guest, "deny", "out", "udp", "53,60-70", "--to", "set:a", "--to", "10.0.0.0/8",
                "--log", "--before", "1", "--note", "why")  # fmt: skip
    assert said == {
        "action": "drop",
        "direction": "out",
        "protocol": "udp",
        "ports": ["53", "60-70"],
        "destinations": ["set:a", "10.0.0.0/8"],
        "log": True,
        "before": "1",
        "note": "why",
    }
    assert sent(guest, "reject", "in", "icmp", "--from", "db") == {
        "action": "reject",
        "protocol": "icmp",
        "sources": ["db"],
    }
    assert sent(guest, "drop", "in") == {"action": "drop"}
    assert sent(guest, "allow", "in", "tcp", "--from-port", "1,2") == {
        "protocol": "tcp",
        "source_ports": ["1", "2"],
    }


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("web",),
        ("web", "allow"),
        ("web", "in", "allow"),
        ("web", "allow", "in", "22"),
        ("web", "allow", "in", "icmp", "22"),
        ("web", "allow", "in", "22/sctp"),
        ("web", "allow", "in", "tcp", "22", "33"),
        ("web", "--network", "lan", "allow", "in"),
        ("allow", "in", "--network", "lan", "--group", "ssh"),
    ],
)
def test_what_is_no_rule_is_told_with_an_example(guest: Room, words: tuple[str, ...]) -> None:
    said = guest("firewall", "add", *words)
    assert said.code == 2 and "hint:" in said.err, said
    assert not guest.bodies("POST", RULES)


def test_rules_are_listed_with_what_came_of_them(guest: Room) -> None:
    said = guest("firewall", "add", "web", "allow", "in", "tcp", "22", "--from", "guest:db")
    assert said.out == "Added rule allow-in-tcp-22 of web\n"
    guest(
        "firewall",
        "add",
        "web",
        "deny",
        "in",
        "--log",
        "--from",
        "guest:01KA0000000000000000000000",
    )
    guest("firewall", "group", "create", "ssh")
    guest("firewall", "add", "--group", "ssh", "allow", "in", "tcp", "22")
    guest("firewall", "group", "join", "ssh", "web")
    guest("firewall", "policy", "web", "in=deny")
    guest.house.fire.warnings = ("Nothing is logged: no NFLOG.",)
    said = guest("firewall", "ls", "web")
    assert "warning: Nothing is logged" in said.err
    lines = [line.split() for line in said.out.splitlines()]
    assert lines[0] == [
        "#",
        "NAME",
        "DIRECTION",
        "ACTION",
        "PROTOCOL",
        "PORTS",
        "FROM",
        "TO",
        "HITS",
        "OWNER",
    ]
    first = "1 allow-in-tcp-22 in allow tcp 22 guest:db any 1 guest web"
    assert lines[1] == first.split()
    assert "deny-in-any (log)" in said.out and "01KA0000000000000000000000 (gone)" in said.out
    assert lines[3] == [
        "1",
        "allow-in-tcp-22",
        "in",
        "allow",
        "tcp",
        "22",
        "any",
        "any",
        "1",
        "group",
        "ssh",
    ]
    assert lines[4] == ["-", "(policy)", "in", "deny", "any", "-", "any", "any", "-", "house"]
    assert [rule["name"] for rule in guest.json("firewall", "ls", "web")["applied"]][:2] == [
        "allow-in-tcp-22",
        "deny-in-any",
    ]
    assert guest("firewall", "ls").out.splitlines()[1].split() == [
        "web",
        "2",
        "ssh",
        "deny",
        "allow",
    ]
    assert guest.json("firewall", "ls")[0]["owner"] == "guest web"


def test_rules_of_a_network_and_of_a_group(guest: Room) -> None:
    guest.house.add_network("lan")
    said = guest("firewall", "ls", "--network", "lan")
    assert said.code == 0 and "no rules" in said.err
    assert guest("firewall", "add", "--network", "lan", "deny", "in", "tcp", "25").code == 0
    assert guest("firewall", "policy", "--network", "lan", "in=drop", "out=default").code == 0
    said = guest("firewall", "ls", "--network", "lan")
    assert "deny-in-tcp-25" in said.out and "policy: in deny" in said.err
    assert guest.bodies("PATCH", "/v1/networks/lan/firewall") == [
        {"incoming": "drop", "outgoing": "default", "join": [], "leave": []}
    ]
    guest("firewall", "group", "create", "ssh")
    guest("firewall", "add", "--group", "ssh", "allow", "in")
    assert "allow-in-any" in guest("firewall", "ls", "--group", "ssh").out


def test_rules_are_removed_and_replaced(guest: Room) -> None:
    for name in "abc":
        guest("firewall", "add", "web", "allow", "in", "--name", name)
    said = guest("firewall", "rm", "web", "1", "c")
    assert said.out == "Removed rule a\nRemoved rule c\n"
    said = guest("firewall", "add", "web", "deny", "in", "--replace", "b")
    assert said.out == "Replaced rule b of web\n"
    assert guest.json("firewall", "ls", "web")["rules"][0]["action"] == "drop"
    said = guest("firewall", "rm", "web", "nowhere")
    assert said.code == 3 and "Its rules: b" in said.err
    assert guest("firewall", "rm", "web").code == 2


@pytest.mark.parametrize("words", [("web",), ("web", "in=maybe"), ("web", "deny"), ("in=deny",)])
def test_what_is_no_policy(guest: Room, words: tuple[str, ...]) -> None:
    said = guest("firewall", "policy", *words)
    assert said.code == 2 and "hint:" in said.err


def test_groups(guest: Room) -> None:
    assert "no security groups" in guest("firewall", "group", "ls").err
    assert guest("firewall", "group", "create", "ssh").out == "Created security group ssh\n"
    assert guest("firewall", "group", "create", "UP").code == 2
    assert guest("firewall", "group", "join", "ssh").code == 2
    assert guest("firewall", "group", "join", "ssh", "web").out == "web joined ssh\n"
    guest("firewall", "add", "--group", "ssh", "allow", "in", "tcp", "22")
    lines = guest("firewall", "group", "ls").out.splitlines()
    assert lines[0].split() == ["NAME", "RULES", "IN", "IT", "NOTE"]
    assert lines[1].split()[:4] == ["ssh", "1", "guest", "web"]
    said = guest("firewall", "group", "ls", "ssh")
    assert "guest web" in said.out and "allow-in-tcp-22" in said.out
    assert guest.json("firewall", "group", "ls", "ssh")["members"] == ["guest web"]
    guest.house.fail["security-group.remove"] = InUse("It is in use: guest web is in it.")
    said = guest("firewall", "group", "rm", "--yes", "ssh")
    assert said.code == 5 and "guest web is in it" in said.err
    guest.house.fail.clear()
    assert guest("firewall", "group", "leave", "ssh", "web").out == "web left ssh\n"
    assert guest("firewall", "group", "rm", "--yes", "ssh").out == "Removed security group ssh\n"
    assert guest.json("firewall", "group", "ls") == []
    assert guest("firewall", "group", "rm", "--yes", "ssh").code == 3


def test_sets(guest: Room) -> None:
    assert "no sets" in guest("firewall", "set", "ls").err
    said = guest("firewall", "set", "create", "office", "192.0.2.0/24")
    assert said.out == "Created set office\n"
    assert guest("firewall", "set", "add", "office", "10.0.0.1", "10.0.0.2").code == 0
    assert guest("firewall", "set", "del", "office", "10.0.0.1").code == 0
    assert guest.json("firewall", "set", "ls", "office")["entries"] == ["192.0.2.0/24", "10.0.0.2"]
    assert guest("firewall", "set", "ls").out.splitlines()[1].split()[:2] == ["office", "2"]
    assert "10.0.0.2" in guest("firewall", "set", "ls", "office").out
    assert guest("firewall", "set", "rm", "office").code == 2, "nobody is there to answer"
    assert guest("firewall", "set", "rm", "--yes", "office").out == "Removed set office\n"


def test_the_dry_run(guest: Room) -> None:
    said = guest("firewall", "test", "web", "in", "tcp", "22", "--from", "db")
    assert said.code == 0
    assert said.out.splitlines()[0] == ("allowed: tcp from 10.150.0.26 to 10.150.0.25 port 22")
    assert "Rule 'ssh' of guest web." in said.out and "guest/web/ssh" in said.out
    said = guest("firewall", "test", "web", "out", "icmp", "--to", "host")
    assert said.code == 1 and said.out.startswith("denied: icmp")
    said = guest("firewall", "test", "web", "in", "tcp", "22", "--json")
    assert said.code == 1 and json.loads(said.out)["rule"] == "guest/ID/ssh"
    assert guest.bodies("POST", "/v1/guests/web/firewall/test")[1:] == [
        {"direction": "out", "protocol": "icmp", "port": 0, "far": "host"},
        {"direction": "in", "protocol": "tcp", "port": 22, "far": "outside"},
    ]
    for wrong in (("in", "tcp", "22", "--to", "db"), ("in", "tcp", "1-2"), ("up", "icmp")):
        assert guest("firewall", "test", "web", *wrong).code == 2


def test_counters(guest: Room) -> None:
    lines = guest("firewall", "counters").out.splitlines()
    assert lines[0].split() == ["PACKETS", "BYTES", "RULE", "REASON"]
    assert lines[1].split() == ["3", "27", "guest/web/ssh", "About", "guest/ID/ssh."]
    assert len(lines) == 2
    assert len(guest("firewall", "counters", "--all").out.splitlines()) == 3
    assert guest.json("firewall", "counters")[0]["packets"] == 3


def test_the_log(guest: Room) -> None:
    lines = guest("firewall", "log").out.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(
        "deny    tcp  db 10.150.0.26:40000 -> [fd00::25]:22  (guest web: no-ssh)"
    )
    assert "icmp  db 10.150.0.26 -> fd00::25" in lines[1]
    assert len(guest("firewall", "log", "web", "-n", "1").out.splitlines()) == 1
    said = guest("firewall", "log", "web", "--follow")
    assert "the daemon stopped" in said.err and len(said.out.splitlines()) == 2
    printed = guest("firewall", "log", "--json").out.splitlines()
    assert json.loads(printed[0])["sender_name"] == "db"
    paths = [path for _, path, _ in guest.house.seen if path.startswith("/v1/firewall/log")]
    assert "guest=web" in paths[1] and "follow=true" in paths[2]
