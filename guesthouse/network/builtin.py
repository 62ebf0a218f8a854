"""The builtin network: QEMU's own user networking (libslirp), one private network for each guest.

It needs no privilege and no device, works everywhere, and lets a guest out and published ports in;
guests do not see one another. The functions are pure; `Builtin` keeps `NetworkBackend`'s contract.

Facts: option and monitor syntax from QEMU's qemu-options.hx and net/slirp.c (7.2 to 10.0); its
forwards take IPv4 addresses only (`inet_aton` in net/slirp.c).
"""

from __future__ import annotations

import ipaddress

from guesthouse.errors import EngineError, InvalidInput, PortTaken
from guesthouse.model.device import Nic, Protocol, Publish
from guesthouse.network.base import Attachment, Monitor, NetworkCapabilities
from guesthouse.network.ports import no_ipv6


def netdev_id(index: int) -> str:
    """Name of the netdev of card `index`, which monitor commands and `-device` refer to."""
    return f"n{index}"


def netdev(nic: Nic, index: int, *, hostname: str, ipv6: bool = True) -> str:
    """Value of `-netdev` for card `index`.

    :param hostname: what the guest is told by DHCP. :param ipv6: also offer IPv6 inside.
    :raise InvalidInput: a published port that libslirp cannot do (IPv6), or whose `host_port` is
        still 0.
    """
    options = ["user", f"id={netdev_id(index)}", f"hostname={escape(hostname)}"]
    # Both by name: `ipv6=on` alone would turn IPv4 off (QEMU's net/slirp.c).
    options += ["ipv4=on", f"ipv6={'on' if ipv6 else 'off'}"]
    options += [f"hostfwd={escape(_forward(port))}" for port in nic.ports]
    return ",".join(options)


def netdev_live(nic: Nic, index: int, *, hostname: str) -> dict[str, object]:
    """The same as arguments of QMP's `netdev_add` (qapi/net.json). Raises as `netdev`."""
    return {
        "type": "user",
        "id": netdev_id(index),
        "hostname": hostname,
        "ipv4": True,
        "ipv6": True,
        "hostfwd": [{"str": _forward(port)} for port in nic.ports],
    }


def escape(value: str) -> str:
    """`value` as QEMU's option syntax wants it: a comma is written twice."""
    return value.replace(",", ",,")


def hostfwd_add(index: int, port: Publish) -> str:
    """Monitor line that opens `port` on card `index`. Raises as `netdev`."""
    return f"hostfwd_add {netdev_id(index)} {_forward(port)}"


def hostfwd_remove(index: int, port: Publish) -> str:
    """Monitor line that closes `port` on card `index`. Raises as `netdev`."""
    return f"hostfwd_remove {netdev_id(index)} {_host_side(port)}"


def check_added(reply: str, port: Publish) -> None:
    """Read the monitor's reply to `hostfwd_add`, which is empty when it worked.

    :raise PortTaken: the host's port could not be bound; the monitor does not say why.
    :raise EngineError: anything else.
    """
    text = reply.strip()
    if not text:
        return
    if text.lower().startswith("could not set up host forwarding rule"):
        raise PortTaken(
            f"Port {port.host_ip}:{port.host_port}/{port.protocol.value} of this host could not "
            "be opened.",
            hint="Publish another port, or stop what holds this one.",
            host_ip=port.host_ip,
            host_port=port.host_port,
            protocol=port.protocol.value,
        )
    raise EngineError(f"The port {port} was not published: {text}")


def check_removed(reply: str, port: Publish) -> bool:
    """Read the monitor's reply to `hostfwd_remove`: False when the port was not open.

    :raise EngineError: the monitor refused the command.
    """
    text = reply.strip()
    if text.startswith("host forwarding rule for "):
        if text.endswith(" removed"):
            return True
        if text.endswith(" not found"):
            return False
    raise EngineError(f"The port {port} was not closed: {text or 'the monitor said nothing'}")


class Builtin:
    """The builtin network as a backend. It holds no state: everything is in QEMU's process."""

    name = "builtin"
    capabilities = NetworkCapabilities(guest_to_guest=False, live_publish=True, ipv6_publish=False)

    async def attach(self, guest: str, nic: Nic, index: int, *, hostname: str) -> Attachment:
        return Attachment(
            netdev(nic, index, hostname=hostname), live=netdev_live(nic, index, hostname=hostname)
        )

    async def change(self, guest: str, nic: Nic, index: int, *, hostname: str) -> None:
        """Each of these networks is the card's own, with addresses of its own."""

    async def rest(self, guest: str, index: int) -> None:
        """The ports ended with the guest's process."""

    async def detach(self, guest: str, index: int) -> None:
        """Nothing outlives the guest's process."""

    async def publish(self, guest: str, index: int, port: Publish, monitor: Monitor) -> None:
        check_added(await monitor(hostfwd_add(index, port)), port)

    async def unpublish(self, guest: str, index: int, port: Publish, monitor: Monitor) -> None:
        if ":" in port.host_ip:
            return  # it was never opened here
        check_removed(await monitor(hostfwd_remove(index, port)), port)


def _forward(port: Publish) -> str:
    return f"{_host_side(port)}-:{port.guest_port}"


def _host_side(port: Publish) -> str:
    address = ipaddress.ip_address(port.host_ip)
    if address.version != 4:
        raise no_ipv6(port)
    if port.host_port == 0:
        raise InvalidInput(
            f"The published port {port} has no port of the host yet.",
            hint="A free one must be reserved first.",
            field="publish",
        )
    protocol = "udp" if port.protocol is Protocol.UDP else "tcp"
    return f"{protocol}:{address}:{port.host_port}"
