"""What the compiler and the dry run read: the whole house, with its addresses worked out."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from functools import cached_property

from guesthouse.errors import InvalidInput
from guesthouse.model.device import Protocol
from guesthouse.model.document import Noun
from guesthouse.model.firewall import (
    Action,
    AddressSet,
    Direction,
    Firewall,
    SecurityGroup,
    Subnet,
)
from guesthouse.model.network import GATEWAY_LINK_LOCAL, Network, NetworkKind, link_local

_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")

PRIVATE = (
    "10.0.0.0/8",
    "100.64.0.0/10",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "fc00::/7",
)
"""Addresses that no host of the internet has (RFC 1918, RFC 6598, RFC 4193)."""

ALWAYS_HOST = ("0.0.0.0/8", "10.0.2.0/24", "127.0.0.0/8", "169.254.0.0/16", "fd00::/64")
"""Addresses that lead to the host itself whatever its own are: `this` host, loopback, the uplink's
(slirp4netns(1): 10.0.2.0/24 and fd00::/64), and link-local, where clouds keep the host's secrets
(169.254.169.254)."""


class Features(Noun, kw_only=True, frozen=True):
    """What the kernel and nft can do; see `probing`. Nothing is taken for granted.

    :ivar bridge_state: how answers are told from questions between guests of one bridge:
        `conntrack` (CONFIG_NF_CONNTRACK_BRIDGE), `nf-call` (bridged packets pass the inet table:
        br_netfilter) or empty for not at all.
    :ivar bridge_reject: `reject` in the bridge family (CONFIG_NFT_BRIDGE_REJECT).
    :ivar log_group: packets are logged to this NFLOG group; None logs to the kernel's log, which
        for a namespace needs net.netfilter.nf_log_all_netns=1.
    """

    bridge_state: str = ""
    bridge_reject: bool = False
    log_group: int | None = None


class Card(Noun, kw_only=True, frozen=True):
    """A guest's network card on a network of the house.

    :ivar guest: id. :ivar name: the guest's, for people. :ivar tap: `t` + number + `-` + index.
    :ivar network: id.
    :ivar addresses: all that it may send from, IPv4 and IPv6, beside its link-local ones.
    :ivar any_address: its addresses are not known (a bridged network's DHCP): only its MAC is held.
    :ivar link_locals: ones that were learned, beside that which its MAC makes.
    """

    guest: str
    name: str
    tap: str
    mac: str
    network: str
    addresses: tuple[str, ...] = ()
    any_address: bool = False
    link_locals: tuple[str, ...] = ()
    firewall: Firewall = Firewall()

    def of_version(self, version: int) -> tuple[str, ...]:
        return tuple(a for a in self.addresses if ipaddress.ip_address(a).version == version)

    @property
    def all_link_locals(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((link_local(self.mac), *self.link_locals)))


class Published(Noun, kw_only=True, frozen=True):
    """A port of the uplink that leads to a port of a guest.

    :ivar port: what the uplink is asked for. :ivar address: the guest's, of either version.
    """

    port: int
    protocol: Protocol = Protocol.TCP
    address: str
    guest_port: int

    @property
    def version(self) -> int:
        return ipaddress.ip_address(self.address).version

    @property
    def map_name(self) -> str:
        return f"published_{self.protocol.value}{self.version}"


class Ruleset(Noun, kw_only=True, frozen=True, dict=True):
    """:ivar host: addresses of the host itself, beside `ALWAYS_HOST`.

    :ivar lan: what the host is attached to. :ivar uplink: the device that leads out.
    :ivar direct: another one, without translation: for routed networks, and for the host to those
        that it is connected to; empty where there is none.
    :ivar direct_hosts: the host's addresses there.
    """

    networks: tuple[Network, ...] = ()
    cards: tuple[Card, ...] = ()
    groups: tuple[SecurityGroup, ...] = ()
    sets: tuple[AddressSet, ...] = ()
    published: tuple[Published, ...] = ()
    host: tuple[str, ...] = ()
    lan: tuple[str, ...] = PRIVATE
    uplink: str = "tap0"
    direct: str = ""
    direct_hosts: tuple[str, ...] = ()
    features: Features = Features()

    @cached_property
    def network_of(self) -> dict[str, Network]:
        return {network.id: network for network in self.networks}

    @cached_property
    def group_of(self) -> dict[str, SecurityGroup]:
        return {group.id: group for group in self.groups}

    @cached_property
    def set_of(self) -> dict[str, AddressSet]:
        return {addresses.id: addresses for addresses in self.sets}

    @cached_property
    def cards_of(self) -> dict[str, tuple[Card, ...]]:
        """Cards by guest id."""
        found: dict[str, tuple[Card, ...]] = {}
        for card in self.cards:
            found[card.guest] = (*found.get(card.guest, ()), card)
        return found

    @cached_property
    def members(self) -> dict[str, tuple[Card, ...]]:
        """Cards by the id of the group that their guest, or their network, names."""
        found: dict[str, list[Card]] = {group.id: [] for group in self.groups}
        for card in self.cards:
            for group in self.groups_of(card):
                found[group].append(card)
        return {group: tuple(cards) for group, cards in found.items()}

    @cached_property
    def host_subnets(self) -> tuple[Subnet, ...]:
        return subnets((*ALWAYS_HOST, *self.host))

    @cached_property
    def lan_subnets(self) -> tuple[Subnet, ...]:
        return subnets(self.lan)

    @cached_property
    def reserved(self) -> tuple[str, ...]:
        """Link-local addresses that only their owners may use: the house's, known ones of cards."""
        known = (address for card in self.cards for address in card.all_link_locals)
        return tuple(dict.fromkeys((GATEWAY_LINK_LOCAL, *known)))

    def groups_of(self, card: Card) -> tuple[str, ...]:
        """Ids of the groups whose rules apply to the card, each once."""
        network = self.network_of[card.network]
        return tuple(dict.fromkeys((*card.firewall.groups, *network.firewall.groups)))

    def policy_of(self, card: Card, direction: Direction) -> tuple[Action, str]:
        """The default, and the key of who set it (see `steps.key`)."""
        network = self.network_of[card.network]
        for action, owner in (
            (card.firewall.policy.of(direction), f"guest/{card.guest}"),
            (network.firewall.policy.of(direction), f"network/{network.id}"),
        ):
            if action is not None:
                return action, f"{owner}/policy-{direction.value}"
        return Action.ACCEPT, f"house/policy-{direction.value}"

    def check(self) -> None:
        """Rules are checked where they are written down; this is about what is around them, of
        which nothing may reach nft unread.

        :raise InvalidInput: something is not spelled as it must be, refers to what is not there,
            or is there twice.
        """
        for index, card in enumerate(self.cards):
            self._check_card(card, f"cards[{index}]")
        for index, address in enumerate(self.direct_hosts):
            _check_spelling(address, f"direct_hosts[{index}]")
        for index, port in enumerate(self.published):
            _check_spelling(port.address, f"published[{index}].address")
        for name, values in (
            ("tap", [card.tap for card in self.cards]),
            ("mac", [card.mac for card in self.cards]),
            ("address", [address for card in self.cards for address in card.addresses]),
        ):
            if twice := _twice(values):
                raise InvalidInput(f"Two cards have the {name} {twice}.", field="cards")
        if twice := _twice([f"{port.map_name}/{port.port}" for port in self.published]):
            raise InvalidInput(f"A port is published twice: {twice}.", field="published")
        for field, device in (("uplink", self.uplink), ("direct", self.direct or self.uplink)):
            if not _DEVICE.fullmatch(device):
                raise InvalidInput(f"{device!r} is not a device.", field=field)

    def _check_card(self, card: Card, field: str) -> None:
        if not _DEVICE.fullmatch(card.tap):
            raise InvalidInput(f"{card.tap!r} is not a device.", field=f"{field}.tap")
        if not _MAC.fullmatch(card.mac):
            raise InvalidInput(f"{card.mac!r} is not a MAC.", field=f"{field}.mac")
        for address in (*card.addresses, *card.link_locals):
            _check_spelling(address, f"{field}.addresses")
        if card.network not in self.network_of:
            raise InvalidInput(
                f"Card {card.tap} is on a network that is not there.", field=f"{field}.network"
            )
        missing = [group for group in self.groups_of(card) if group not in self.group_of]
        if missing:
            raise InvalidInput(
                f"Card {card.tap} names the group {missing[0]}, which is not there.",
                field=f"{field}.firewall.groups",
            )

    @cached_property
    def bridges(self) -> dict[str, Network]:
        return {network.bridge: network for network in self.networks}


def _twice(values: list[str]) -> str:
    """Some value that is there more than once; empty if none is."""
    return next((value for value, count in Counter(values).items() if count > 1), "")


def _check_spelling(text: str, field: str) -> None:
    try:
        usual = str(ipaddress.ip_address(text))
    except ValueError:
        usual = ""
    if text != usual or "%" in text:
        raise InvalidInput(f"{text!r} is not an IP address in its usual spelling.", field=field)


def subnets(texts: tuple[str, ...]) -> tuple[Subnet, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


def of_kind(ruleset: Ruleset, *kinds: NetworkKind) -> list[Network]:
    return [network for network in ruleset.networks if network.kind in kinds]
