"""Rules, groups and sets, as people write them and as they are stored."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guesthouse.errors import InvalidInput, NotFound, UnknownField
from guesthouse.model.document import convert_strict, decode_document, encode
from guesthouse.model.firewall import (
    MAX_RULES,
    AddressSet,
    Endpoint,
    EndpointKind,
    Rule,
    SecurityGroup,
    Wall,
    check_group,
    check_rule,
    check_rules,
    check_set,
    opens,
    parse_cidr,
    parse_endpoint,
    parse_ports,
    resolve_rule,
)

ID = "01JD00000000000000000000GX"


def rule(**changes: Any) -> Rule:
    made = convert_strict({"name": "r", **changes}, Rule, what="rule")
    check_rule(made)
    return made


@pytest.mark.parametrize(
    ("text", "kind", "written"),
    [
        ("10.0.0.0/8", EndpointKind.CIDR, "10.0.0.0/8"),
        ("192.0.2.7", EndpointKind.CIDR, "192.0.2.7/32"),
        ("fd00::7", EndpointKind.CIDR, "fd00::7/128"),
        ("FD00::/64", EndpointKind.CIDR, "fd00::/64"),
        ("guest:web", EndpointKind.GUEST, "guest:web"),
        ("web", EndpointKind.GUEST, "guest:web"),
        ("guest:host", EndpointKind.GUEST, "guest:host"),
        (ID, EndpointKind.GUEST, f"guest:{ID}"),
        (f"group:{ID}", EndpointKind.GROUP, f"group:{ID}"),
        ("set:office", EndpointKind.SET, "set:office"),
        ("network:lan", EndpointKind.NETWORK, "network:lan"),
        ("host", EndpointKind.HOST, "host"),
        ("lan", EndpointKind.LAN, "lan"),
        ("outside", EndpointKind.OUTSIDE, "outside"),
    ],
)
def test_endpoints(text: str, kind: EndpointKind, written: str) -> None:
    end = parse_endpoint(text)
    assert (end.kind, str(end)) == (kind, written)
    assert parse_endpoint(str(end)) == end


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.1/8",
        "10.0.0",
        "guest:",
        "guest:Web",
        "group:a b",
        "vm:web",
        "fe80::1%eth0",
        "10.0.0.0/255.0.0.0",
        "cidr:x",
        "a_b",
    ],
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_endpoint(text, field="sources[3]")
    assert raised.value.detail["field"] == "sources[3]"


def test_bits_behind_the_mask_are_shown_without() -> None:
    with pytest.raises(InvalidInput, match=r"Write 10\.0\.0\.0/8"):
        parse_cidr("10.1.2.3/8")


@given(st.text(max_size=30))
def test_any_text_is_an_endpoint_or_a_named_error(text: str) -> None:
    try:
        end = parse_endpoint(text)
    except InvalidInput as error:
        assert error.detail["field"] == "sources"
    else:
        assert parse_endpoint(str(end)) == end


@pytest.mark.parametrize(("text", "ports"), [("80", (80, 80)), ("1-65535", (1, 65535))])
def test_ports(text: str, ports: tuple[int, int]) -> None:
    assert parse_ports(text) == ports


@pytest.mark.parametrize("text", ["0", "65536", "90-80", "80-", "-80", "http", "80,443", "٨٠", ""])
def test_what_are_no_ports(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_ports(text)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "SSH"}, "name"),
        ({"direction": "both"}, "direction"),
        ({"action": "deny"}, "action"),
        ({"protocol": "sctp"}, "protocol"),
        ({"ports": ["80"]}, "ports"),
        ({"protocol": "icmp", "source_ports": ["80"]}, "source_ports"),
        ({"protocol": "tcp", "ports": ["80", "x"]}, "ports[1]"),
        ({"protocol": "tcp", "ports": [80]}, "ports[0]"),
        ({"sources": ["10.0.0.0/8", "nobody/x"]}, "sources[1]"),
        ({"destinations": ["10.0.0.1/8"]}, "destinations[0]"),
        ({"sources": ["10.0.0.0/8"], "destinations": ["fd00::/8"]}, "destinations"),
        ({"sources": ["192.0.2.1"] * 257}, "sources"),
        ({"note": "two\nlines"}, "note"),
    ],
)
def test_a_rule_that_cannot_be(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        rule(**changes)
    assert raised.value.detail["field"] == field


def test_an_unknown_field_of_a_rule() -> None:
    with pytest.raises(UnknownField, match="'port'"):
        rule(port=80)


def test_names_become_ids_and_doubles_go() -> None:
    ids = {"web": ID, "front": ID}

    def find(kind: EndpointKind, name: str) -> str:
        if name not in ids:
            raise NotFound(f"No {kind.value} {name!r}.")
        return ids[name]

    written = rule(sources=["web", "guest:web", "group:front", "host", "192.0.2.1"])
    stored = resolve_rule(written, find)
    assert stored.sources == (f"guest:{ID}", f"group:{ID}", "host", "192.0.2.1/32")
    with pytest.raises(NotFound, match="No set 'gone'"):
        resolve_rule(rule(destinations=["set:gone"]), find)
    with pytest.raises(InvalidInput) as raised:
        resolve_rule(convert_strict({"name": "r", "sources": ["??"]}, Rule), find, field="rules[2]")
    assert raised.value.detail["field"] == "rules[2].sources[0]"


def test_rules_of_one_owner() -> None:
    with pytest.raises(InvalidInput) as raised:
        check_rules([rule(), rule(name="s"), rule()])
    assert raised.value.detail["field"] == "rules[2].name"
    with pytest.raises(InvalidInput, match="too many"):
        check_rules([rule(name=f"r{n}") for n in range(MAX_RULES + 1)])


def test_groups_and_sets_come_back_as_they_were() -> None:
    group = SecurityGroup(id=ID, name="front", rules=(rule(),), created_at=0.0)
    check_group(group)
    assert decode_document(encode(group), SecurityGroup) == group
    addresses = AddressSet(id=ID, name="office", entries=("192.0.2.0/24",), created_at=0.0)
    check_set(addresses)
    assert decode_document(encode(addresses), AddressSet) == addresses


def test_a_set_with_what_is_no_address() -> None:
    with pytest.raises(InvalidInput) as raised:
        check_set(AddressSet(id=ID, name="s", entries=("192.0.2.0/24", "x"), created_at=0.0))
    assert raised.value.detail["field"] == "entries[1]"


def test_the_largest_owner_fits_into_a_document() -> None:
    """1 MiB is what the store takes."""
    rules = tuple(
        rule(name=f"rule-{n}", protocol="tcp", ports=["1000-2000"], sources=[f"guest:{ID}"] * 8)
        for n in range(MAX_RULES)
    )
    assert len(encode(SecurityGroup(id=ID, name="g", rules=rules, created_at=0.0))) < 1 << 20


LAN = (ipaddress.ip_network("192.168.0.0/16"), ipaddress.ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("text", "walls"),
    [
        ("host", {Wall.HOST}),
        ("lan", {Wall.LAN}),
        ("outside", set()),
        ("0.0.0.0/0", set()),
        ("192.168.1.0/24", {Wall.LAN}),
        ("192.168.1.5", {Wall.HOST, Wall.LAN, Wall.NETWORK}),
        ("198.51.100.7", {Wall.HOST, Wall.NETWORK}),
        ("fd42::/64", {Wall.LAN}),
        ("guest:web", {Wall.NETWORK}),
        ("group:front", {Wall.NETWORK}),
        ("network:lan", {Wall.NETWORK}),
        ("set:office", set()),
    ],
)
def test_only_a_name_opens_a_wall(text: str, walls: set[Wall]) -> None:
    assert {wall for wall in Wall if opens(parse_endpoint(text), wall, LAN)} == walls


def test_a_place_has_no_value() -> None:
    assert str(Endpoint(EndpointKind.HOST)) == "host"
    assert not Endpoint(EndpointKind.HOST).is_single
