"""What the kernel makes of the rules beyond single packets: answers, published ports, floods, loads
one after another. Real packets in namespaces."""

from __future__ import annotations

import itertools
import json
import re
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guesthouse.model.device import Protocol
from guesthouse.network.rules.compiling import (
    CHAINS,
    acting_table,
    bridge_settings,
    compile_ruleset,
    compile_staged,
    next_table,
    publish_text,
    unpublish_text,
)
from guesthouse.network.rules.ruleset import Published, Ruleset

from ..firewall_house import house
from ..firewall_kernel import (
    OUTSIDE,
    TAP0_MAC,
    UPLINK_MAC,
    KernelHouse,
    arp,
    ethernet,
    ip,
    kernel_house,
    udp,
)

pytestmark = pytest.mark.root

WEB, DB, APP = "t1-0", "t2-0", "t3-0"
ADDRESSES = {WEB: "10.200.1.11", DB: "10.200.1.12", APP: "10.200.2.13"}
NETWORKS = ("lan", "lan", "dmz")
WORLD = "198.51.100.7"
PORTS = itertools.count(30_000)


def small(**guests: dict[str, Any]) -> Ruleset:
    homes = zip(("web", "db", "app"), NETWORKS, strict=True)
    named = {name: {"network": home, **guests.get(name, {})} for name, home in homes}
    return house({"networks": {"lan": {}, "dmz": {}}, "guests": named})


@pytest.fixture(scope="module")
def built() -> Iterator[KernelHouse]:
    with kernel_house(small()) as made:
        yield made


@pytest.fixture
def kernel(built: KernelHouse) -> KernelHouse:
    built.space.ok("nft", "flush", "ruleset")
    return built


def load(kernel: KernelHouse, ruleset: Ruleset) -> None:
    kernel.settings(bridge_settings(ruleset))
    kernel.load(compile_ruleset(ruleset))
    kernel.drain()


def datagram(kernel: KernelHouse, source: str, target: str, ports: tuple[int, int]) -> bytes:
    """From a card to another, or to the world."""
    body = udp(*ports, b"traffic")
    to = ADDRESSES.get(target, WORLD)
    near = NETWORKS[int(source[1]) - 1]
    bridge = kernel.mac(f"br-0000n{near.replace('l', '1')}")
    beside = target in ADDRESSES and NETWORKS[int(target[1]) - 1] == near
    hop = kernel.mac(target) if beside else bridge
    return ethernet(kernel.mac(source), hop, 0x0800, ip(ADDRESSES[source], to, 17, body))


def passes(kernel: KernelHouse, source: str, target: str, ports: tuple[int, int]) -> bool:
    kernel.drain()
    kernel.send(source, datagram(kernel, source, target, ports))
    return any(f.at == target and b"traffic" in f.data for f in kernel.seen())


def test_answers_pass_where_questions_do_not(kernel: KernelHouse) -> None:
    """Between guests of one bridge too, by whatever this kernel has for that."""
    load(kernel, small(web={"policy": {"incoming": "drop"}}, db={"policy": {"outgoing": "drop"}}))
    port = next(PORTS)
    assert not passes(kernel, DB, WEB, (53, port))
    assert passes(kernel, WEB, DB, (port, 53))
    assert passes(kernel, DB, WEB, (53, port)), "an answer"
    assert not passes(kernel, DB, WEB, (53, port + 5000)), "a question"
    counted = kernel.counters()
    assert counted["house/established"].packets == 1


def test_a_connection_outlives_the_rule_that_let_it_through(kernel: KernelHouse) -> None:
    ports = (next(PORTS), 5432)
    rule = {"name": "db", "protocol": "udp", "ports": ["5432"]}
    load(kernel, small(db={"rules": [rule], "policy": {"incoming": "drop"}}))
    assert passes(kernel, WEB, DB, ports)
    assert passes(kernel, DB, WEB, ports[::-1]), "answered: now it is a connection"
    load(kernel, small(db={"policy": {"incoming": "drop"}}))
    assert passes(kernel, WEB, DB, ports)
    assert not passes(kernel, WEB, DB, (next(PORTS), 5432))


def test_networks_are_apart_and_the_control_run_shows_by_what(kernel: KernelHouse) -> None:
    port = next(PORTS)
    assert passes(kernel, WEB, APP, (port, 9)), "without rules the house routes"
    load(kernel, small())
    assert not passes(kernel, WEB, APP, (next(PORTS), 9))
    assert kernel.counters()["wall/network"].packets == 1


def test_what_a_guest_sends_out_comes_from_the_house(kernel: KernelHouse) -> None:
    load(kernel, small())
    kernel.send(WEB, datagram(kernel, WEB, OUTSIDE, (next(PORTS), 53)))
    seen = [f for f in kernel.seen() if b"traffic" in f.data]
    assert [f.at for f in seen] == [OUTSIDE]
    assert seen[0].data[26:30] == socket.inet_aton("10.0.2.100")


