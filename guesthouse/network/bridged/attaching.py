"""The host's side of bridged networks, as it is wanted: bridges, VLANs, and the pair of interfaces
that leads from there into the house's namespace."""

from __future__ import annotations

from pathlib import Path

from guesthouse.errors import Busy, Conflict, HostLacks
from guesthouse.host.namespace.entering import tool_environment
from guesthouse.host.spawn import run
from guesthouse.model.network import Network
from guesthouse.network.bridged.hostlink import (
    HostLink,
    check_bridgeable,
    check_may_change,
    look_at,
)
from guesthouse.network.bridged.moves import Moves, batch
from guesthouse.network.bridged.plan import Names, port_lines, tagged_lines
from guesthouse.network.house.links import LIST, Links, read_links

FOLDER = "bridged"
"""In the runtime folder."""
_TRY_VLAN = (
    "link add ghv-trial type veth peer name ghp-trial\n"
    "link add link ghv-trial name ghb-trial type vlan id 2\n"
)


class HostBridges:
    """:param folder: for records of what was moved, in the runtime folder."""

    def __init__(self, folder: Path) -> None:
        self.moves = Moves(folder)

    async def check(self, network: Network) -> HostLink:
        """Whether it can be made; answers the interface.

        :raise HostLacks: this house may not, or the kernel cannot. :raise NotFound: no such
            interface. :raise InvalidInput: :raise Conflict: it cannot be bridged.
        """
        check_may_change()
        link = await look_at(network.uplink)
        if network.vlan:
            await check_vlan()
        if link.kind == "bridge":
            if owner := self.moves.owner(link.name):
                raise Conflict(
                    f"{link.name} is the bridge of another network of this house.",
                    hint="Launch the guests on that network: guest network ls",
                    network=owner,
                )
            return link
        if not network.vlan and (owner := self.moves.owner(link.master)):
            if owner == network.id:
                return link
            raise Conflict(
                f"{link.name} is bridged to another network of this house already.",
                hint="Launch the guests on that network: guest network ls",
                network=owner,
            )
        if network.vlan:  # tagged frames are taken before an interface's bridge gets any
            link_itself = HostLink(name=link.name, mac=link.mac, kind=link.kind, up=link.up)
            check_bridgeable(link_itself)
            return link
        check_bridgeable(link)
        return link

    def moves_address(self, network: Network, link: HostLink) -> bool:
        """Whether the host's own addresses must move for it, which can cut it off."""
        return not network.vlan and link.kind != "bridge"

    async def settle(self, network: Network, holder: int, *, there: bool) -> bool:
        """A port of the host's bridge is in the namespace of the process `holder`; answers whether
        it was put there now.

        :param there: its inner end is there already. Raises as `check`, and Busy: its interface is
            about to be moved, and nobody has confirmed yet. :raise Conflict: the host lost its
            gateway when it was moved after a boot, and has it back.
        """
        names = Names.of(network.id)
        if there and await self._is_whole(network, names):
            return False
        link = await self.check(network)
        bridge = await self._bridge(network, link, names)
        links = read_links((await run(LIST, env=tool_environment())).out)
        await batch(port_lines(names, bridge, network.mtu, holder, links, inside=there))
        return not there or names.port not in links

    async def remove(self, network: str) -> None:
        """Nothing of it is left on the host, and its interface is as it was. :param network: id."""
        names = Names.of(network)
        await self.moves.give_back(network)
        links = read_links((await run(LIST, env=tool_environment())).out)
        ours = (names.port, names.bridge, names.vlan)
        await batch([f"link delete dev {name}" for name in ours if name in links], go_on=True)

    async def _bridge(self, network: Network, link: HostLink, names: Names) -> str:
        """The host's bridge that the port is on, made if need be."""
        if network.vlan:
            await self._tagged(network, link, names)
            return names.bridge
        if link.kind == "bridge":
            return link.name
        state = self.moves.state(network.id)
        if state in ("moving", "returning"):
            raise Busy(
                f"The addresses of {link.name} are on their way for network {network.name}.",
                hint=f"Confirm that the host is reached: guest network confirm {network.name}",
            )
        if not state:  # the host was booted since
            await self.moves.move(network.id, link, unattended=True)
            why = await self.moves.settled(network.id)
            if why:
                raise Conflict(
                    f"{link.name} could not become a port of a bridge: {why}. It is as it was.",
                    hint="See to its network, then start the guest again.",
                )
        return names.bridge

    async def _tagged(self, network: Network, link: HostLink, names: Names) -> None:
        links = read_links((await run(LIST, env=tool_environment())).out)
        await batch(tagged_lines(link.name, network.vlan, names, links))

    async def _is_whole(self, network: Network, names: Names) -> bool:
        links: Links = read_links((await run(LIST, env=tool_environment())).out)
        port = links.get(names.port)
        return port is not None and port.up and port.mtu == network.mtu and bool(port.master)


async def check_vlan() -> None:
    """Really makes one, in a network of its own. :raise HostLacks: the kernel has none."""
    argv = ["unshare", "--net", "ip", "-batch", "-"]
    done = await run(argv, stdin=_TRY_VLAN.encode(), env=tool_environment(), check=False)
    if done.code:
        raise HostLacks(
            "This kernel has no VLANs (802.1Q), so no network can have --vlan.",
            hint="Load the module, as root: modprobe 8021q. Or tag at the switch, and leave --vlan "
            "away.",
            capability="vlan",
        )
