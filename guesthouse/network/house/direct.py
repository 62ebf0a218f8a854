"""A pair of interfaces between the host and the house's namespace, beside the uplink: for routed
networks, whose guests leave under their own addresses, and for those that the host is connected to.

The uplink carries connections of its own and shows nobody's address (slirp4netns). Here packets go
as they are. The host's end has routes to these networks; nothing is translated on the host, and its
forwarding is left as it is found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from guesthouse.errors import HostLacks
from guesthouse.host.namespace.entering import tool_environment
from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.host.spawn import run
from guesthouse.model.network import Network, NetworkKind, choose_subnet
from guesthouse.network.bridged.hostlink import check_may_change
from guesthouse.network.bridged.moves import batch
from guesthouse.network.house.hostside import routes
from guesthouse.network.house.links import LIST, Link, read_links

DEVICE = "up0"
_TABLE = 7
_MAIN_FIRST, _FROM_ROUTED = 999, 1000
"""Preferences of rules: what leads to the house's own networks, then routed guests' way out."""


class Ends(NamedTuple):
    """Addresses of the host's end and of the house's, with their prefix length."""

    host4: str
    house4: str
    host6: str
    house6: str

    @property
    def words(self) -> dict[str, str]:
        """Without the prefix length."""
        return {name: text.partition("/")[0] for name, text in self._asdict().items()}


def host_end(runtime: Path) -> str:
    """Its end on the host. :param runtime: the house's runtime folder."""
    return f"ghu-{hashlib.sha256(str(runtime).encode()).hexdigest()[:8]}"


def ends_of(subnet4: str, subnet6: str) -> Ends:
    """The first two addresses of a transfer network."""
    base4, length4 = subnet4.split("/")
    first, _, last = base4.rpartition(".")
    base6 = subnet6.partition("/")[0]
    return Ends(
        host4=f"{first}.{int(last) + 1}/{length4}",
        house4=f"{first}.{int(last) + 2}/{length4}",
        host6=f"{base6}1/64",
        house6=f"{base6}2/64",
    )


def host_lines(
    name: str, ends: Ends, networks: Sequence[Network], before: Sequence[str], *, holder: int = 0
) -> list[str]:
    """For `ip -batch` on the host. :param before: where routes over it lead by now.

    :param holder: of the namespace, where the pair is to be made.
    """
    lines = []
    if holder:
        mac = "fe:67:6c:" + hashlib.sha256(name.encode()).digest()[:3].hex(":")
        lines += [
            f"link add {name} address {mac} type veth peer name {DEVICE} netns {holder}",
            f"address add {ends.host4} dev {name}",
            f"address add {ends.host6} dev {name} nodad",
            f"link set dev {name} up",
        ]
    wanted = {
        subnet: ends.words["house4" if "." in subnet else "house6"]
        for network in networks
        for subnet in (network.subnet4, network.subnet6)
        if subnet
    }
    lines += [f"route delete {gone} dev {name}" for gone in before if gone not in wanted]
    return [
        *lines,
        *(f"route replace {subnet} via {via} dev {name}" for subnet, via in wanted.items()),
    ]


def house_lines(ends: Ends, networks: Sequence[Network], version: int) -> list[str]:
    """For `ip -4 -batch` or `ip -6 -batch` inside. Rules of before are gone."""
    own = ends.house4 if version == 4 else ends.house6
    via = ends.words["host4" if version == 4 else "host6"]
    nodad = " nodad" if version == 6 else ""
    lines = [
        f"link set dev {DEVICE} up",
        f"address replace {own} dev {DEVICE}{nodad}",
        f"route replace default via {via} dev {DEVICE} table {_TABLE}",
        f"rule add preference {_MAIN_FIRST} lookup main suppress_prefixlength 0",
    ]
    routed = [n for n in networks if n.kind is NetworkKind.ROUTED]
    subnets = [n.subnet4 if version == 4 else n.subnet6 for n in routed]
    return lines + [
        f"rule add preference {_FROM_ROUTED} from {subnet} lookup {_TABLE}"
        for subnet in subnets
        if subnet
    ]


