"""What netfilter says on its netlink sockets, read: pure, and of whatever bytes come.

Sources: linux/netlink.h, linux/netfilter/nfnetlink.h, nf_tables.h and nfnetlink_log.h.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from typing import NamedTuple

from guesthouse.model.firewall import Action
from guesthouse.network.rules.text import NAMES

_HEAD = struct.Struct("=IHHII")
_FAMILY_BYTES = 4
"""Of nfgenmsg, behind the head."""
_RULES, _LOG = 10, 4
"""Subsystems: NFNL_SUBSYS_NFTABLES, NFNL_SUBSYS_ULOG."""
_NEW_GENERATION = 15
_TABLE = 1
"""The attribute that names the table, of tables, chains, rules, sets and their elements alike."""
_PAYLOAD, _PREFIX = 9, 10

_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}
_WITH_PORTS = {6, 17}


class Logged(NamedTuple):
    """A packet that a rule logged. :ivar rule: key of the rule. :ivar port: of the destination."""

    rule: str
    action: Action
    protocol: str
    source: str
    destination: str
    source_port: int
    port: int
    length: int


def changes_ours(data: bytes) -> bool:
    """Whether these messages tell of a change in one of our tables."""
    ours = {name.encode() + b"\0" for name in NAMES}
    for kind, attributes in _messages(data):
        if kind >> 8 != _RULES or kind & 0xFF == _NEW_GENERATION:
            continue
        if any(number == _TABLE and value in ours for number, value in attributes):
            return True
    return False


def logged_packets(data: bytes) -> Iterator[Logged]:
    """Of these messages those that are packets which our rules logged."""
    for kind, attributes in _messages(data):
        if kind != _LOG << 8:
            continue
        found = dict(attributes)
        packet = _read(found.get(_PREFIX, b""), found.get(_PAYLOAD, b""))
        if packet is not None:
            yield packet


def _messages(data: bytes) -> Iterator[tuple[int, list[tuple[int, bytes]]]]:
    at = 0
    while at + _HEAD.size <= len(data):
        length, kind, _flags, _number, _port = _HEAD.unpack_from(data, at)
        if length < _HEAD.size:
            return
        yield kind, list(_attributes(data[at + _HEAD.size + _FAMILY_BYTES : at + length]))
        at += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, number = struct.unpack_from("=HH", data, at)
        if length < 4:
            return
        yield number & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def _read(prefix: bytes, payload: bytes) -> Logged | None:
    key, _, action = prefix.rstrip(b"\0").decode(errors="replace").strip().rpartition(" ")
    try:
        source, destination, protocol, length, rest = _addresses(payload)
        return Logged(
            key,
            Action(action),
            _NAMES.get(protocol, f"protocol {protocol}"),
            source,
            destination,
            *_ports(protocol, rest),
            length,
        )
    except (ValueError, IndexError, struct.error):
        return None


def _addresses(packet: bytes) -> tuple[str, str, int, int, bytes]:
    """Source, destination, protocol, length in bytes, and what is behind the header."""
    if packet[:1] and packet[0] >> 4 == 4:
        length, fragment = struct.unpack_from("!HxxH", packet, 2)
        source, destination = packet[12:16], packet[16:20]
        rest = packet[4 * (packet[0] & 15) :] if not fragment & 0x1FFF else b""
        return _text(source), _text(destination), packet[9], length, rest
    if packet[:1] and packet[0] >> 4 == 6:
        (length,) = struct.unpack_from("!H", packet, 4)
        return _text(packet[8:24]), _text(packet[24:40]), packet[6], 40 + length, packet[40:]
    raise ValueError


def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(address))


def _ports(protocol: int, rest: bytes) -> tuple[int, int]:
    if protocol not in _WITH_PORTS or len(rest) < 4:
        return 0, 0
    source, destination = struct.unpack_from("!HH", rest)
    return source, destination
