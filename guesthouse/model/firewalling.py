"""Requests about firewalls, and what is answered about them. Ends of rules are names here."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from guesthouse.model.document import Noun
from guesthouse.model.firewall import Action, Direction, Policy, Rule, Traffic

Ref = Annotated[str, Meta(min_length=1, max_length=256)]
Label = Annotated[str, Meta(max_length=63)]
Note = Annotated[str, Meta(max_length=200)]
End = Annotated[str, Meta(min_length=1, max_length=256)]
Ends = Annotated[tuple[End, ...], Meta(max_length=256)]
Ports = Annotated[
    tuple[Annotated[str, Meta(min_length=1, max_length=11)], ...], Meta(max_length=256)
]


class PolicyChoice(StrEnum):
    """`default`: a guest leaves it to its networks, a network to the house, which accepts."""

    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"
    DEFAULT = "default"


class RuleRequest(Noun, kw_only=True, frozen=True):
    """A rule as people write it.

    :ivar name: empty lets the house make one up, such as `allow-tcp-22`.
    :ivar direction: as its guest sees it.
    :ivar ports: of the destination: `80` or `8000-8100`. `source_ports`: likewise.
    :ivar sources: a CIDR, `guest:NAME` or just NAME, `group:NAME`, `set:NAME`, `network:NAME`,
        `host`, `lan` or `outside`; any one of them; none means anyone. `destinations`: likewise.
    :ivar log: packets that it decides about are logged, at a limited rate.
    :ivar before: name or number of the rule that it goes before; empty: after all others. A rule
        that replaces one stays where that was.
    """

    name: Label = ""
    direction: Direction = Direction.IN
    action: Action = Action.ACCEPT
    protocol: Traffic = Traffic.ANY
    ports: Ports = ()
    source_ports: Ports = ()
    sources: Ends = ()
    destinations: Ends = ()
    log: bool = False
    enabled: bool = True
    note: Note = ""
    before: Label = ""


class FirewallChange(Noun, kw_only=True, frozen=True):
    """What to change beside the rules; null or absent leaves it alone.

    :ivar incoming: what becomes of packets that no rule decides about. `outgoing`: likewise.
    :ivar join: security groups, behind those that it is in. `leave`: likewise, out of them.
    """

    incoming: PolicyChoice | None = None
    outgoing: PolicyChoice | None = None
    join: Annotated[tuple[Ref, ...], Meta(max_length=64)] = ()
    leave: Annotated[tuple[Ref, ...], Meta(max_length=64)] = ()


class RuleView(Rule, kw_only=True, frozen=True):
    """A rule, and what came of it.

    :ivar number: 1 is asked first of its owner's. :ivar owner: `guest web`, `group ssh`, `network
        lan`.
    :ivar packets: that it decided about since the rules were first loaded; of what it let through
        only the first of each connection. Null where the kernel does not have it.
    :ivar bytes: likewise.
    :ivar missing: ends that nobody is any more, each with `gone` or `trash`; they match nothing.
    """

    number: int
    owner: str
    packets: int | None = None
    bytes: int | None = None
    missing: dict[str, str] = {}


class DefaultView(Noun, kw_only=True, frozen=True):
    """What becomes of packets that no rule decides about. :ivar owner: who says so."""

    direction: Direction
    action: Action
    owner: str
    packets: int | None = None
    bytes: int | None = None


class FirewallView(Noun, kw_only=True, frozen=True):
    """The firewall of a guest or a network.

    :ivar owner: `guest web` or `network lan`. :ivar rules: its own. :ivar policy: likewise.
    :ivar groups: names of the security groups that it is in.
    :ivar applied: of a guest: every rule that is asked about its packets, in order: its own, those
        of its groups, of its networks' groups, of its networks.
    :ivar defaults: of a guest: what is left when none of them decides.
    :ivar active: the kernel has the rules now: the guest was started on a network of the house.
    :ivar warnings: what does not hold on this host.
    """

    owner: str
    rules: tuple[RuleView, ...] = ()
    groups: tuple[str, ...] = ()
    policy: Policy = Policy()
    applied: tuple[RuleView, ...] = ()
    defaults: tuple[DefaultView, ...] = ()
    active: bool = False
    warnings: tuple[str, ...] = ()


class SecurityGroupRequest(Noun, kw_only=True, frozen=True):
    """A security group that is to be made, without rules."""

    name: Ref
    note: Note = ""


class SecurityGroupChange(Noun, kw_only=True, frozen=True):
    name: Ref | None = None
    note: Note | None = None


class SecurityGroupView(Noun, kw_only=True, frozen=True):
    """A security group. :ivar members: `guest web`, `network lan`: who is in it.

    :ivar named_by: whose rules name it as a source or destination.
    """

    id: str
    name: str
    note: str = ""
    rules: tuple[RuleView, ...] = ()
    members: tuple[str, ...] = ()
    named_by: tuple[str, ...] = ()
    created_at: float


class AddressSetRequest(Noun, kw_only=True, frozen=True):
    """Addresses and networks under one name. :ivar entries: CIDRs of either version."""

    name: Ref
    entries: Annotated[tuple[End, ...], Meta(max_length=10_000)] = ()
    note: Note = ""


class AddressSetChange(Noun, kw_only=True, frozen=True):
    """:ivar add: CIDRs; those that are there already stay. :ivar remove: likewise."""

    name: Ref | None = None
    note: Note | None = None
    add: Annotated[tuple[End, ...], Meta(max_length=4096)] = ()
    remove: Annotated[tuple[End, ...], Meta(max_length=4096)] = ()


class AddressSetView(Noun, kw_only=True, frozen=True):
    """:ivar named_by: whose rules name it."""

    id: str
    name: str
    entries: tuple[str, ...] = ()
    note: str = ""
    named_by: tuple[str, ...] = ()
    created_at: float


class PacketRequest(Noun, kw_only=True, frozen=True):
    """A packet that a dry run is asked about: the first of a connection.

    :ivar direction: as the guest sees it. :ivar port: of the destination; 0 for icmp.
    :ivar far: the other end: a guest, an IP address, `host`, `house` or `outside`.
    """

    direction: Direction = Direction.IN
    protocol: Traffic = Traffic.TCP
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    far: Ref = "outside"


class PacketView(Noun, kw_only=True, frozen=True):
    """What would become of it.

    :ivar rule: key of what decides, as in counters and logs. :ivar reason: one sentence.
    :ivar label: the same with names instead of ids.
    :ivar passed: labels of what lets it through before that.
    :ivar source: its address. :ivar destination: likewise, and the port behind it.
    """

    action: Action
    rule: str
    label: str
    reason: str
    passed: tuple[str, ...] = ()
    source: str
    destination: str
    port: int = 0


class CounterView(Noun, kw_only=True, frozen=True):
    """:ivar rule: key of what decided. :ivar label: the same with names instead of ids.

    :ivar reason: one sentence about it.
    """

    rule: str
    label: str
    reason: str
    packets: int
    bytes: int


class LoggedPacket(Noun, kw_only=True, frozen=True):
    """A line of the firewall's log.

    :ivar time: seconds since the epoch. :ivar rule: key of the rule that decided.
    :ivar sender: id of the guest; empty for none of the house. :ivar receiver: likewise.
    :ivar owner: of the rule, `guest web`; the log's file does not have it, nor names of guests.
    """

    time: float
    action: Action
    rule: str
    protocol: str
    source: str
    destination: str
    source_port: int = 0
    port: int = 0
    length: int = 0
    sender: str = ""
    receiver: str = ""
    sender_name: str = ""
    receiver_name: str = ""
    owner: str = ""
