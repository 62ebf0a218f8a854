"""The dry run and the kernel, asked the same: real packets in namespaces."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from guesthouse.errors import InvalidInput
from guesthouse.model.firewall import Action, Traffic
from guesthouse.network.rules.compiling import bridge_settings, compile_ruleset
from guesthouse.network.rules.deciding import Verdict, decide
from guesthouse.network.rules.packet import Packet, Way, find_way
from guesthouse.network.rules.probing import NF_CALL
from guesthouse.network.rules.ruleset import Ruleset

from ..firewall_house import COMMON, house, ident
from ..firewall_kernel import (
    ETHERTYPES,
    OUTSIDE,
    TAP0_MAC,
    UPLINK_MAC,
    KernelHouse,
    echo,
    ethernet,
    ip,
    kernel_house,
    syn,
    udp,
)

pytestmark = pytest.mark.root

WIRE = f"u-{ident('network', 'office')[-8:].lower()}"
"""The port of a bridge that leads to the host's interface."""
NETWORKS: dict[str, dict[str, Any]] = {
    "lan": {},
    "dmz": {},
    "cell": {"kind": "isolated"},
    "office": {"kind": "bridged", "uplink": "wire0"},
}
HOMES = {"web": "lan", "db": "lan", "app": "dmz", "log": "dmz", "inmate": "cell"}
HOMES |= {"desk": "office", "chair": "office"}
OFFICE = {
    "desk": ["192.168.50.11", "2001:db8:50::11"],
    "chair": ["192.168.50.12", "2001:db8:50::12"],
}
BRIDGE_OF_WIRE = f"br-{ident('network', 'office')[-8:].lower()}"
STATIONS = ("192.168.50.200", "2001:db8:50::200")
HOST = ["192.168.77.5"]
PUBLISHED = [
    {"port": 8080, "address": "10.200.1.11", "guest_port": 80},
    {"port": 5353, "protocol": "udp", "address": "10.200.2.13", "guest_port": 53},
    {"port": 8080, "address": "fd42:200:1::1002", "guest_port": 443},
]
UPLINK = {4: "10.0.2.100", 6: "fd00::100"}
PORTS = (22, 53, 80, 443, 8080, 8443)
FAR = (
    "192.168.77.5",
    "192.168.77.9",
    "198.51.100.7",
    "10.99.0.1",
    "2001:db8::7",
    "169.254.169.254",
)
ENDS = (
    *(f"guest:{name}" for name in HOMES),
    *(f"network:{name}" for name in NETWORKS),
    "group:peers", "group:front", "set:office", "host", "lan", "outside",
    "10.200.1.0/24", "10.200.2.13", "192.168.77.0/24", "0.0.0.0/0", "::/0", "198.51.100.7",
    "192.168.77.5", "fd42:200:2::/64",
)  # fmt: skip
SEED = int(os.environ.get("GUESTHOUSE_SEED", "0")) or random.randrange(1 << 30)


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelHouse]:
    with kernel_house(house(case({}, {}, {}))) as made:
        yield made


def kinds_of_state(kernel: KernelHouse) -> list[dict[str, Any]]:
    """Features, for every way in which this kernel can track what stays on one bridge."""

    def takes(rule: str) -> bool:
        chain = f"chain c {{\ntype filter hook forward priority 0\n{rule}\n}}"
        text = f"table bridge t {{\n{chain}\n}}\n"
        return not kernel.space.run("nft", "--check", "-f", "-", text=text).returncode

    found = [COMMON] if not kernel.space.run(*NF_CALL).returncode else []
    if takes("ct state established accept"):
        reject = takes("reject")
        found.append({**COMMON, "bridge_state": "conntrack", "bridge_reject": reject})
    assert found, "this kernel cannot filter between guests of one network"
    return found


