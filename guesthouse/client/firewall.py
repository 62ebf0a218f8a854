"""Firewalls of a house: the part of the client that is about rules, groups and sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote, urlencode

from guesthouse.client.house import PROBE_TIMEOUT, House, decoded, guest_path, resource_path
from guesthouse.client.transport import Stream
from guesthouse.model.document import encode
from guesthouse.model.firewalling import (
    AddressSetChange,
    AddressSetRequest,
    AddressSetView,
    CounterView,
    FirewallChange,
    FirewallView,
    PacketRequest,
    PacketView,
    RuleRequest,
    SecurityGroupChange,
    SecurityGroupRequest,
    SecurityGroupView,
)
from guesthouse.model.job import Job

GROUPS, SETS, LOG, COUNTERS = (
    "/v1/security-groups",
    "/v1/address-sets",
    "/v1/firewall/log",
    "/v1/firewall/counters",
)


class Firewalls:
    """Methods of `House`, in a room of their own; they raise the same."""

    def __init__(self, house: House) -> None:
        self._house = house

    def of(self, owner: str) -> FirewallView:
        """:param owner: see `owner_path`."""
        return self._house.get(owner, FirewallView)

    def add(self, rules: str, rule: RuleRequest) -> Job:
        """:param rules: see `rules_path`."""
        return self._house.write("POST", rules, rule)

    def replace(self, rules: str, name: str, rule: RuleRequest) -> Job:
        return self._house.write("PUT", f"{rules}/{quote(name, safe='')}", rule)

    def remove(self, rules: str, name: str) -> Job:
        return self._house.write("DELETE", f"{rules}/{quote(name, safe='')}", None)

    def change(self, owner: str, change: FirewallChange) -> Job:
        return self._house.write("PATCH", owner, change)

    def test(self, guest: str, packet: PacketRequest) -> PacketView:
        """The dry run."""
        target = guest_path(guest, "firewall/test")
        return decoded(self._house.transport.request("POST", target, encode(packet)), PacketView)

    def counters(self) -> list[CounterView]:
        return self._house.get(COUNTERS, list[CounterView])

    @contextmanager
    def log(self, *, guest: str, tail: int, follow: bool) -> Iterator[Stream]:
        """Lines of JSON, each a `LoggedPacket`. :param guest: empty for all."""
        query = {"guest": guest, "tail": tail, "follow": "true" if follow else "false"}
        timeout = None if follow else PROBE_TIMEOUT
        target = f"{LOG}?{urlencode(query)}"
        with self._house.transport.stream("GET", target, timeout=timeout) as stream:
            yield stream

    def groups(self) -> list[SecurityGroupView]:
        return self._house.get(GROUPS, list[SecurityGroupView])

    def group(self, ref: str) -> SecurityGroupView:
        return self._house.get(group_path(ref), SecurityGroupView)

    def create_group(self, request: SecurityGroupRequest) -> Job:
        return self._house.write("POST", GROUPS, request)

    def change_group(self, ref: str, change: SecurityGroupChange) -> Job:
        return self._house.write("PATCH", group_path(ref), change)

    def remove_group(self, ref: str) -> Job:
        return self._house.write("DELETE", group_path(ref), None)

    def sets(self) -> list[AddressSetView]:
        return self._house.get(SETS, list[AddressSetView])

    def address_set(self, ref: str) -> AddressSetView:
        return self._house.get(set_path(ref), AddressSetView)

    def create_set(self, request: AddressSetRequest) -> Job:
        return self._house.write("POST", SETS, request)

    def change_set(self, ref: str, change: AddressSetChange) -> Job:
        return self._house.write("PATCH", set_path(ref), change)

    def remove_set(self, ref: str) -> Job:
        return self._house.write("DELETE", set_path(ref), None)


def owner_path(*, guest: str = "", network: str = "") -> str:
    """The path of the firewall of a guest or of a network. :raise InvalidInput: an empty name."""
    if network:
        return resource_path("networks", network, "network", "firewall")
    return guest_path(guest, "firewall")


def rules_path(owner: str) -> str:
    """Of its rules. :param owner: as `owner_path` or `group_path` gives it."""
    return f"{owner}/rules"


def group_path(ref: str) -> str:
    """As `owner_path`, of a security group."""
    return resource_path("security-groups", ref, "firewall group", "")


def set_path(ref: str) -> str:
    """As `owner_path`, of a set of addresses."""
    return resource_path("address-sets", ref, "firewall set", "")
