"""What a card may claim to be: always on, for every card, without state.

The rules are as many for a thousand cards as for one: who may say what stands in sets. What is
not ARP, IPv4 or IPv6 is dropped, so that nothing is hidden in a VLAN tag.

Link-local IPv6 addresses are made up by the guest, often at random, so they cannot be listed: a
card may use any but those that are known to be another's or the house's.
"""

from __future__ import annotations

import ipaddress

from guesthouse.model.firewall import Action, Direction
from guesthouse.network.rules.cards import card_chains, offer_sets
from guesthouse.network.rules.house import KNOWN, NEIGHBOURS, dropped, known
from guesthouse.network.rules.ruleset import Ruleset
from guesthouse.network.rules.statements import refuse_lines
from guesthouse.network.rules.text import Table, quoted

FLOODED = "ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00"


def bridge_chains(table: Table, ruleset: Ruleset) -> None:
    """Everything of `table bridge guesthouse`."""
    _sets(table, ruleset)
    _frames(table)
    _arp(table)
    _ip4(table)
    _ip6(table)
    if ruleset.features.bridge_state == "conntrack":
        _stateful(table, ruleset)
    else:
        _flooding(table, ruleset)


def _sets(table: Table, ruleset: Ruleset) -> None:
    cards = ruleset.cards
    table.set("taps", "type ifname", [quoted(c.tap) for c in cards])
    table.set("macs", "typeof iifname . ether saddr", [f"{quoted(c.tap)} . {c.mac}" for c in cards])
    table.set("any_address", "type ifname", [quoted(c.tap) for c in cards if c.any_address])
    own4 = [(c.tap, a) for c in cards for a in c.of_version(4)]
    own6 = [(c.tap, a) for c in cards for a in (*c.of_version(6), *c.all_link_locals)]
    table.set("own4", "typeof iifname . ip saddr", [f"{quoted(t)} . {a}" for t, a in own4])
    table.set("own6", "typeof iifname . ip6 saddr", [f"{quoted(t)} . {a}" for t, a in own6])
    # nft before 1.0.9 has no name for the address that an advertisement is about: it is raw.
    table.set(
        "own_targets",
        "typeof iifname . @th,64,128",
        [f"{quoted(tap)} . {_raw(address)}" for tap, address in own6],
    )
    table.set("reserved", "type ipv6_addr", ruleset.reserved)
    table.set("reserved_targets", "typeof @th,64,128", map(_raw, ruleset.reserved))
    table.set("neighbours", "type icmpv6_type", NEIGHBOURS)


def _raw(address: str) -> str:
    return f"0x{int(ipaddress.IPv6Address(address)):032x}"


def _frames(table: Table) -> None:
    table.chain(
        "frames",
        ["iifname @taps goto frame"],
        hook="filter prerouting -300 accept",
    )
    table.chain(
        "frame",
        [
            f"iifname . ether saddr != @macs {dropped(table, 'spoof/mac')}",
            "ether type ip goto ip4_frame",
            "ether type ip6 goto ip6_frame",
            "ether type arp goto arp_frame",
            dropped(table, "spoof/ethertype"),
        ],
    )


def _arp(table: Table) -> None:
    table.chain(
        "arp_frame",
        [
            f"iifname . arp saddr ether != @macs {dropped(table, 'spoof/arp')}",
            "iifname @any_address accept",
            "arp operation request arp saddr ip 0.0.0.0 accept",  # RFC 5227: is it in use?
            f"iifname . arp saddr ip != @own4 {dropped(table, 'spoof/arp')}",
        ],
    )


def _ip4(table: Table) -> None:
    table.chain(
        "ip4_frame",
        [
            f"udp sport 67 {dropped(table, 'spoof/dhcp-server')}",
            f"icmp type redirect {dropped(table, 'spoof/redirect')}",
            "iifname @any_address accept",
            "ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept",
            f"iifname . ip saddr != @own4 {dropped(table, 'spoof/ipv4')}",
        ],
    )


def _ip6(table: Table) -> None:
    table.chain(
        "ip6_frame",
        [
            f"icmpv6 type nd-router-advert {dropped(table, 'spoof/router-advert')}",
            f"icmpv6 type nd-redirect {dropped(table, 'spoof/redirect')}",
            f"icmpv6 type mld-listener-query {dropped(table, 'spoof/mld-query')}",
            f"udp sport 547 {dropped(table, 'spoof/dhcp-server')}",
            # A fragment can hide any of these (RFC 6980), and link-local traffic needs none.
            f"ip6 saddr fe80::/10 exthdr frag exists {dropped(table, 'spoof/fragment')}",
            # To one address, but shown to all: it would pass nobody's rules.
            f"{FLOODED} ip6 daddr != ff00::/8 {dropped(table, 'spoof/flooded')}",
            "icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @own_targets "
            "jump foreign_target",
            "ip6 saddr :: icmpv6 type @neighbours accept",
            "iifname . ip6 saddr @own6 accept",
            "ip6 saddr fe80::/10 ip6 saddr != @reserved accept",
            "iifname @any_address ip6 saddr != fe80::/10 accept",
            dropped(table, "spoof/ipv6"),
        ],
    )
    table.chain(
        "foreign_target",
        [
            # The first ten bits of a link-local address.
            "@th,64,10 0x3fa @th,64,128 != @reserved_targets return",
            "@th,64,10 != 0x3fa iifname @any_address return",
            dropped(table, "spoof/neighbour-advert"),
        ],
    )


def _flooding(table: Table, ruleset: Ruleset) -> None:
    """Broadcasts pass the inet table once for all ports, so rules cannot tell who gets them:
    cards whose policy is not `accept` get none, but for what neighbours need."""
    closed = [
        quoted(card.tap)
        for card in ruleset.cards
        if ruleset.policy_of(card, Direction.IN)[0] is not Action.ACCEPT
    ]
    if not closed:
        return
    table.set("closed", "type ifname", closed)
    table.chain(
        "flooded",
        [
            "icmpv6 type @neighbours accept",
            f"oifname @closed ether type {{ ip, ip6 }} {FLOODED} {dropped(table, 'wall/flooded')}",
        ],
        hook="filter forward filter accept",
    )


def _stateful(table: Table, ruleset: Ruleset) -> None:
    """The rules between guests of one bridge, where the bridge itself tracks connections."""
    offer_sets(table, ruleset)
    table.chain("refuse", refuse_lines() if ruleset.features.bridge_reject else ["drop"])
    card_chains(table, ruleset)
    table.chain(
        "sent",
        [*known(table), "iifname vmap @senders"],
        hook="filter forward filter - 1 accept",
    )
    table.chain(
        "received",
        [*KNOWN, "oifname vmap @receivers"],
        hook="filter forward filter accept",
    )
