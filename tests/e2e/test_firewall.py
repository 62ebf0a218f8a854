"""Firewalls with real guests on the default network: what rules say is what happens."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.namespace_house import need_ids, need_tun

from .conftest import House, until

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]


@pytest.fixture(scope="module")
def guests(house: House) -> Iterator[House]:
    """`web` listens on the TCP ports 80 and 81; `db` and `other` are beside it."""
    need_ids()
    need_tun()
    for name in ("web", "db", "other"):
        house.run("launch", "micro", name, "--memory", "128M")
    inside(house, "web", "mkdir -p /srv/www; echo hello >/srv/www/page")
    for port in (80, 81):
        inside(house, "web", f"httpd -h /srv/www -p {port}")
    until(lambda: reaches(house, "db"), say="web listens")
    yield house
    house.run("firewall", "policy", "web", "in=default")


def inside(house: House, name: str, script: str) -> str:
    return house.out("exec", name, "--", "sh", "-c", script)


def reaches(house: House, name: str, port: int = 80) -> bool:
    script = f"printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | nc -w 2 web {port}"
    said = house.run("exec", name, "--", "sh", "-c", script, ok=False)
    return said.stdout.endswith(b"\nhello\n")


def judged(house: House, *words: str) -> dict[str, Any]:
    said = house.run("firewall", "test", *words, "--json", ok=False)
    found: dict[str, Any] = json.loads(said.stdout)
    assert said.returncode == (0 if found["action"] == "accept" else 1)
    return found


def hits(house: House, name: str, guest: str = "web") -> int:
    for rule in house.json("firewall", "ls", guest)["applied"]:
        if rule["name"] == name:
            return int(rule["packets"] or 0)
    raise AssertionError(name)


@pytest.fixture
def clean(guests: House) -> Iterator[House]:
    """Without rules, before and after."""
    yield guests
    for rule in guests.json("firewall", "ls", "web")["rules"]:
        guests.run("firewall", "rm", "web", rule["name"])
    guests.run("firewall", "policy", "web", "in=default", "out=default")


def test_who_is_let_in_gets_in_and_nobody_else(clean: House) -> None:
    house = clean
    assert reaches(house, "db") and reaches(house, "other"), "a control without rules"
    house.run("firewall", "policy", "web", "in=deny")
    assert not reaches(house, "db") and not reaches(house, "other")
    assert judged(house, "web", "in", "tcp", "80", "--from", "db")["label"] == "guest/web/policy-in"
    said = house.out("firewall", "add", "web", "allow", "in", "tcp", "80", "--from", "db")
    assert said == "Added rule allow-in-tcp-80 of web\n"
    assert reaches(house, "db") and not reaches(house, "other")
    assert not reaches(house, "db", 81)
    for guest, port, action, label in (
        ("db", "80", "accept", "guest/web/allow-in-tcp-80"),
        ("db", "81", "drop", "guest/web/policy-in"),
        ("other", "80", "drop", "guest/web/policy-in"),
    ):
        found = judged(house, "web", "in", "tcp", port, "--from", guest)
        assert (found["action"], found["label"]) == (action, label)
    before = hits(house, "allow-in-tcp-80")
    assert before >= 1
    assert reaches(house, "db")
    assert hits(house, "allow-in-tcp-80") == before + 1
    counters = {one["label"]: one["packets"] for one in house.json("firewall", "counters")}
    assert counters["guest/web/policy-in"] > 0
    house.run("firewall", "rm", "web", "1")
    assert not reaches(house, "db")


def test_groups_and_sets_are_followed_live(clean: House) -> None:
    house = clean
    house.run("firewall", "policy", "web", "in=deny")
    house.run("firewall", "group", "create", "friends")
    house.run("firewall", "add", "web", "allow", "in", "tcp", "80", "--from", "group:friends")
    assert not reaches(house, "db")
    house.run("firewall", "group", "join", "friends", "db")
    assert reaches(house, "db") and not reaches(house, "other")
    refused = house.run("firewall", "group", "rm", "--yes", "friends", ok=False)
    assert refused.returncode == 5 and b"guest db is in it" in refused.stderr
    house.run("firewall", "group", "leave", "friends", "db")
    assert not reaches(house, "db")
    house.run("firewall", "rm", "web", "1")
    house.run("firewall", "group", "rm", "--yes", "friends")

    house.run("firewall", "group", "create", "shop")
    house.run("firewall", "set", "create", "known")
    house.run(
        "firewall", "add", "--group", "shop", "allow", "in", "tcp", "80", "--from", "set:known"
    )
    house.run("firewall", "group", "join", "shop", "web")
    assert not reaches(house, "other")
    members = house.json("network", "info", "default")["members"]
    [other] = [one for one in members if one["guest"] == "other"]
    address = other["address4"]
    both = [address, other["address6"]]  # whichever its name for web leads it to
    house.run("firewall", "set", "add", "known", *both)
    assert reaches(house, "other") and not reaches(house, "db")
    found = judged(house, "web", "in", "tcp", "80", "--from", address)
    assert found["label"] == "group/shop/allow-in-tcp-80"
    house.run("firewall", "set", "del", "known", *both)
    assert not reaches(house, "other")
    house.run("firewall", "group", "leave", "shop", "web")
    house.run("firewall", "group", "rm", "--yes", "shop")
    house.run("firewall", "set", "rm", "--yes", "known")


def test_what_leaves_a_guest_is_judged_too(clean: House) -> None:
    house = clean
    house.run("firewall", "add", "db", "reject", "out", "tcp", "80", "--to", "web", "--name", "no")
    assert not reaches(house, "db") and reaches(house, "db", 81) and reaches(house, "other")
    found = judged(house, "db", "out", "tcp", "80", "--to", "web")
    assert (found["action"], found["label"]) == ("reject", "guest/db/no")
    house.run("firewall", "rm", "db", "no")
    assert reaches(house, "db")


def test_a_rule_of_the_network_is_for_all(clean: House) -> None:
    house = clean
    house.run(
        "firewall", "add", "--network", "default", "deny", "in", "tcp", "80", "--name", "shut"
    )
    assert not reaches(house, "db") and reaches(house, "db", 81)
    house.run("firewall", "add", "web", "allow", "in", "tcp", "80", "--from", "db")
    assert reaches(house, "db") and not reaches(house, "other"), "the guest's own come first"
    house.run("firewall", "rm", "--network", "default", "shut")
    assert reaches(house, "other")


def test_packets_are_logged_and_followed(clean: House) -> None:
    house = clean
    house.run("firewall", "add", "web", "deny", "in", "tcp", "81", "--log", "--name", "no-81")
    with subprocess.Popen(
        [sys.executable, str(Path(sys.executable).with_name("guest")), "firewall", "log", "web",
         "-f"],
        env=house.env, stdout=subprocess.PIPE,
    ) as following:  # fmt: skip
        try:
            assert not reaches(house, "db", 81)
            assert following.stdout is not None
            line = following.stdout.readline().decode()
        finally:
            following.terminate()
    assert "deny    tcp  db " in line and "-> web " in line and "(guest web: no-81)" in line
    last = json.loads(house.out("firewall", "log", "web", "--json").splitlines()[-1])
    assert (last["sender_name"], last["receiver_name"], last["port"]) == ("db", "web", 81)
    assert house.out("firewall", "log", "other") == ""


def test_rules_that_another_hand_flushed_come_back(clean: House) -> None:
    house = clean
    house.run("firewall", "policy", "web", "in=deny")
    assert not reaches(house, "db")
    flush(house)
    until(lambda: "policy-in" in listed(house), say="the rules are there again")
    assert not reaches(house, "db")


def test_rules_outlive_the_daemon_and_the_guest(clean: House) -> None:
    house = clean
    house.run("firewall", "policy", "web", "in=deny")
    house.run("firewall", "add", "web", "allow", "in", "tcp", "80", "--from", "db")
    house.kill_daemon()
    assert reaches(house, "db") and not reaches(house, "other")
    before = hits(house, "allow-in-tcp-80")
    house.run("firewall", "add", "web", "allow", "in", "tcp", "80", "--from", "other")
    assert reaches(house, "other")
    assert hits(house, "allow-in-tcp-80") == before, "counting went on"


def nft(house: House, *words: str) -> str:
    """In the house's namespace, as somebody does who was let in."""
    record = json.loads(next(house.folder.rglob("namespace.json")).read_text())
    pid = record["pid"]
    user = ["--user"] if record.get("user") is not None else []
    argv = ["nsenter", "--preserve-credentials", *user, "--net", f"--target={pid}", "nft", *words]
    path = f"{house.env['PATH']}:/usr/sbin:/sbin"
    done = subprocess.run(
        argv, env={**house.env, "PATH": path}, capture_output=True, check=True, timeout=60
    )
    return done.stdout.decode()


def flush(house: House) -> None:
    nft(house, "flush", "ruleset")


def listed(house: House) -> str:
    return nft(house, "list", "ruleset")
