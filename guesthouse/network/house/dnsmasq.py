"""Addresses and names on a network: dnsmasq's files, as text, and its process.

It gives each card the addresses that are written down for it, and no other: the rules let a card
send from these alone. So it needs no memory of its own (`leasefile-ro`), and may die and be
started again without anybody noticing. IPv6 addresses come by DHCPv6: the advertisements say so
(managed, not autonomous), since an address that a guest makes up would be dropped.

Facts: dnsmasq(8) 2.90; at SIGHUP dnsmasq reads `dhcp-hostsfile`, `dhcp-optsfile`, `addn-hosts` and
`servers-file` again, and forgets the answers that it remembers.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from guesthouse.host.launcher import GuestIdentity
from guesthouse.model.network import Network, NetworkKind
from guesthouse.network.house.seats import Seat

RUN = "/run/guesthouse"
"""A folder inside: /run is the house's own there."""
PIDS = f"{RUN}/pids"
"""Beside it one that the service itself may write to."""
SERVICE = 0
"""Its number among the services of the house (`IdPlan.service`)."""

SERVERS = f"{RUN}/servers"
"""Whom to ask for names of the world (`resolver.servers_text`)."""

ADDRESS6_OPTION = 224
"""The first of DHCP's options for whoever runs a site (RFC 3942 section 2): the card's IPv6 address
in 16 octets. Our micro guest asks for it."""

_LEASE = "1h"
_CAPABILITIES = "+net_admin,+net_bind_service,+net_raw"


def configuration(network: Network, *, ipv6: bool = True) -> str:
    """For `dnsmasq --conf-file=-`. The network has a bridge of the house.

    :param ipv6: the kernel has it.
    """
    bridge, isolated = network.bridge, network.kind is NetworkKind.ISOLATED
    lines = [
        f"interface={bridge}",
        "except-interface=lo",
        "bind-interfaces",
        f"pid-file={PIDS}/{bridge}",
        f"dhcp-hostsfile={cards_file(network)}",
        f"dhcp-optsfile={options_file(network)}",
        f"addn-hosts={names_file(network)}",
        "no-hosts",
        "no-resolv",
        "no-ping",
        "domain-needed",
        "local-ttl=5",
        "cache-size=1000",
        "dns-forward-max=500",
        "dhcp-authoritative",
        "dhcp-lease-max=65536",
        "leasefile-ro",
        "log-facility=/dev/null",
    ]
    if not isolated:
        # As the host's own programs ask them: the next one when the one before is silent.
        lines += [f"servers-file={SERVERS}", "strict-order"]
    if network.domain:
        lines += [f"domain={network.domain}", f"local=/{network.domain}/"]
    if network.subnet4 and network.dhcp:
        lines += _dhcp4(network, isolated)
    if network.subnet6 and ipv6:
        lines += _dhcp6(network, isolated)
    return "\n".join(lines) + "\n"


def _dhcp4(network: Network, isolated: bool) -> list[str]:
    subnet = ipaddress.IPv4Network(network.subnet4)
    lines = [
        f"dhcp-range={subnet.network_address},static,{subnet.netmask},{_LEASE}",
        f"dhcp-option=option:mtu,{network.mtu}",
    ]
    return [*lines, "dhcp-option=option:router"] if isolated else lines


def _dhcp6(network: Network, isolated: bool) -> list[str]:
    base = network.subnet6.partition("/")[0]
    # The server's own name, which would otherwise be another one after each start.
    ident = network.id[-8:].lower().encode().hex(":")
    # A router of lifetime 0 is nobody's default (RFC 4861 section 4.2).
    lifetime = 0 if isolated else 1800
    return [
        f"dhcp-range={base},static,64,{_LEASE}",
        f"dhcp-duid=0,{ident}",
        "enable-ra",
        f"ra-param={network.bridge},mtu:{network.mtu},60,{lifetime}",
    ]


def cards(seats: Iterable[Seat]) -> str:
    """The addresses of each card, for `dhcp-hostsfile`."""
    lines = []
    for seat in seats:
        four, six = seat.address(4), seat.address(6)
        known = [part for part in (four, f"[{six}]" if six else "") if part]
        if known:
            mark = [f"set:{seat.tap}"] if _has_both(seat) else []
            lines.append(",".join((seat.mac, *mark, *known, seat.name, _LEASE)))
    return "".join(f"{line}\n" for line in lines)


def options(seats: Iterable[Seat]) -> str:
    """What DHCP tells single cards, for `dhcp-optsfile`: the IPv6 address beside the IPv4 one, for
    guests that have no DHCPv6 client."""
    lines = []
    for seat in filter(_has_both, seats):
        packed = ipaddress.IPv6Address(seat.address(6)).packed
        lines.append(f"tag:{seat.tap},{ADDRESS6_OPTION},{packed.hex(':')}\n")
    return "".join(lines)


def _has_both(seat: Seat) -> bool:
    return bool(seat.address(4) and seat.address(6))


def gives_up(before: str, after: str) -> bool:
    """Whether a card loses an address from one text of `cards` to the next. dnsmasq remembers for
    an hour who asked for which, and gives none of these to another card: it must be started anew.
    """
    return not _given(before) <= _given(after)


def _given(text: str) -> set[tuple[str, str]]:
    lines = (line.split(",") for line in text.splitlines())
    return {
        (mac, part)
        for mac, *parts, _name, _lease in lines
        for part in parts
        if not part.startswith("set:")
    }


def names(network: Network, seats: Iterable[Seat]) -> str:
    """The addresses of each guest's first card there, for `addn-hosts`. `host` and `gateway`
    would be names of guests, so the house has none."""
    lines = []
    seen: set[str] = set()
    for seat in sorted(seats, key=lambda seat: seat.index):
        if seat.name in seen:
            continue
        seen.add(seat.name)
        full = [f"{seat.name}.{network.domain}"] if network.domain else []
        lines += [" ".join((address, *full, seat.name)) for address in seat.addresses]
    return "".join(f"{line}\n" for line in lines)


def cards_file(network: Network) -> str:
    return f"{RUN}/{network.bridge}.cards"


def options_file(network: Network) -> str:
    return f"{RUN}/{network.bridge}.options"


def names_file(network: Network) -> str:
    return f"{RUN}/{network.bridge}.names"


def pid_file(network: Network) -> str:
    return f"{PIDS}/{network.bridge}"


def command(who: GuestIdentity) -> list[str]:
    """It is fed its configuration, goes into the background when it is ready, and is an id of its
    own with the three rights that it needs in the house's network: a guest that takes it over is
    nobody on the host."""
    return [
        "setpriv",
        f"--reuid={who.uid}",
        f"--regid={who.gid}",
        "--clear-groups",
        f"--inh-caps=-all,{_CAPABILITIES}",
        f"--ambient-caps=-all,{_CAPABILITIES}",
        f"--bounding-set=-all,{_CAPABILITIES}",
        "--no-new-privs",
        "--",
        "dnsmasq",
        "--conf-file=-",
    ]


def folder_command(who: GuestIdentity) -> Sequence[str]:
    """Makes `RUN` and `PIDS`, inside."""
    return ("install", "-d", "-m", "0755", "-o", str(who.uid), "-g", str(who.gid), PIDS)
