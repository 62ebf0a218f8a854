"""Ids, names, sizes, shares, published ports."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guesthouse.errors import InvalidInput
from guesthouse.model import ids
from guesthouse.model.device import (
    MAC_PREFIX,
    Protocol,
    Publish,
    named_port,
    new_mac,
    parse_publish,
)
from guesthouse.model.ids import created_at, is_id, new_id
from guesthouse.model.names import check_image_name, check_name
from guesthouse.model.units import format_size, parse_share, parse_size


def test_ids_sort_by_age_and_tell_it() -> None:
    before = time.time()
    made = [new_id() for _ in range(5000)]
    after = time.time()
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert all(is_id(id) for id in made)
    # An id's time has milliseconds; within one of them ids count up and keep it.
    assert before - 0.001 <= created_at(made[0]) <= created_at(made[-1]) <= after + 0.001


def test_ids_stay_in_order_when_the_clock_jumps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = new_id()
    monkeypatch.setattr(ids.time, "time_ns", lambda: 10**15)
    assert new_id() > first


@pytest.mark.parametrize(
    "text", ["", "web", "01ABC", "8" + "0" * 25, "0" * 27, "01abcdefgh0000000000000000", "I" * 26]
)
def test_what_is_no_id(text: str) -> None:
    assert not is_id(text)


@pytest.mark.parametrize("name", ["a", "web", "web-1", "0", "a" * 63, "1-2"])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-a",
        "a-",
        "A",
        "a_b",
        "a.b",
        "a b",
        "a" * 64,
        "ä",
        "a\n",
        "../x",
        "01abcdefghjkmnpqrstvwxyz01",
    ],
)
def test_no_names(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_name(name, field="guest")
    assert caught.value.detail == {"field": "guest"}
    assert caught.value.hint


@given(st.text(max_size=70))
def test_a_name_is_a_host_name(text: str) -> None:
    try:
        check_name(text)
    except InvalidInput:
        return
    assert 1 <= len(text) <= 63
    assert text.isascii()
    assert text == text.lower()
    assert all(part for part in (text[0].strip("-"), text[-1].strip("-")))
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@pytest.mark.parametrize("name", ["debian/12", "micro", "team/web/v2", "a.b_c-d/1.0"])
def test_image_names(name: str) -> None:
    assert check_image_name(name) == name


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "a/b/c/d", "../a", "A", "a b", ".a"])
def test_no_image_names(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_image_name(name)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("1.5GiB", 3 << 29),
        ("1 TB", 1 << 40),
        ("3k", 3072),
        (" 1G ", 1 << 30),
        ("10B", 10),
        ("1024P", 1 << 60),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "-1G", "1X", "1.0001K", "1e3", "1025P", "1G2M", "nan", "0x10", "1,5G", "٣G"]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_size(text, field="memory")
    assert caught.value.detail["field"] == "memory"


@given(st.integers(0, 1 << 60))
def test_sizes_survive_being_written(size: int) -> None:
    assert parse_size(str(size)) == size
    # A text of one decimal may be off by a twentieth of its unit, and never by more.
    assert abs(parse_share_of_size(format_size(size)) - size) <= max(size * 0.05, 0)


def parse_share_of_size(text: str) -> float:
    factor = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
    return float(text[:-1]) * factor[text[-1]]


@given(number=st.integers(1, 1023), unit=st.sampled_from("KMGTP"))
def test_whole_sizes_are_written_exactly(number: int, unit: str) -> None:
    assert format_size(parse_size(f"{number}{unit}")) == f"{number}{unit}"


@pytest.mark.parametrize(
    ("text", "share"), [("50%", 0.5), ("0.5", 0.5), ("2", 2.0), ("0%", 0.0), (" 12.5% ", 0.125)]
)
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "-1", "٣", "1e3", "inf", "nan", "50%%", "half"])
def test_no_shares(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_share(text)


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("8080:80", Publish(host_port=8080, guest_port=80)),
        ("0:22", Publish(host_port=0, guest_port=22)),
        (
            "0.0.0.0:53:5353/udp",
            Publish(host_ip="0.0.0.0", host_port=53, guest_port=5353, protocol=Protocol.UDP),
        ),
        ("[::1]:8080:80/tcp", Publish(host_ip="::1", host_port=8080, guest_port=80)),
    ],
)
def test_published_ports(text: str, port: Publish) -> None:
    assert named_port(parse_publish(text), must_name=False) == port
    assert named_port(parse_publish(str(port)), must_name=True) == port


@pytest.mark.parametrize(
    "text",
    ["", "80", ":80", "80:", "a:b", "1:0", "65536:1", "1:65536", "-1:80", "host:1:2", "1:2/sctp"],
)
def test_no_published_ports(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_publish(text)


@pytest.mark.parametrize("text", ["8080:80", "0:22", "53:53/udp"])
def test_the_system_house_wants_an_address_to_be_named(text: str) -> None:
    with pytest.raises(InvalidInput, match="which of this host's addresses") as refused:
        named_port(parse_publish(text), must_name=True)
    assert f"0.0.0.0:{text.partition('/')[0]}" in refused.value.hint
    assert named_port(parse_publish(f"0.0.0.0:{text}"), must_name=True).host_ip == "0.0.0.0"


def test_macs_are_local_and_differ() -> None:
    made = {new_mac() for _ in range(50)}
    assert len(made) > 45
    for mac in made:
        octets = [int(part, 16) for part in mac.split(":")]
        assert len(octets) == 6
        assert octets[0] & 0b11 == 0b10  # locally administered, unicast
        assert mac.startswith(MAC_PREFIX)


def test_ids_stay_in_order_across_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one thread makes the first id of a millisecond, another makes one of the next."""
    made: list[str] = []
    other = threading.Thread(target=lambda: made.append(new_id()))
    clock, high = [2 * 10**18], b"\xff" * 10

    def urandom(size: int) -> bytes:
        if not other.ident:
            clock[0] += 1_000_000
            other.start()
            other.join(0.1)
            return high
        return high if not made else bytes(10)

    monkeypatch.setattr(ids.time, "time_ns", lambda: clock[0])
    monkeypatch.setattr(ids.os, "urandom", urandom)
    monkeypatch.setattr(ids, "_last", (0, 0))
    made_first = new_id()
    other.join()
    assert new_id() > max(made_first, *made)
