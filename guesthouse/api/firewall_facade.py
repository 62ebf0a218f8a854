"""What the API needs of the house's firewalls; see `facade`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
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


class FirewallHouse(Protocol):
    """`room` is `guests`, `networks` or `security-groups`; `ref` somebody there, as in `House`."""

    async def of_guest(self, ref: str) -> FirewallView: ...

    async def of_network(self, ref: str) -> FirewallView: ...

    async def groups(self) -> list[SecurityGroupView]: ...

    async def group(self, ref: str) -> SecurityGroupView: ...

    def sets(self) -> list[AddressSetView]: ...

    def address_set(self, ref: str) -> AddressSetView: ...

    async def counters(self) -> list[CounterView]:
        """Everything that decided about a packet, most often first."""
        ...

    async def try_packet(self, ref: str, request: PacketRequest) -> PacketView:
        """The dry run. :raise InvalidInput: there is no such packet."""
        ...

    async def log(self, ref: str, tail: int, *, follow: bool = False) -> AsyncIterator[bytes]:
        """Lines of JSON; :param ref: of a guest, or empty for all packets."""
        ...

    async def add_rule(self, room: str, ref: str, request: RuleRequest, requester: str) -> Job:
        """The job's result says its name: `rule`."""
        ...

    async def replace_rule(
        self, room: str, ref: str, rule: str, request: RuleRequest, requester: str
    ) -> Job: ...

    async def remove_rule(self, room: str, ref: str, rule: str, requester: str) -> Job: ...

    async def change(self, room: str, ref: str, change: FirewallChange, requester: str) -> Job:
        """Policies and groups of a guest or network."""
        ...

    async def create_group(self, request: SecurityGroupRequest, requester: str) -> Job: ...

    async def change_group(self, ref: str, change: SecurityGroupChange, requester: str) -> Job: ...

    async def remove_group(self, ref: str, requester: str) -> Job: ...

    async def create_set(self, request: AddressSetRequest, requester: str) -> Job: ...

    async def change_set(self, ref: str, change: AddressSetChange, requester: str) -> Job: ...

    async def remove_set(self, ref: str, requester: str) -> Job: ...
