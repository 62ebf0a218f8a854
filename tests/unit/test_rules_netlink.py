"""What netfilter says on its sockets: read as the kernel wrote it, and harmless whatever it is."""

from __future__ import annotations

import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from guesthouse.model.firewall import Action
from guesthouse.network.rules.netlink import changes_ours, logged_packets

PREFIX = b"guest/ID/no-ssh drop \0"


def message(kind: int, *attributes: tuple[int, bytes]) -> bytes:
    body = bytes(4) + b"".join(
        struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)
        for number, value in attributes
    )
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def packet4(protocol: int = 6, *, offset: int = 0) -> bytes:
    addresses = socket.inet_aton("10.0.0.1") + socket.inet_aton("10.0.0.2")
    head = struct.pack("!BBHHHBBH", 0x46, 0, 60, 1, offset, 64, protocol, 0)
    return head + addresses + bytes(4) + struct.pack("!HH", 40000, 22)


def packet6(protocol: int = 17) -> bytes:
    ends = (socket.inet_pton(socket.AF_INET6, text) for text in ("fd00::1", "fe80::2"))
    return (
        struct.pack("!IHBB", 6 << 28, 8, protocol, 64) + b"".join(ends) + struct.pack("!HH", 5, 53)
    )


def read(payload: bytes, prefix: bytes = PREFIX) -> list[tuple[object, ...]]:
    return [tuple(one) for one in logged_packets(message(4 << 8, (10, prefix), (9, payload)))]


def test_packets_are_read() -> None:
    rule = ("guest/ID/no-ssh", Action.DROP)
    assert read(packet4()) == [(*rule, "tcp", "10.0.0.1", "10.0.0.2", 40000, 22, 60)]
    assert read(packet6()) == [(*rule, "udp", "fd00::1", "fe80::2", 5, 53, 48)]
    assert read(packet4(1))[0][2:7] == ("icmp", "10.0.0.1", "10.0.0.2", 0, 0)
    assert read(packet6(58))[0][2] == "icmp"
    assert read(packet4(47))[0][2] == "protocol 47"
    assert read(packet4(offset=10))[0][5:7] == (0, 0), "a later fragment has no ports"


def test_what_is_no_packet_of_ours_is_left_out() -> None:
    assert not read(packet4(), b"somebody else's\0")
    assert not read(packet4()[:15]) and not read(b"") and not read(b"\x50" * 40)
    assert not list(logged_packets(message(10 << 8, (10, PREFIX), (9, packet4()))))


def test_changes_of_our_tables_are_told_from_those_of_others() -> None:
    for name, ours in ((b"guesthouse", True), (b"guesthouse_a", True), (b"guesthouse2", False)):
        assert changes_ours(message(10 << 8 | 8, (1, name + b"\0"))) is ours
        assert changes_ours(message(10 << 8, (1, name + b"\0"))) is ours
    generation = message(10 << 8 | 15, (1, b"\0\0\0\2"))
    assert not changes_ours(generation)
    both = message(10 << 8 | 3, (1, b"other\0")) + message(10 << 8 | 3, (1, b"guesthouse\0"))
    assert changes_ours(both), "the first is not the only one"


@given(st.binary(max_size=200), st.binary(max_size=60))
def test_whatever_comes_is_read_without_harm(data: bytes, payload: bytes) -> None:
    changes_ours(data)
    assert not list(logged_packets(data))
    read(payload)
    read(payload, payload)
