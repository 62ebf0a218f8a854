"""The chains that every packet passes: walls, services of the house, published ports, NAT.

What a guest sends and what a guest gets are judged by two chains of one hook: `accept` in the
first ends only that, and the packet meets the second (nft(8), "verdict statements").
"""

from __future__ import annotations

from guesthouse.model.firewall import Wall
from guesthouse.model.network import Network, NetworkKind
from guesthouse.network.rules.cards import (
    card_chains,
    offer_sets,
    published_line,
    unsolicited_lines,
)
from guesthouse.network.rules.ruleset import Ruleset, of_kind
from guesthouse.network.rules.statements import MARKS, outward, refuse_lines
from guesthouse.network.rules.text import Table, quoted

NEIGHBOURS = (
    "nd-router-solicit",
    "nd-router-advert",
    "nd-neighbor-solicit",
    "nd-neighbor-advert",
    "mld-listener-query",
    "mld-listener-report",
    "mld-listener-done",
    "mld2-listener-report",
)
"""What IPv6 needs to find neighbours (RFC 4890 section 4.4.1); `spoofing` keeps it honest."""

KNOWN = ("ct state { established, related } accept", "icmpv6 type @neighbours accept")
"""For the second of two chains, where they have been counted."""

DHCP_PORTS = {4: 67, 6: 547}
"""Of servers, by version of IP."""
DNS_PORT = 53
CLOSED = "house/closed"


def house_chains(table: Table, ruleset: Ruleset) -> None:
    """Everything of `table inet guesthouse`."""
    _device_sets(table, ruleset)
    offer_sets(table, ruleset)
    table.chain("refuse", refuse_lines())
    card_chains(table, ruleset)
    _forwarding(table, ruleset)
    _local(table)
    _translation(table, ruleset)


def _device_sets(table: Table, ruleset: Ruleset) -> None:
    def names(networks: list[Network]) -> list[str]:
        return [quoted(network.bridge) for network in networks]

    networks = list(ruleset.networks)
    table.set("bridges", "type ifname", names(networks))
    table.set("isolated", "type ifname", names(of_kind(ruleset, NetworkKind.ISOLATED)))
    table.set("natted", "type ifname", names(of_kind(ruleset, NetworkKind.NAT)))
    table.set("no_host", "type ifname", names([n for n in networks if not n.host_access]))
    table.set("no_lan", "type ifname", names([n for n in networks if not n.lan_access]))
    table.set(
        "within",
        "typeof iifname . oifname",
        [f"{name} . {name}" for name in names(networks)],
    )
    asked = [(n.bridge, n) for n in networks]
    asked += [(ruleset.direct, n) for n in networks if ruleset.direct and n.connected]
    for version, kind, own in ((4, "ip", "gateway4"), (6, "ip6", "gateway6")):
        table.set(
            f"gateways{version}",
            f"typeof iifname . {kind} daddr",
            [f"{quoted(dev)} . {getattr(n, own)}" for dev, n in asked if getattr(n, own)],
        )
    table.set("neighbours", "type icmpv6_type", NEIGHBOURS)
    _subnet_sets(table, "behind", of_kind(ruleset, NetworkKind.NAT))
    _subnet_sets(table, "inside", networks)


def _subnet_sets(table: Table, name: str, networks: list[Network]) -> None:
    for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        subnets = [s for n in networks for s in n.subnets if s.version == version]
        table.set(f"{name}{version}", f"type {kind}; flags interval", map(str, subnets))


def known(table: Table) -> list[str]:
    """Answers pass, and so do neighbours; what belongs to no connection that can be does not."""
    return [
        f"ct state {{ established, related }} {accepted(table, 'house/established')}",
        f"ct state invalid {dropped(table, 'house/invalid')}",
        *KNOWN[1:],
    ]


def accepted(table: Table, key: str) -> str:
    return f"{table.counter(key)} accept comment {quoted(key)}"


def dropped(table: Table, key: str) -> str:
    return f"{table.counter(key)} drop comment {quoted(key)}"