class Direct:
    """:param runtime: the house's runtime folder: several houses of a host have one pair each."""

    def __init__(self, namespace: HouseNamespace, runtime: Path) -> None:
        self._namespace = namespace
        self._seed, self.name = str(runtime), host_end(runtime)
        self._done: object = None
        self._ends_now: Ends | None = None

    @property
    def device(self) -> str:
        """Its end in the house; empty where there is none."""
        return DEVICE if self._done else ""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The host's addresses on it."""
        words = self._ends_now.words if self._done and self._ends_now else {}
        return tuple(words[name] for name in ("host4", "host6") if words)

    async def settle(self, networks: Sequence[Network]) -> None:
        """These networks are reached over it, and no others. Without any it is not there.

        :raise HostLacks: this house may not change the host's network, or has no IPv6.
        """
        links = read_links((await run(LIST, env=tool_environment())).out) if self._may_be else {}
        there = links.get(self.name)
        if not networks:
            await batch([f"link delete dev {self.name}"] if there else [], go_on=True)
            self._done = None
            return
        check_may_change()
        if "ipv6" in self._namespace.facts.lacks:
            raise HostLacks(
                "Without IPv6 in the kernel there is no direct way to the host.",
                hint="Use a network of kind nat.",
                capability="ipv6",
            )
        wanted = (self._namespace.facts.net, tuple(networks))
        if there and there.up and self._done == wanted:
            return
        if there and self._done is None and not await self._is_inside():
            await batch([f"link delete dev {self.name}"], go_on=True)  # of a namespace that is gone
            there = None
        ends = await self._ends(there, networks)
        before = await self._routes() if there else ()
        holder = 0 if there else self._namespace.facts.pid
        await batch(host_lines(self.name, ends, networks, before, holder=holder))
        await self._inside(ends, networks)
        self._done, self._ends_now = wanted, ends

    @property
    def _may_be(self) -> bool:
        """Whether there can be one, so that looking costs nothing where there never was."""
        try:
            check_may_change()
        except HostLacks:
            return False
        return True

    async def _is_inside(self) -> bool:
        done = await self._namespace.run(["ip", "link", "show", "dev", DEVICE], check=False)
        return not done.code

    async def _ends(self, there: Link | None, networks: Sequence[Network]) -> Ends:
        """Those that the host's end has, or of a transfer network that is free."""
        if there is not None:
            four = next(a for a in there.addresses if "." in a)
            six = next(a for a in there.addresses if ":" in a and not a.startswith("fe80"))
            base4, _, last = four.partition("/")[0].rpartition(".")
            return ends_of(
                f"{base4}.{int(last) - 1}/{four.partition('/')[2]}",
                f"{six.partition('/')[0].removesuffix('1')}/64",
            )
        taken = [*await routes(), *(str(one) for n in networks for one in n.subnets)]
        return ends_of(
            choose_subnet(taken, prefix=29, seed=self._seed),
            choose_subnet(taken, version=6, seed=self._seed),
        )

    async def _routes(self) -> list[str]:
        found = []
        for family in ("-4", "-6"):
            argv = ["ip", "-j", family, "route", "show", "dev", self.name]
            listed = json.loads((await run(argv, env=tool_environment())).out or b"[]")
            found += [route["dst"] for route in listed if "gateway" in route]
        return found

    async def _inside(self, ends: Ends, networks: Sequence[Network]) -> None:
        await self._namespace.settings(
            {
                # Who comes in must be whom an answer would reach: only the host on networks that
                # are not routed (RFC 3704 section 2.2).
                f"ipv4/conf/{DEVICE}/rp_filter": "1",
                f"ipv6/conf/{DEVICE}/accept_ra": "0",
            }
        )
        for version in (4, 6):
            ip = ["ip", f"-{version}"]
            listed = json.loads((await self._namespace.run([*ip, "-j", "rule"])).out or b"[]")
            ours = [rule for rule in listed if rule["priority"] in (_MAIN_FIRST, _FROM_ROUTED)]
            gone = [f"rule delete preference {rule['priority']}" for rule in ours]
            lines = [*gone, *house_lines(ends, networks, version), ""]
            await self._namespace.run([*ip, "-batch", "-"], input="\n".join(lines).encode())


def reached_directly(networks: Sequence[Network]) -> list[Network]:
    """Those that need it."""
    return [n for n in networks if n.kind is NetworkKind.ROUTED or n.connected]
