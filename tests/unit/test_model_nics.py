"""Cards as documents and requests: numbers that stay, and words that say which."""

from __future__ import annotations

import msgspec
import pytest

from guesthouse.errors import Conflict, InvalidInput, NotFound
from guesthouse.model.device import Nic, check_mac, free_index, free_plug, new_mac, numbered
from guesthouse.model.document import decode_strict, encode
from guesthouse.model.guest import GuestSpec
from guesthouse.model.nics import NicChange, NicRequest, changed_nic, find_nic, parse_nic
from tests.contract.driver_house import make_guest, nic


def spec(*nics: Nic) -> GuestSpec:
    return GuestSpec(image="none", image_id="x", nics=nics)


def test_cards_of_old_documents_are_numbered_by_their_place() -> None:
    old = b'{"image":"none","image_id":"x","nics":[{"mac":"a"},{"mac":"b","network":"lan"}]}'
    found = decode_strict(old, GuestSpec)
    assert [(one.index, one.plug, one.mac) for one in found.nics] == [
        (0, None, "a"),
        (1, None, "b"),
    ]
    assert decode_strict(encode(found), GuestSpec) == found
    first = decode_strict(encode(found.without_nic(0)), GuestSpec)
    assert [one.index for one in first.nics] == [1]
    assert [one.index for one in numbered((nic(index=1), nic(), nic()))] == [1, 0, 2]


def test_a_number_stays_when_others_go() -> None:
    found = spec(nic(), nic(), nic()).without_nic(1)
    assert [one.index for one in found.nics] == [0, 2]
    assert free_index(found.nics) == 1
    again = found.with_nic(nic(index=1, plug=free_plug(found.nics)))
    assert [(one.index, one.plug) for one in again.nics] == [(0, None), (1, 0), (2, None)]
    assert free_plug(again.nics) == 1
    changed = again.with_nic(msgspec.structs.replace(again.nics[1], network="lan"))
    assert [one.network for one in changed.nics] == ["builtin", "lan", "builtin"]
    with pytest.raises(Conflict, match="8 network cards"):
        free_index([nic(index=index) for index in range(8)])


def test_macs() -> None:
    assert check_mac(" 52-67-68-AA-bb-01 ") == "52:67:68:aa:bb:01"
    assert check_mac(new_mac())
    for wrong in (
        "",
        "52:67:68:aa:bb",
        "52:67:68:aa:bb:0g",
        "01:00:5e:00:00:01",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
        "52:67:69:00:00:01",
        "fe:67:68:00:00:01",
    ):
        with pytest.raises(InvalidInput) as caught:
            check_mac(wrong)
        assert caught.value.detail["field"] == "mac"


def test_cards_are_found_by_number_and_mac() -> None:
    guest = make_guest(nics=(nic(), Nic(mac="52:67:68:00:00:0a", index=4)))
    assert find_nic(guest, "4").index == find_nic(guest, "52-67-68-00-00-0A").index == 4
    for wrong in ("1", "eth0", "52:67:68:00:00:0b", ""):
        with pytest.raises(NotFound, match="no network card") as caught:
            find_nic(guest, wrong)
        assert "4 (52:67:68:00:00:0a)" in caught.value.hint


def test_what_is_said_of_a_card_at_launch() -> None:
    assert parse_nic("lan") == NicRequest(network="lan")
    assert parse_nic("lan, address4=10.0.0.9,mac=52:67:68:00:00:01") == NicRequest(
        network="lan", address4="10.0.0.9", mac="52:67:68:00:00:01"
    )
    assert parse_nic("lan,address6=auto").address6 == ""
    for wrong in ("", ",mac=x", "lan,", "lan,link", "lan,speed=9", "lan,mac=a,mac=b", "lan,mac="):
        with pytest.raises(InvalidInput):
            parse_nic(wrong)


def test_fixed_addresses_stay_on_their_network() -> None:
    card = nic(index=1, network="lan", address4="10.0.0.9", address6="fd00::9")
    assert changed_nic(card, NicChange(), None) == card
    assert changed_nic(card, NicChange(network="lan"), "lan") == card
    assert changed_nic(card, NicChange(network="dmz"), "dmz").fixed == ()
    moved = changed_nic(card, NicChange(network="dmz", address4="10.1.0.9"), "dmz")
    assert moved.fixed == ("10.1.0.9",) and moved.network == "dmz"
    assert changed_nic(card, NicChange(address4="auto"), None).fixed == ("fd00::9",)