def _mark(wall: Wall) -> str:
    return f"meta mark set {MARKS[wall]}"


def _shut(table: Table, wall: Wall) -> str:
    return f"meta mark {MARKS[wall]} {dropped(table, f'wall/{wall.value}')}"


def _forwarding(table: Table, ruleset: Ruleset) -> None:
    uplink = outward(ruleset)
    alone = dropped(table, "wall/isolated")
    again = dropped(table, "wall/isolated")
    table.chain(
        "sent",
        [
            *known(table),
            f"iifname @isolated iifname . oifname != @within {alone}",
            f"oifname @isolated iifname . oifname != @within {again}",
            f"iifname @no_lan oifname {uplink} ip daddr @lan4 {_mark(Wall.LAN)}",
            f"iifname @no_lan oifname {uplink} ip6 daddr @lan6 {_mark(Wall.LAN)}",
            f"iifname @no_host ip daddr @host4 {_mark(Wall.HOST)}",
            f"iifname @no_host ip6 daddr @host6 {_mark(Wall.HOST)}",
            "ether saddr vmap @senders",
            _shut(table, Wall.HOST),
            _shut(table, Wall.LAN),
        ],
        hook="filter forward filter - 1 accept",
    )
    table.chain(
        "received",
        [
            *KNOWN,
            "ether daddr vmap @receivers",
            "iifname @bridges oifname @bridges iifname . oifname != @within " + _mark(Wall.NETWORK),
            "oifname . ip daddr vmap @receivers4",
            "oifname . ip6 daddr vmap @receivers6",
            _shut(table, Wall.NETWORK),
            published_line(table),
            *(f"oifname @natted {line}" for line in unsolicited_lines(table, ruleset)),
        ],
        hook="filter forward filter accept",
    )


def _local(table: Table) -> None:
    """To the house itself: addresses, names and echoes, each from its own network only."""
    dhcp = f"iifname @bridges udp dport {{ {', '.join(map(str, DHCP_PORTS.values()))} }}"
    table.chain(
        "sent_local",
        [
            'iifname "lo" accept',
            *known(table),
            f"{dhcp} {accepted(table, 'house/dhcp')}",
            "ether saddr vmap @senders",
        ],
        hook="filter input filter - 1 accept",
    )
    table.chain(
        "services",
        [
            f"udp dport {DNS_PORT} {accepted(table, 'house/dns')}",
            f"tcp dport {DNS_PORT} {accepted(table, 'house/dns')}",
            f"icmp type echo-request {accepted(table, 'house/echo')}",
            f"icmpv6 type echo-request {accepted(table, 'house/echo')}",
        ],
    )
    table.chain(
        "local",
        [
            'iifname "lo" accept',
            *KNOWN,
            f"{dhcp} accept",
            "iifname . ip daddr @gateways4 jump services",
            "iifname . ip6 daddr @gateways6 jump services",
            "iifname @bridges ip6 daddr fe80::/10 jump services",
            dropped(table, CLOSED),
        ],
        hook="filter input filter drop",
    )


def _translation(table: Table, ruleset: Ruleset) -> None:
    uplink = quoted(ruleset.uplink)
    publishing = []
    for version, word, kind in ((4, "ip", "ipv4_addr"), (6, "ip6", "ipv6_addr")):
        for protocol in ("tcp", "udp"):
            name = f"published_{protocol}{version}"
            table.map(
                name,
                f"type inet_service : {kind} . inet_service",
                {
                    str(p.port): f"{p.address} . {p.guest_port}"
                    for p in ruleset.published
                    if p.map_name == name
                },
                keep=True,
            )
            publishing.append(
                f"iifname {uplink} {word} daddr != @inside{version} "
                f"dnat {word} to {protocol} dport map @{name}"
            )
    table.chain("publishing", publishing, hook="nat prerouting dstnat accept")
    table.chain(
        "masquerading",
        [
            f"oifname {outward(ruleset)} ip saddr @behind4 masquerade",
            f"oifname {outward(ruleset)} ip6 saddr @behind6 masquerade",
        ],
        hook="nat postrouting srcnat accept",
    )
