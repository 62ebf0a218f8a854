"""What the house's network feeds dnsmasq and ip: one file per case (house-network/CASE.txt)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guesthouse.model.network import DhcpRange, Network, NetworkKind
from guesthouse.network.house import dnsmasq, links
from guesthouse.network.house.seats import Seat

from ..firewall_house import ident
from ..house_network import network
from .conftest import Golden

CASES = Path(__file__).parent / "house-network"
NETWORKS: dict[str, Network] = {
    "nat": network(),
    "isolated": network(kind=NetworkKind.ISOLATED),
    "routed-jumbo": network(kind=NetworkKind.ROUTED, mtu=9000),
    "only-ipv4": network(subnet6=""),
    "only-ipv6": network(subnet4="", dhcp=None),
    "fixed-addresses": network(dhcp=None),
    "no-domain": network(domain=""),
    "large": network(
        subnet4="10.201.0.0/16", dhcp=DhcpRange(first="10.201.9.1", last="10.201.9.9")
    ),
}


def seat(name: str, number: int, index: int = 0, *, of: Network, **more: Any) -> Seat:
    four = [f"10.201.1.{10 + number}"] if of.subnet4 else []
    six = [f"fd42:201:1::{1000 + number}"] if of.subnet6 else []
    return Seat(
        guest=ident("guest", name),
        index=index,
        name=name,
        number=number,
        mac=f"52:67:68:00:{index:02x}:{number:02x}",
        network=of.id,
        addresses=(*four, *six),
        **more,
    )


def written(of: Network) -> str:
    seats = [seat("web", 1, of=of), seat("db", 2, of=of), seat("db", 3, 1, of=of)]
    parts = {
        "dnsmasq": dnsmasq.configuration(of),
        dnsmasq.cards_file(of): dnsmasq.cards(seats),
        dnsmasq.options_file(of): dnsmasq.options(seats),
        dnsmasq.names_file(of): dnsmasq.names(of, seats),
        "ip": "\n".join([*links.changes(taps(seats), links.wanted_links([of], seats)), ""]),
    }
    return "".join(f"# {title}\n{text}" for title, text in parts.items())


def taps(seats: list[Seat]) -> links.Links:
    """Whoever opens them makes them."""
    return {seat.tap: links.Link() for seat in seats}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_network_is_built(name: str, golden: Golden) -> None:
    golden.check(CASES / f"{name}.txt", written(NETWORKS[name]))


def test_no_orphans() -> None:
    assert {path.stem for path in CASES.glob("*.txt")} == set(NETWORKS)
