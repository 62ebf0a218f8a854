"""Who may send what to whom: rules, the groups that guests share, named sets of addresses.

A rule belongs to a guest, a security group or a network, and is about the guest that it is applied
to: `in` is what comes to that guest, `out` what leaves it. Of the rules that apply to a packet the
first that matches decides, in this order: the guest's own, those of its groups in the order that
it names them, those of its network's groups, those of its network. If none matches, the default
policy does: the guest's, else its network's, else `accept`. Rules are stateful: an answer belongs
to what it answers, and the rules are not asked again.

The walls of the house (its host, its host's neighbours, other networks) stand before the rules. An
`accept` opens one only if it names who is behind it; see `opens`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

import msgspec

from guesthouse.errors import InvalidInput
from guesthouse.model.document import Document, Noun
from guesthouse.model.ids import is_id
from guesthouse.model.names import check_name

MAX_RULES = 1000
"""Rules of one guest, group or network; a document must stay below 1 MiB."""
MAX_ENTRIES = 10_000
MAX_ENDPOINTS = 256
MAX_NOTE = 200

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network
_CIDR = re.compile(r"[0-9A-Fa-f:.]{2,45}(/\d{1,3})?", re.ASCII)  # no zones, no dotted masks
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


@lru_cache(maxsize=4096)
def subnet_of(text: str) -> Subnet:
    """A CIDR, or one address; a thousand rules ask for the same few many times.

    :raise ValueError: it is neither.
    """
    return ipaddress.ip_network(text, strict=False)


class Direction(StrEnum):
    IN = "in"
    OUT = "out"


class Action(StrEnum):
    """`reject` tells the sender (a TCP reset or an ICMP error); `drop` keeps silent."""

    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"


class Traffic(StrEnum):
    """`icmp`: of IPv4 and IPv6; what neighbours need to find one another is never filtered."""

    ANY = "any"
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"


class EndpointKind(StrEnum):
    """What a source or a destination names.

    `host`: all addresses of this host itself. `lan`: the networks that this host is attached to.
    `outside`: whatever lies beyond the house's uplink, these two included.
    """

    CIDR = "cidr"
    GUEST = "guest"
    GROUP = "group"
    SET = "set"
    NETWORK = "network"
    HOST = "host"
    LAN = "lan"
    OUTSIDE = "outside"


PLACES = {EndpointKind.HOST, EndpointKind.LAN, EndpointKind.OUTSIDE}
"""Kinds that are one word, without a name behind it."""


class Endpoint(NamedTuple):
    """:ivar value: the CIDR, the name or id, or nothing for a place."""

    kind: EndpointKind
    value: str = ""

    def __str__(self) -> str:
        if self.kind in PLACES:
            return self.kind.value
        return self.value if self.kind is EndpointKind.CIDR else f"{self.kind.value}:{self.value}"

    @property
    def subnet(self) -> Subnet:
        """Of a CIDR."""
        return subnet_of(self.value)

    @property
    def is_single(self) -> bool:
        """Whether it is one address."""
        return self.kind is EndpointKind.CIDR and self.subnet.num_addresses == 1


class Rule(Noun, kw_only=True, frozen=True):
    """:ivar name: unique within its owner; counters, logs and the dry run call the rule by it.

    :ivar ports: of the destination, `80` or `8000-8100`; any one of them; none means all.
    :ivar sources: any one of them: a CIDR, `guest:ID`, `group:ID`, `set:ID`, `network:ID`, or a
        place (`host`, `lan`, `outside`); none means anyone. `destinations`: likewise.
    :ivar log: packets that it decides about are logged, at a limited rate.
    """

    name: str
    direction: Direction = Direction.IN
    action: Action = Action.ACCEPT
    protocol: Traffic = Traffic.ANY
    ports: tuple[str, ...] = ()
    source_ports: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    log: bool = False
    enabled: bool = True
    note: str = ""


class Policy(Noun, kw_only=True, frozen=True):
    """What becomes of packets that no rule decides about; None leaves it to the network."""

    incoming: Action | None = None
    outgoing: Action | None = None

    def of(self, direction: Direction) -> Action | None:
        return self.incoming if direction is Direction.IN else self.outgoing


class Firewall(Noun, kw_only=True, frozen=True):
    """Of a guest or a network. :ivar groups: ids of security groups, in order."""

    rules: tuple[Rule, ...] = ()
    groups: tuple[str, ...] = ()
    policy: Policy = Policy()


class SecurityGroup(Document, kw_only=True, frozen=True):
    """Rules that several guests share. Who names it is a member, which `group:ID` matches."""

    name: str
    rules: tuple[Rule, ...] = ()
    note: str = ""
    created_at: float


class AddressSet(Document, kw_only=True, frozen=True):
    """Addresses and networks under one name. :ivar entries: CIDRs of either version."""

    name: str
    entries: tuple[str, ...] = ()
    note: str = ""
    created_at: float


class Wall(StrEnum):
    """What the house keeps shut unless a rule opens it by name."""

    HOST = "host"
    LAN = "lan"
    NETWORK = "network"


def opens(endpoint: Endpoint, wall: Wall, lan: Sequence[Subnet] = ()) -> bool:
    """Whether an `accept` that names `endpoint` on the far side opens `wall`.

    `0.0.0.0/0` or a set does not: who writes that means the internet. :param lan: what is
    behind the wall of that name.
    """
    if wall is Wall.LAN:
        if endpoint.kind is not EndpointKind.CIDR:
            return endpoint.kind is EndpointKind.LAN
        return any(_within(endpoint.subnet, subnet) for subnet in lan)
    if endpoint.is_single:
        return True
    if wall is Wall.HOST:
        return endpoint.kind is EndpointKind.HOST
    return endpoint.kind in {EndpointKind.GUEST, EndpointKind.GROUP, EndpointKind.NETWORK}


def _within(inner: Subnet, outer: Subnet) -> bool:
    if isinstance(inner, ipaddress.IPv4Network) and isinstance(outer, ipaddress.IPv4Network):
        return inner.subnet_of(outer)
    if isinstance(inner, ipaddress.IPv6Network) and isinstance(outer, ipaddress.IPv6Network):
        return inner.subnet_of(outer)
    return False


def parse_ports(text: str, *, field: str = "ports") -> tuple[int, int]:
    """First and last port of `80` or `8000-8100`. :raise InvalidInput: anything else."""
    match = _PORTS.fullmatch(text)
    first = int(match[1]) if match else 0
    last = int(match[2]) if match and match[2] else first
    if not 1 <= first <= last <= 65535:
        raise InvalidInput(
            f"{text!r} is neither a port nor a range of ports.",
            hint="Write 80 or 8000-8100; ports are 1 to 65535.",
            field=field,
        )
    return first, last


def parse_cidr(text: str, *, field: str = "cidr") -> Subnet:
    """An address or a network. :raise InvalidInput: neither, or bits set behind the mask."""
    try:
        meant = subnet_of(text if _CIDR.fullmatch(text) else "")
    except ValueError:
        raise InvalidInput(
            f"{text!r} is neither an IP address nor a network.",
            hint="Write an address (192.0.2.7, fd00::7) or a network (192.0.2.0/24, fd00::/64).",
            field=field,
        ) from None
    if meant.network_address == ipaddress.ip_address(text.partition("/")[0]):
        return meant
    raise InvalidInput(
        f"{text!r} has bits set behind its mask.", hint=f"Write {meant}.", field=field
    )


def parse_endpoint(text: str, *, field: str = "sources") -> Endpoint:
    """An endpoint as people write it; a bare name is that of a guest.

    :raise InvalidInput: nothing that could be one.
    """
    if text in PLACES:
        return Endpoint(EndpointKind(text))
    head, colon, name = text.partition(":")
    if colon and head in set(EndpointKind) - PLACES - {EndpointKind.CIDR}:
        if not is_id(name):
            check_name(name, field=field)
        return Endpoint(EndpointKind(head), name)
    if "/" in text or ":" in text or re.fullmatch(r"[\d.]+", text):
        return Endpoint(EndpointKind.CIDR, str(parse_cidr(text, field=field)))
    try:
        return Endpoint(EndpointKind.GUEST, text if is_id(text) else check_name(text, field=field))
    except InvalidInput:
        raise InvalidInput(
            f"{text!r} is neither an address nor somebody of this house.",
            hint="Write a CIDR, guest:NAME, group:NAME, set:NAME, network:NAME, host, lan or "
            "outside.",
            field=field,
        ) from None


def resolve_rule(rule: Rule, find: Callable[[EndpointKind, str], str], *, field: str = "") -> Rule:
    """`rule` with ids instead of names, as it is stored: a rename changes no rule.

    :param find: the id of a guest, group, set or network by its name or id; raises NotFound.
    :raise InvalidInput: see `check_rule`.
    """

    def resolved(texts: tuple[str, ...], place: str) -> tuple[str, ...]:
        ends = [parse_endpoint(text, field=f"{place}[{index}]") for index, text in enumerate(texts)]
        named = [
            end
            if end.kind is EndpointKind.CIDR or end.kind in PLACES
            else Endpoint(end.kind, find(end.kind, end.value))
            for end in ends
        ]
        return tuple(map(str, dict.fromkeys(named)))

    prefix = f"{field}." if field else ""
    checked = msgspec.structs.replace(
        rule,
        sources=resolved(rule.sources, f"{prefix}sources"),
        destinations=resolved(rule.destinations, f"{prefix}destinations"),
    )
    check_rule(checked, field=field)
    return checked


def check_rule(rule: Rule, *, field: str = "") -> None:
    """:raise InvalidInput: it cannot be right; `detail["field"]` says where."""
    prefix = f"{field}." if field else ""
    check_name(rule.name, field=f"{prefix}name")
    for place, texts in (("ports", rule.ports), ("source_ports", rule.source_ports)):
        _check_length(texts, MAX_ENDPOINTS, f"{prefix}{place}")
        for index, text in enumerate(texts):
            parse_ports(text, field=f"{prefix}{place}[{index}]")
        if texts and rule.protocol not in (Traffic.TCP, Traffic.UDP):
            raise InvalidInput(
                f"Rule {rule.name!r} names ports, but its protocol is {rule.protocol.value}.",
                hint="Only tcp and udp have ports: write one rule for each.",
                field=f"{prefix}{place}",
            )
    versions = [
        _versions(rule.sources, f"{prefix}sources"),
        _versions(rule.destinations, f"{prefix}destinations"),
    ]
    if not versions[0] & versions[1]:
        raise InvalidInput(
            f"Rule {rule.name!r} can never match: one end is IPv4 only, the other IPv6 only.",
            field=f"{prefix}destinations",
        )
    if len(rule.note) > MAX_NOTE or not rule.note.isprintable():
        raise InvalidInput(
            f"The note of rule {rule.name!r} is not one line of at most {MAX_NOTE} letters.",
            field=f"{prefix}note",
        )


def check_rules(rules: Sequence[Rule], *, field: str = "rules") -> None:
    """:raise InvalidInput: one is not right, two have one name, or there are too many."""
    _check_length(rules, MAX_RULES, field)
    names: set[str] = set()
    for index, rule in enumerate(rules):
        check_rule(rule, field=f"{field}[{index}]")
        if rule.name in names:
            raise InvalidInput(
                f"Two rules are called {rule.name!r}.",
                hint="Counters and logs call rules by their names: give each its own.",
                field=f"{field}[{index}].name",
            )
        names.add(rule.name)


def check_firewall(firewall: Firewall, *, field: str = "firewall") -> None:
    """:raise InvalidInput: see `check_rules`; or a group is named twice or not by its id."""
    check_rules(firewall.rules, field=f"{field}.rules")
    for index, group in enumerate(firewall.groups):
        if not is_id(group) or group in firewall.groups[:index]:
            raise InvalidInput(
                f"{group!r} is named twice or is no id of a group.",
                field=f"{field}.groups[{index}]",
            )


def check_set(addresses: AddressSet) -> None:
    """:raise InvalidInput: an entry is no address, or there are too many."""
    check_name(addresses.name)
    _check_length(addresses.entries, MAX_ENTRIES, "entries")
    for index, entry in enumerate(addresses.entries):
        parse_cidr(entry, field=f"entries[{index}]")


def check_group(group: SecurityGroup) -> None:
    """:raise InvalidInput: see `check_rules`."""
    check_name(group.name)
    check_rules(group.rules)


def _check_length(values: Sequence[object], most: int, field: str) -> None:
    if len(values) > most:
        raise InvalidInput(f"{len(values)} are too many; at most {most}.", field=field)


def _versions(texts: Sequence[str], field: str) -> set[int]:
    """IP versions that these endpoints can have; names can have both."""
    _check_length(texts, MAX_ENDPOINTS, field)
    found = set() if texts else {4, 6}
    for index, text in enumerate(texts):
        end = parse_endpoint(text, field=f"{field}[{index}]")
        found |= {end.subnet.version} if end.kind is EndpointKind.CIDR else {4, 6}
    return found