def asked(kernel: KernelHouse, port: int) -> list[str]:
    """Who gets what comes for a port of the uplink, and at which port of theirs."""
    kernel.drain()
    body = udp(next(PORTS), port, b"knock")
    packet = ip(WORLD, "10.0.2.100", 17, body)
    kernel.send(OUTSIDE, ethernet(UPLINK_MAC, TAP0_MAC, 0x0800, packet))
    seen = [f for f in kernel.seen() if b"knock" in f.data]
    return [f"{f.at}:{struct.unpack('!H', f.data[36:38])[0]}" for f in seen if f.at != OUTSIDE]


def test_ports_open_and_close_without_a_load(kernel: KernelHouse) -> None:
    port = Published(port=8080, protocol=Protocol.UDP, address=ADDRESSES[WEB], guest_port=80)
    load(kernel, small(web={"policy": {"incoming": "drop"}}))
    assert asked(kernel, 8080) == []
    kernel.load(publish_text(port))
    assert asked(kernel, 8080) == [f"{WEB}:80"]
    assert kernel.counters()["house/published"].packets == 1
    kernel.load(unpublish_text(port))
    assert asked(kernel, 8080) == []


def test_a_rule_of_the_guest_comes_before_its_published_port(kernel: KernelHouse) -> None:
    port = Published(port=8080, protocol=Protocol.UDP, address=ADDRESSES[WEB], guest_port=80)
    rule = {"name": "closed", "action": "drop", "protocol": "udp", "ports": ["80"]}
    load(kernel, small(web={"rules": [rule]}))
    kernel.load(publish_text(port))
    assert asked(kernel, 8080) == []


def flooded(kernel: KernelHouse) -> bool:
    kernel.drain()
    packet = ip(ADDRESSES[WEB], "10.200.1.255", 17, udp(next(PORTS), 9, b"to all"))
    kernel.send(WEB, ethernet(kernel.mac(WEB), "ff:ff:ff:ff:ff:ff", 0x0800, packet))
    return any(f.at == DB and b"to all" in f.data for f in kernel.seen())


def test_a_closed_guest_gets_no_floods(kernel: KernelHouse) -> None:
    load(kernel, small(web={"rules": [{"name": "any"}]}))
    assert flooded(kernel)
    load(kernel, small(db={"policy": {"incoming": "drop"}}))
    assert not flooded(kernel)


def test_a_rule_holds_for_what_is_for_one_but_shown_to_all(kernel: KernelHouse) -> None:
    """A receiver takes such a frame for its own."""
    load(kernel, small(db={"rules": [{"name": "no-web", "action": "drop", "sources": ["web"]}]}))
    packet = ip(ADDRESSES[WEB], ADDRESSES[DB], 17, udp(next(PORTS), 9, b"traffic"))
    kernel.send(WEB, ethernet(kernel.mac(WEB), "ff:ff:ff:ff:ff:ff", 0x0800, packet))
    assert not [f for f in kernel.seen() if f.at == DB and b"traffic" in f.data]


def test_the_bridge_does_not_learn_from_a_lie(kernel: KernelHouse) -> None:
    """A false MAC would lead the other's packets to the liar."""
    kernel.space.ok(*f"bridge link set dev {WEB} learning on".split())
    lie = ethernet(kernel.mac(DB), "ff:ff:ff:ff:ff:ff", 0x0806, arp(kernel.mac(DB), WORLD, WORLD))

    def learned() -> bool:
        kernel.send(WEB, lie)
        kernel.seen()
        entries = json.loads(kernel.space.ok("bridge", "-j", "fdb", "show", "dev", WEB))
        return any(entry["mac"] == kernel.mac(DB) for entry in entries)

    try:
        load(kernel, small())
        assert not learned()
        kernel.space.ok("nft", "flush", "ruleset")
        assert learned(), "the control run"
    finally:
        kernel.space.ok(*f"bridge link set dev {WEB} learning off".split())
        back = f"bridge fdb replace {kernel.mac(DB)} dev {DB} master static"
        kernel.space.ok(*back.split())


def test_counting_goes_on_over_a_load(kernel: KernelHouse) -> None:
    rule = {"name": "any", "protocol": "udp", "ports": ["7", "9"]}
    ruleset = small(db={"rules": [rule]})
    load(kernel, ruleset)
    key = f"guest/{ruleset.cards[1].guest}/any"
    assert passes(kernel, WEB, DB, (next(PORTS), 7))
    assert passes(kernel, WEB, DB, (next(PORTS), 9))
    before = kernel.counters()
    assert before[key].packets == 2
    kernel.load(compile_ruleset(ruleset, before))
    assert kernel.counters()[key] == before[key]
    assert passes(kernel, WEB, DB, (next(PORTS), 9))
    assert kernel.counters()[key].packets == 3


def test_a_bad_load_changes_nothing(kernel: KernelHouse) -> None:
    load(kernel, small(db={"policy": {"incoming": "drop"}}))
    before = kernel.space.ok("nft", "list", "ruleset")
    bad = compile_ruleset(small()).replace("accept", "fwd", 1)
    assert kernel.space.run("nft", "-f", "-", text=bad).returncode
    assert kernel.space.ok("nft", "list", "ruleset") == before


