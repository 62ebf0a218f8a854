"""Requests about networks, and what is answered about them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta, structs

from guesthouse.model.bridging import MAX_VLAN
from guesthouse.model.device import Nic
from guesthouse.model.document import Noun
from guesthouse.model.guest import Guest
from guesthouse.model.network import DhcpRange, Lease, Network, NetworkKind

BUILTIN = "builtin"
"""In place of a network's name: the engine's own user networking, one for each guest."""
DEFAULT = "default"
"""Name of the network of guests that name none; the house makes it when it is first needed."""

NetworkName = Annotated[str, Meta(min_length=1, max_length=256)]
Cidr = Annotated[str, Meta(max_length=64)]
Domain = Annotated[str, Meta(max_length=200)]
Mtu = Annotated[int, Meta(ge=576, le=65_520, description="Bytes.")]


class NetworkRequest(Noun, kw_only=True, frozen=True):
    """A network that is to be made.

    :ivar kind: `bridged` is for the machine's house alone. Such a network is confirmed within 30
        seconds, or all is as it was: `POST /v1/networks/{ref}/confirm`.
    :ivar uplink: of `bridged` the interface of the host, whose network it is; an interface that is
        no bridge becomes a port of one, and the host's addresses move there. `vlan`: of it.
    :ivar subnet4: CIDR; null lets the house choose one that is free on this host, an empty text
        leaves IPv4 away. `subnet6`: likewise, a /64.
    :ivar dhcp: IPv4 addresses for guests; null takes nine tenths of the subnet.
    :ivar domain: DNS domain in which the guests find one another by name, beside their bare names.
    :ivar host_access: guests reach the host's own addresses without a rule.
    :ivar lan_access: guests reach the networks that the host is attached to without a rule.
    """

    name: NetworkName
    kind: NetworkKind = NetworkKind.NAT
    subnet4: Cidr | None = None
    subnet6: Cidr | None = None
    dhcp: DhcpRange | None = None
    domain: Domain = ""
    mtu: Mtu = 1500
    uplink: Annotated[str, Meta(max_length=64)] = ""
    vlan: Annotated[int, Meta(ge=0, le=MAX_VLAN)] = 0
    host_access: bool = False
    lan_access: bool = True


class NetworkChange(Noun, kw_only=True, frozen=True):
    """What to change of a network; null or absent leaves a field alone. Its subnets and its kind
    stay: guests have their addresses there.

    :ivar connected: the host gets a route to its guests; for the machine's house alone.
    """

    name: NetworkName | None = None
    dhcp: DhcpRange | None = None
    domain: Domain | None = None
    mtu: Mtu | None = None
    host_access: bool | None = None
    lan_access: bool | None = None
    connected: bool | None = None


class NetworkMember(Noun, kw_only=True, frozen=True):
    """A card of a guest on a network.

    :ivar guest: its name. :ivar nic: number of the card.
    :ivar address4: empty until it was first started there, as `address6`.
    :ivar trashed: the guest is in the trash.
    """

    guest: str
    nic: int
    mac: str
    address4: str = ""
    address6: str = ""
    trashed: bool = False


class NetworkView(Network, kw_only=True, frozen=True):
    """A network, and who is on it.

    :ivar own_address4: the house's own address there. `own_address6`: likewise.
    :ivar clashes: routes of this host, as CIDRs, that came to lead into its subnets.
    :ivar confirm_by: when the host's interface is given back unless somebody confirms that the
        host is still reached, in seconds since the epoch; null when there is nothing to confirm.
    """

    own_address4: str = ""
    own_address6: str = ""
    clashes: tuple[str, ...] = ()
    confirm_by: float | None = None
    members: tuple[NetworkMember, ...] = ()

    @classmethod
    def of(
        cls,
        network: Network,
        guests: Iterable[Guest] = (),
        leases: Iterable[Lease] = (),
        clashes: tuple[str, ...] = (),
        confirm_by: float | None = None,
    ) -> NetworkView:
        """Members sorted by name, those in the trash last."""
        known = {(one.guest, one.nic): one for one in leases if one.network == network.id}
        members = [
            _member(guest, nic, known.get((guest.id, nic.index)))
            for guest in guests
            for nic in guest.spec.nics
            if nic.network == network.id
        ]
        members.sort(key=lambda one: (one.trashed, one.guest, one.nic))
        return cls(
            **structs.asdict(network),
            own_address4=network.gateway4,
            own_address6=network.gateway6,
            clashes=clashes,
            confirm_by=confirm_by,
            members=tuple(members),
        )


def _member(guest: Guest, nic: Nic, lease: Lease | None) -> NetworkMember:
    return NetworkMember(
        guest=guest.name,
        nic=nic.index,
        mac=nic.mac,
        address4=nic.address4 or (lease.address4 if lease else ""),
        address6=nic.address6 or (lease.address6 if lease else ""),
        trashed=guest.in_trash,
    )
