"""Network cards of real guests, by `guest nic`: they come, move and go while the guest runs."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.unit.namespace_house import need_ids, need_tun

from .conftest import House, until

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]

ASK_AGAIN = """
pid=$(cat /run/network.eth1/pid)
kill -USR2 $pid; sleep 1; kill -USR1 $pid
"""
"""What a guest does whose DHCP client does not watch the link (busybox's does not)."""


@pytest.fixture(scope="module", autouse=True)
def guests(house: House) -> None:
    """`web` on default, `db` on lan and `gate` on dmz, which have addresses that stay."""
    need_ids()
    need_tun()
    house.run("network", "create", "lan", "--subnet", "10.77.0.0/24", "--subnet6", "none")
    house.run("network", "create", "dmz", "--subnet", "10.88.0.0/24", "--subnet6", "none")
    house.run("launch", "micro", "web", "--memory", "128M")
    for name, network in (("db", "lan,address4=10.77.0.10"), ("gate", "dmz,address4=10.88.0.10")):
        house.run("launch", "micro", name, "--memory", "128M", "--network", network)


def sh(house: House, script: str, *, ok: bool = True) -> str:
    return house.out("exec", "web", "--", "sh", "-c", script, ok=ok)


def cards(house: House) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = house.json("nic", "ls", "web")
    return found


def has(house: House, address: str, *, card: str = "eth1") -> None:
    """Until the guest has it: it asks when it notices the card."""
    until(
        lambda: f"inet {address}/" in sh(house, f"ip -4 address show dev {card}", ok=False),
        say=f"{card} has {address}",
        seconds=240,
    )


def reaches(house: House, address: str) -> bool:
    done = house.run("exec", "web", "--", "ping", "-c", "2", "-W", "2", address, ok=False)
    return done.returncode == 0


def place(house: House, card: str = "eth1") -> str:
    """On the PCI bus."""
    return sh(house, f"readlink -f /sys/class/net/{card}/device").rpartition("/")[0].strip()


def servers(house: House) -> list[str]:
    """Whom the guest asks for names, the first first."""
    return [line.split()[1] for line in sh(house, "cat /etc/resolv.conf").splitlines()]


def test_a_card_comes_to_a_running_guest(house: House) -> None:
    assert not reaches(house, "10.77.0.10")
    said = house.out("nic", "add", "web", "--network", "lan")
    first, second = cards(house)
    assert said == f"Card 1 of web is on lan ({second['mac']})\n"
    has(house, second["has4"])
    assert second["has4"].startswith("10.77.0.") and reaches(house, "10.77.0.10")
    assert reaches(house, first["has4"].rpartition(".")[0] + ".1")
    assert "Card 1:" in house.out("info", "web")
    own = first["has4"].rpartition(".")[0] + ".1"
    assert servers(house) == [own, "10.77.0.1"], "the first card's is asked first"
    assert f"default via {own} dev eth0" in sh(house, "ip route").splitlines()[0]


def test_it_moves_to_another_network_under_a_new_daemon(house: House) -> None:
    house.kill_daemon()
    house.run("nic", "set", "web", "1", "network=dmz")
    sh(house, ASK_AGAIN)
    has(house, cards(house)[1]["has4"])
    assert cards(house)[1]["has4"].startswith("10.88.0.")
    assert reaches(house, "10.88.0.10") and not reaches(house, "10.77.0.10")


def test_an_address_that_somebody_chose(house: House) -> None:
    taken = house.run("nic", "set", "web", "1", "address4=10.88.0.10", ok=False)
    assert taken.returncode == 5 and b"card 0 of guest 'gate'" in taken.stderr
    outside = house.run("nic", "set", "web", "1", "address4=10.77.0.77", ok=False)
    assert outside.returncode == 2 and b"10.88.0.0/24" in outside.stderr
    house.run("nic", "set", "web", "1", "address4=10.88.0.77")
    sh(house, ASK_AGAIN)
    has(house, "10.88.0.77")
    assert reaches(house, "10.88.0.10")
    # The rules know that address, and no other.
    sh(house, "ip address flush dev eth1; ip address add 10.88.0.78/24 dev eth1")
    assert not reaches(house, "10.88.0.10")
    sh(house, "ip address flush dev eth1; ip address add 10.88.0.77/24 dev eth1")
    assert reaches(house, "10.88.0.10")


def test_its_cable_is_pulled(house: House) -> None:
    house.run("nic", "set", "web", "1", "link=down")
    until(lambda: "NO-CARRIER" in sh(house, "ip link show dev eth1"), say="no link")
    assert not reaches(house, "10.88.0.10")
    house.run("nic", "set", "web", "1", "link=up")
    until(lambda: "NO-CARRIER" not in sh(house, "ip link show dev eth1"), say="a link")
    assert reaches(house, "10.88.0.10")


def test_all_of_it_is_there_after_a_restart_and_a_crash(house: House) -> None:
    before, where = cards(house), place(house)
    house.run("nic", "set", "web", "1", "link=down")
    house.run("restart", "--force", "web")
    until(
        lambda: not house.run("exec", "web", "--", "true", ok=False).returncode,
        say="it is up",
        seconds=240,
    )
    assert "NO-CARRIER" in sh(house, "ip link show dev eth1")
    house.run("nic", "set", "web", "1", "link=up")
    has(house, "10.88.0.77")
    assert cards(house) == before and place(house) == where
    assert reaches(house, "10.88.0.10")
    os.kill(house.pid("web"), signal.SIGKILL)
    until(lambda: house.status("web")["state"] in {"stopped", "failed"}, say="its end is known")
    house.run("start", "--wait", "web")
    has(house, "10.88.0.77")
    assert cards(house) == before and place(house) == where


def test_it_goes_and_the_guest_lets_go_of_it(house: House) -> None:
    soldered = house.run("nic", "rm", "web", "0", ok=False)
    assert soldered.returncode == 5 and b"link=down" in soldered.stderr
    house.run("nic", "rm", "web", "1")
    assert "eth1" not in sh(house, "ls /sys/class/net")
    assert [card["index"] for card in cards(house)] == [0]
    assert not reaches(house, "10.88.0.10")
    assert len(servers(house)) == 1
    # Its address is free again.
    house.run("nic", "add", "web", "--network", "dmz", "--address4", "10.88.0.77")
    has(house, "10.88.0.77")
    assert reaches(house, "10.88.0.10")


def test_a_network_of_its_own_only_for_who_began_with_one(house: House) -> None:
    refused = house.run("nic", "add", "web", "--network", "builtin", ok=False)
    assert refused.returncode == 5 and b"Stop the guest first" in refused.stderr
    assert len(cards(house)) == 2
    house.run("stop", "--force", "web")
    house.run("nic", "add", "web", "--network", "builtin")
    house.run("nic", "rm", "web", "0")
    house.run("start", "--wait", "web")
    assert [card["index"] for card in cards(house)] == [1, 2]
    has(house, "10.0.2.15", card="eth1")
    house.run("nic", "rm", "web", "2")
    assert "eth1" not in sh(house, "ls /sys/class/net")
    house.run("nic", "add", "web", "--network", "builtin")
    has(house, "10.0.2.15", card="eth1")