def test_what_is_logged_reaches_its_group(kernel: KernelHouse) -> None:
    """NFLOG (linux/netfilter/nfnetlink_log.h): bound, then a message a packet."""
    rule = {"name": "noisy", "protocol": "udp", "ports": ["23"], "action": "drop", "log": True}
    ruleset = small(db={"rules": [rule]})
    load(kernel, ruleset)

    def bound() -> socket.socket:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)  # NETLINK_NETFILTER
        sock.bind((0, 0))
        sock.settimeout(10)

        def configure(attribute: bytes) -> None:
            body = struct.pack("!BBH", 0, 0, 7) + attribute
            sock.send(struct.pack("=IHHII", 16 + len(body), 0x0401, 5, 1, 0) + body)
            sock.recv(4096)

        configure(struct.pack("=HHB3x", 5, 1, 1))  # NFULA_CFG_CMD: bind
        configure(struct.pack("=HH", 10, 2) + struct.pack("!IBx", 256, 2))  # copy the packet
        return sock

    with kernel.space.inside(bound) as sock:
        assert not passes(kernel, WEB, DB, (next(PORTS), 23))
        message = sock.recv(65536)
    assert f"guest/{ruleset.cards[1].guest}/noisy drop".encode() in message
    assert b"traffic" in message


def test_a_thousand_rules_are_taken_and_all_count(kernel: KernelHouse) -> None:
    rules = [
        {
            "name": f"r{number}",
            "protocol": ("tcp", "udp")[number % 2],
            "ports": [str(1000 + number)],
            "action": ("accept", "drop")[number % 3 == 0],
            "sources": [f"198.51.{number % 100}.{number // 100}"] if number % 4 else ["guest:web"],
        }
        for number in range(500)
    ]
    ruleset = small(web={"rules": rules}, app={"rules": rules})
    load(kernel, ruleset)
    keys = {key for key in kernel.counters() if key.startswith("guest/")}
    assert len(keys) == 1000
    assert passes(kernel, WEB, DB, (next(PORTS), 9))


def thousand(**more: dict[str, Any]) -> Ruleset:
    rules = [
        {
            "name": f"r{n}",
            "protocol": "tcp",
            "ports": [f"{1000 + n}"],
            "sources": ["198.51.100.0/24"],
        }
        for n in range(1000)
    ]
    return small(web={"rules": rules}, **more)


def test_stages_act_at_once_and_only_at_the_end(kernel: KernelHouse) -> None:
    load(kernel, small(db={"policy": {"incoming": "drop"}}))
    assert acting_table(kernel.space.ok(*CHAINS).encode()) == "guesthouse"
    first = next_table(kernel.space.ok(*CHAINS).encode())
    *stages, last = compile_staged(thousand(), table=first)
    assert len(stages) > 2
    for text in stages:
        kernel.load(text)
        assert not passes(kernel, WEB, DB, (next(PORTS), 9)), "the old rules hold"
    kernel.load(last)
    assert passes(kernel, WEB, DB, (next(PORTS), 9)), "the new rules hold"
    tables = kernel.space.ok("nft", "list", "tables").splitlines()
    assert tables == [f"table bridge {first}", f"table inet {first}"]

    assert acting_table(kernel.space.ok(*CHAINS).encode()) == first
    second = next_table(kernel.space.ok(*CHAINS).encode())
    assert second != first
    for text in compile_staged(small(db={"policy": {"incoming": "drop"}}), table=second)[:-1]:
        kernel.load(text)
    # The load breaks off here: the next one sweeps up, and takes the same name.
    assert next_table(kernel.space.ok(*CHAINS).encode()) == second
    for text in compile_staged(small(db={"policy": {"incoming": "drop"}}), table=second):
        kernel.load(text)
    assert not passes(kernel, WEB, DB, (next(PORTS), 9))
    assert first not in kernel.space.ok("nft", "list", "tables")


def test_stages_are_the_same_rules(kernel: KernelHouse) -> None:
    def listed() -> list[str]:
        """By lines: the order of chains is not that of their making."""
        text = kernel.space.ok("nft", "list", "ruleset")
        return sorted(re.sub(r"guesthouse_\w", "guesthouse", text).splitlines())

    load(kernel, thousand(db={"policy": {"incoming": "reject"}}))
    whole = listed()
    for text in compile_staged(
        thousand(db={"policy": {"incoming": "reject"}}), table="guesthouse_a", budget=64 << 10
    ):
        kernel.load(text)
    assert listed() == whole


def test_a_house_without_root_takes_a_thousand_rules() -> None:
    """Root in a user namespace of its own is nobody to the host: nft's socket stays narrow."""
    texts = compile_staged(thousand(), table="guesthouse_a")
    script = "for n in $(seq 0 $1); do nft -f $2/$n || exit 1; done; nft list ruleset"
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(texts):
            Path(folder, str(number)).write_text(text)
        alone = ["unshare", "--user", "--map-root-user", "--net"]
        argv = [*alone, "sh", "-c", script, "sh", str(len(texts) - 1), folder]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(" comment ") > 1000