def case(
    guests: dict[str, Any],
    networks: dict[str, Any],
    groups: dict[str, Any],
    features: dict[str, Any] = COMMON,
) -> dict[str, Any]:
    return {
        "features": features,
        "networks": {name: {**NETWORKS[name], **networks.get(name, {})} for name in NETWORKS},
        "guests": {
            name: {
                "network": HOMES[name],
                **({"addresses": OFFICE[name]} if name in OFFICE else {}),
                **guests.get(name, {}),
            }
            for name in HOMES
        },
        "groups": {"peers": [], "front": [], **groups},
        "sets": {"office": ["198.51.100.0/24", "2001:db8::/32", "10.200.2.14"]},
        "published": PUBLISHED,
        "host": HOST,
    }


# --- random houses and packets ------------------------------------------------------------------


def some(draw: random.Random, values: tuple[Any, ...], most: int) -> list[Any]:
    return draw.sample(values, draw.choice([0, 0, *range(1, most + 1)]))


def random_rules(draw: random.Random) -> list[dict[str, Any]]:
    found = []
    for number in range(draw.randrange(5)):
        protocol = draw.choice(["any", "tcp", "tcp", "udp", "icmp"])
        ports = ["22", "53", "80-90", "443", "8000-9000"] if protocol in {"tcp", "udp"} else []
        rule = {
            "name": f"r{number}",
            "direction": draw.choice(["in", "out"]),
            "action": draw.choice(["accept", "accept", "drop", "reject"]),
            "protocol": protocol,
            "ports": some(draw, tuple(ports), 5) if ports else [],
            "enabled": draw.random() < 0.9,
            "log": draw.random() < 0.2,
        }
        far = "sources" if rule["direction"] == "in" else "destinations"
        rule[far] = some(draw, ENDS, 3)
        if draw.random() < 0.2:
            near = "destinations" if far == "sources" else "sources"
            rule[near] = draw.sample(("guest:web", "group:peers", "0.0.0.0/0", "::/0"), 2)
        found.append(rule)
    return found


def random_house(draw: random.Random, features: dict[str, Any]) -> Ruleset:
    def firewall(groups: bool) -> dict[str, Any]:
        policy = {
            way: draw.choice(["accept", "drop", "reject"])
            for way in ("incoming", "outgoing")
            if draw.random() < 0.4
        }
        named = some(draw, ("peers", "front"), 2) if groups else []
        return {"rules": random_rules(draw), "groups": named, "policy": policy}

    networks = {
        name: {
            **(firewall(draw.random() < 0.2) if draw.random() < 0.5 else {}),
            "host_access": draw.random() < 0.2,
            "lan_access": draw.random() < 0.5,
        }
        for name in NETWORKS
    }
    guests = {name: firewall(groups=True) for name in HOMES if draw.random() < 0.8}
    groups = {name: random_rules(draw) for name in ("peers", "front")}
    return house(case(guests, networks, groups, features))


def random_packet(draw: random.Random, ruleset: Ruleset) -> Packet:
    sender = draw.choice([*ruleset.cards, *ruleset.cards, None])
    inside = [a for card in ruleset.cards for a in card.addresses]
    gateways = [g for n in ruleset.networks for g in (n.gateway4, n.gateway6)]
    beside = (
        [card.all_link_locals[0] for card in ruleset.cards if card.network == sender.network]
        if sender
        else []
    )
    destination = draw.choice([*inside, *inside, *FAR, *FAR, *STATIONS, *gateways, *beside])
    if sender is None:
        destination = draw.choice(["", *inside])
    version = 6 if ":" in destination or (not destination and draw.random() < 0.3) else 4
    outsider = draw.choice({4: ["198.51.100.7", STATIONS[0]], 6: ["2001:db8::7", ""]}[version])
    return Packet(
        sender=sender.tap if sender else "",
        destination=destination,
        source="" if sender else outsider,
        protocol=draw.choice([Traffic.TCP, Traffic.UDP, Traffic.ICMP])
        if destination
        else draw.choice([Traffic.TCP, Traffic.UDP]),
        port=draw.choice(PORTS) if destination else draw.choice([8080, 5353, 22]),
    )


# --- one packet as a frame ----------------------------------------------------------------------


def token(number: int) -> bytes:
    return b"guesthouse-%08d" % number


def port_of(number: int) -> int:
    return 20_000 + number % 40_000


