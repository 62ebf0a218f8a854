"""Networks, their subnets and addresses."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guesthouse.errors import Conflict, InvalidInput, UnknownField
from guesthouse.model.document import convert_strict, decode_document, encode
from guesthouse.model.network import (
    DhcpRange,
    Lease,
    Network,
    check_lease,
    check_network,
    choose_subnet,
    clashes,
    default_range,
    free_address4,
    free_address6,
    link_local,
    made_up_address,
)

ID = "01JD000000000000000000N1AN"


def network(**changes: Any) -> Network:
    raw = {
        "id": ID,
        "name": "lan",
        "created_at": 0.0,
        "subnet4": "10.200.1.0/24",
        "subnet6": "fd42:200:1::/64",
        **changes,
    }
    made = convert_strict(raw, Network, what="network")
    check_network(made)
    return made


def lease(**changes: Any) -> Lease:
    raw = {
        "id": ID,
        "network": ID,
        "guest": "g",
        "nic": 0,
        "mac": "52:67:68:00:00:01",
        "since": 0.0,
    }
    return convert_strict({**raw, **changes}, Lease)


def test_a_network_comes_back_as_it_was() -> None:
    made = network(dhcp={"first": "10.200.1.10", "last": "10.200.1.200"}, domain="lab.internal")
    assert decode_document(encode(made), Network) == made


def test_what_follows_from_a_network() -> None:
    made = network()
    assert made.bridge == "br-0000n1an"
    assert len(made.bridge) <= 15
    assert (made.gateway4, made.gateway6) == ("10.200.1.1", "fd42:200:1::1")
    only4 = network(subnet6="")
    assert only4.gateway6 == ""
    assert [str(s) for s in only4.subnets] == ["10.200.1.0/24"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "Lan"}, "name"),
        ({"kind": "vpn"}, "kind"),
        ({"subnet4": "", "subnet6": ""}, "subnet4"),
        ({"subnet4": "10.200.1.5/24"}, "subnet4"),
        ({"subnet4": "10.200.1.0/30"}, "subnet4"),
        ({"subnet4": "10.200.1.0/255.255.255.0"}, "subnet4"),
        ({"subnet6": "fd42:0:0::/64"}, "subnet6"),
        ({"subnet4": "fd00::/64"}, "subnet4"),
        ({"subnet4": "224.1.0.0/24"}, "subnet4"),
        ({"subnet4": "10.0.2.0/25"}, "subnet4"),
        ({"subnet6": "fd42::/56"}, "subnet6"),
        ({"subnet6": "fd00::/64"}, "subnet6"),
        ({"subnet6": "fe80::/64"}, "subnet6"),
        ({"dhcp": {"first": "10.200.1.1", "last": "10.200.1.9"}}, "dhcp.first"),
        ({"dhcp": {"first": "10.200.1.5", "last": "10.200.1.255"}}, "dhcp.last"),
        ({"dhcp": {"first": "10.200.1.9", "last": "10.200.1.5"}}, "dhcp.last"),
        ({"dhcp": {"first": "ten", "last": "10.200.1.5"}}, "dhcp.first"),
        ({"dhcp": {"first": "10.200.1.5"}}, "dhcp"),
        ({"subnet4": "", "dhcp": {"first": "10.200.1.5", "last": "10.200.1.9"}}, "dhcp"),
        ({"domain": "lab..internal"}, "domain"),
        ({"domain": "lab."}, "domain"),
        ({"mtu": 1000}, "mtu"),
        ({"mtu": 70_000}, "mtu"),
        ({"uplink": "eth0"}, "uplink"),
        ({"kind": "bridged", "subnet4": "", "subnet6": ""}, "uplink"),
        ({"kind": "bridged", "uplink": "eth0"}, "subnet4"),
        ({"kind": "bridged", "subnet4": "", "subnet6": "", "uplink": "an interface"}, "uplink"),
        ({"firewall": {"rules": [{"name": "a"}, {"name": "a"}]}}, "firewall.rules[1].name"),
        ({"firewall": {"groups": ["front"]}}, "firewall.groups[0]"),
    ],
)
def test_a_network_that_cannot_be(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        network(**changes)
    assert raised.value.detail["field"] == field


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(UnknownField, match="'gateway'"):
        network(gateway="10.200.1.1")


def test_a_small_mtu_without_ipv6_may_be() -> None:
    assert network(subnet6="", mtu=576).mtu == 576


def test_the_default_range_leaves_room_below() -> None:
    assert default_range("10.200.1.0/24") == DhcpRange(first="10.200.1.25", last="10.200.1.254")
    assert default_range("10.0.0.0/8").first == "10.0.0.100"
    assert default_range("10.0.0.0/29") == DhcpRange(first="10.0.0.2", last="10.0.0.6")


# --- choosing a subnet --------------------------------------------------------------------------


def test_the_same_question_has_the_same_answer() -> None:
    assert choose_subnet(["10.0.0.0/8"], seed="a") == choose_subnet(["10.0.0.0/8"], seed="a")
    assert choose_subnet([], seed="a") != choose_subnet([], seed="b")
    assert choose_subnet([], version=6, seed="a") != choose_subnet([], version=6, seed="b")


@pytest.mark.parametrize("default", ["0.0.0.0/0", "default", "::/0", "0.0.0.0/1", "128.0.0.0/1"])
def test_a_default_route_is_no_obstacle(default: str) -> None:
    assert choose_subnet([default]) == choose_subnet([])


def test_when_a_vpn_has_all_of_ten() -> None:
    chosen = ipaddress.ip_network(choose_subnet(["10.0.0.0/8"]))
    assert chosen.subnet_of(ipaddress.ip_network("172.16.0.0/12"))
    chosen = ipaddress.ip_network(choose_subnet(["10.0.0.0/8", "172.16.0.0/12"]))
    assert chosen.subnet_of(ipaddress.ip_network("192.168.0.0/16"))


def test_nothing_is_left() -> None:
    with pytest.raises(Conflict, match="No private IPv4 subnet"):
        choose_subnet(["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"])


def test_a_subnet_of_no_possible_size() -> None:
    with pytest.raises(InvalidInput):
        choose_subnet([], prefix=31)


private = st.builds(
    lambda base, bits, prefix: str(ipaddress.ip_network((base | bits, prefix), strict=False)),
    st.sampled_from([0x0A000000, 0x0A800000, 0xAC100000, 0xC0A80000]),
    st.integers(0, 0xFFFF) | st.integers(0, 0x7FFFFF),
    st.integers(10, 32),
)


@given(st.lists(private, max_size=30), st.integers(16, 29), st.text(max_size=5))
def test_what_is_chosen_is_free_private_and_good_for_a_network(
    taken: list[str], prefix: int, seed: str
) -> None:
    try:
        text = choose_subnet(taken, prefix=prefix, seed=seed)
    except Conflict:
        return
    chosen = ipaddress.ip_network(text)
    assert chosen.is_private
    assert chosen.prefixlen == prefix
    assert not any(chosen.overlaps(ipaddress.ip_network(route)) for route in taken)
    made = network(subnet4=text, dhcp=None)
    assert clashes(made, taken) == ()


@given(st.text(max_size=20))
def test_ipv6_is_a_unique_local_network(seed: str) -> None:
    chosen = ipaddress.ip_network(choose_subnet([], version=6, seed=seed))
    assert chosen.subnet_of(ipaddress.ip_network("fd00::/8"))
    assert chosen.prefixlen == 64
    other = ipaddress.ip_network(choose_subnet([str(chosen)], version=6, seed=seed))
    assert not other.overlaps(chosen)


def test_a_route_that_came_later_clashes() -> None:
    made = network()
    assert clashes(made, ["10.200.0.0/16", "default", "192.168.0.0/16", "fd42::/16"]) == (
        "10.200.0.0/16",
        "fd42::/16",
    )


# --- addresses ----------------------------------------------------------------------------------


def test_the_lowest_free_address() -> None:
    made = network(dhcp={"first": "10.200.1.10", "last": "10.200.1.12"})
    assert free_address4(made, []) == "10.200.1.10"
    assert free_address4(made, ["10.200.1.10", "10.200.1.12"]) == "10.200.1.11"
    with pytest.raises(Conflict, match="no address left"):
        free_address4(made, [f"10.200.1.{n}" for n in (10, 11, 12)])
    assert free_address4(network(), []) == "10.200.1.2"
    assert free_address6(made, ["fd42:200:1::1000"]) == "fd42:200:1::1001"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"address4": "10.200.2.5"}, "address4"),
        ({"address4": "10.200.1.1"}, "address4"),
        ({"address4": "10.200.1.0"}, "address4"),
        ({"address4": "10.200.1.255"}, "address4"),
        ({"address4": "fd42:200:1::5"}, "address4"),
        ({"address4": "five"}, "address4"),
        ({"address6": "fd42:200:1::1"}, "address6"),
        ({"address6": "fd42:200:2::5"}, "address6"),
        ({"address6": "FD42:200:1::5"}, "address6"),
    ],
)
def test_an_address_that_is_not_for_a_guest(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        check_lease(lease(**changes), network())
    assert raised.value.detail["field"] == field


def test_an_address_of_a_network_without_that_version() -> None:
    with pytest.raises(InvalidInput, match="none"):
        check_lease(lease(address6="fd42:200:1::5"), network(subnet6=""))


def test_an_address_is_taken_once() -> None:
    other = lease(id="01JD0000000000000000000THR", guest="db", address4="10.200.1.5")
    with pytest.raises(Conflict, match="belongs to another"):
        check_lease(lease(address4="10.200.1.5"), network(), [other])
    check_lease(lease(address4="10.200.1.5"), network(), [lease(address4="10.200.1.5")])


def test_addresses_that_guests_make_up() -> None:
    """RFC 4291 appendix A."""
    assert link_local("52:67:68:00:00:01") == "fe80::5067:68ff:fe00:1"
    assert made_up_address("fd42::/64", "34:56:78:9a:bc:de") == "fd42::3656:78ff:fe9a:bcde"


@given(st.lists(private, max_size=12), st.integers(12, 18))
def test_steps_over_routes_find_what_trying_each_would(taken: list[str], prefix: int) -> None:
    routes = [ipaddress.ip_network(route) for route in (*taken, "10.0.2.0/24")]
    pools = ("10.128.0.0/9", "172.16.0.0/12", "192.168.0.0/16", "10.0.0.0/9")
    each = (
        candidate
        for pool in map(ipaddress.ip_network, pools)
        if pool.prefixlen <= prefix
        for candidate in pool.subnets(new_prefix=prefix)
        if not any(candidate.overlaps(route) for route in routes)
    )
    assert choose_subnet(taken, prefix=prefix) == str(next(each))