def frame(kernel: KernelHouse, ruleset: Ruleset, way: Way, packet: Packet, number: int) -> bytes:
    """`packet` as it would leave its sender: the token and the ports say which it is."""
    port = port_of(number)
    version = way.source.version
    body, protocol = {
        Traffic.TCP: (syn(port, packet.port, token(number)), 6),
        Traffic.UDP: (udp(port, packet.port, token(number)), 17),
        Traffic.ICMP: (echo(version, port, token(number)), 1 if version == 4 else 58),
    }[packet.protocol]
    destination = str(way.destination) if packet.destination else UPLINK[version]
    data = ip(str(way.source), destination, protocol, body)
    if way.sender is None and way.bridged and way.receiver:
        return ethernet(kernel.mac(WIRE), way.receiver.mac, ETHERTYPES[version], data)
    if way.sender is None:
        return ethernet(UPLINK_MAC, TAP0_MAC, ETHERTYPES[version], data)
    hop = kernel.mac(ruleset.network_of[way.sender.network].bridge)
    if way.bridged:
        hop = way.receiver.mac if way.receiver else kernel.mac(WIRE)
    return ethernet(way.sender.mac, hop, ETHERTYPES[version], data)


def ends(way: Way) -> tuple[str, str]:
    """Where the packet is sent, and where it is to be seen."""
    elsewhere = WIRE if way.bridged else OUTSIDE
    return (
        way.sender.tap if way.sender else elsewhere,
        way.receiver.tap if way.receiver else elsewhere,
    )


def test_the_dry_run_says_what_the_kernel_does(kernel: KernelHouse) -> None:
    print(f"GUESTHOUSE_SEED={SEED}")
    draw = random.Random(SEED)
    number = 0
    reached: Counter[str] = Counter()
    states = kinds_of_state(kernel)
    for turn in range(12):
        ruleset = random_house(draw, states[turn % len(states)])
        kernel.settings(bridge_settings(ruleset))
        kernel.load(compile_ruleset(ruleset))
        kernel.drain()
        sent: dict[int, tuple[Packet, Way, Verdict]] = {}
        for _ in range(150):
            packet = random_packet(draw, ruleset)
            try:
                way, verdict = find_way(ruleset, packet), decide(ruleset, packet)
            except InvalidInput:
                continue  # nobody has that address
            if way.receiver is way.sender:
                continue
            number += 1
            sent[number] = (packet, way, verdict)
            kernel.send(ends(way)[0], frame(kernel, ruleset, way, packet, number))
        assert len(sent) > 75, "most packets can be sent"
        check(kernel, sent)
        reached.update(verdict.rule.partition("/")[0] for _, _, verdict in sent.values())
    # Rules of all owners, walls and policies did decide, or this would prove little.
    assert {"guest", "group", "network", "wall", "house"} <= set(reached), reached


def check(kernel: KernelHouse, sent: dict[int, tuple[Packet, Way, Verdict]]) -> None:
    seen = kernel.seen()
    for number, (packet, way, verdict) in sent.items():
        marked = [f for f in seen if token(number) in f.data]
        origin, target = ends(way)
        arrived = any(f.at == target for f in marked)
        if way.gateway:
            # The house itself answers or not; counters say which rule it was.
            continue
        assert arrived is (verdict.action is Action.ACCEPT), (SEED, packet, verdict)
        on_wire = way.came_by == BRIDGE_OF_WIRE or WIRE in ends(way)
        if on_wire and packet.protocol is not Traffic.TCP:
            continue  # the house has no way back to a network on which it has no address
        refused = any(
            f.at == origin and (token(number) in f.data or f.reset_of == port_of(number))
            for f in seen
        )
        assert refused is (verdict.action is Action.REJECT), (SEED, packet, verdict)
    counted = {key: count.packets for key, count in kernel.counters().items() if count.packets}
    expected: Counter[str] = Counter()
    for _, _, verdict in sent.values():
        expected.update([*verdict.passed, verdict.rule])
    for key in set(counted) | set(expected):
        if key in {"house/established", "house/invalid"} or "/policy-" in key:
            continue  # answers to refusals; and who has no rules has no chain that counts
        assert counted.get(key, 0) == expected[key], (SEED, key)
