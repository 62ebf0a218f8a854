"""`guest publish` and `guest unpublish`."""

from __future__ import annotations

import ipaddress

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, guest_argument
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.session import open_house
from guesthouse.errors import InvalidInput, NotFound
from guesthouse.model.device import PortRequest, Protocol, Publish, parse_publish
from guesthouse.model.reports import GuestView, UnpublishRequest


def ports_of(guest: GuestView) -> list[Publish]:
    return [port for nic in guest.spec.nics for port in nic.ports]


@command(
    "publish",
    examples=[
        ("guest publish web 8080:80", "Port 8080 of this host, from this host only"),
        ("guest publish web 0.0.0.0:443:443", "From everywhere"),
        ("guest publish web 0:22", "Any free port; it is printed"),
        ("guest publish dns 5353:53/udp", ""),
    ],
)
@guest_argument()
@click.argument("port", metavar="[IP:]HOST:GUEST[/udp]")
def publish(name: str, port: str) -> None:
    """Lead a port of this host into a guest. A running guest has it at once.

    Without an address it is 127.0.0.1; the system's house wants one to be named.
    """
    wanted = parse_publish(port)
    house = open_house()
    before = set(ports_of(house.guest(name)))
    carry_out(house, [Wish(name, lambda: house.publish(name, wanted))])
    guest = house.guest(name)
    new = [one for one in ports_of(guest) if one not in before]
    for made in new or [one for one in before if _is_asked(one, wanted)]:
        output.result(f"Published {made} of {guest.name}")


def _is_asked(port: Publish, wanted: PortRequest) -> bool:
    """It was published already."""
    same = (port.host_port, port.guest_port, port.protocol)
    return same == (wanted.host_port, wanted.guest_port, wanted.protocol)


@command(
    "unpublish",
    examples=[
        ("guest unpublish web 8080", ""),
        ("guest unpublish web 8080:80", "As it was published"),
        ("guest unpublish dns 0.0.0.0:5353/udp", ""),
    ],
)
@guest_argument()
@click.argument("port", metavar="[IP:]HOST[:GUEST][/udp]")
def unpublish(name: str, port: str) -> None:
    """Close a published port."""
    house = open_house()
    guest = house.guest(name)
    found = find_port(port, ports_of(guest), guest.name)
    request = UnpublishRequest(
        protocol=found.protocol, host_ip=found.host_ip, host_port=found.host_port
    )
    carry_out(house, [Wish(name, lambda: house.unpublish(name, request))])
    output.result(f"Closed {found} of {guest.name}")


def find_port(text: str, ports: list[Publish], guest: str) -> Publish:
    """The one of `ports` that `text` means: `8080`, `8080:80`, `IP:8080`, `IP:8080:80`, `…/udp`.

    :raise InvalidInput: not of such a shape. :raise NotFound: none is published so, or several.
    """
    body, slash, protocol = text.partition("/")
    address, numbers = _split_address(body)
    if not all(number.isdecimal() for number in numbers) or not 1 <= len(numbers) <= 2:
        raise InvalidInput(
            f"{text!r} is not a published port.",
            hint="Write the host's port, for example 8080 or 0.0.0.0:5353/udp.",
            field="port",
        )
    wanted = Protocol.UDP if protocol == "udp" else Protocol.TCP
    found = [
        port
        for port in ports
        if str(port.host_port) == numbers[0]
        and (len(numbers) == 1 or str(port.guest_port) == numbers[1])
        and (not address or port.host_ip == address)
        and (not slash or port.protocol == wanted)
    ]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(map(str, found or ports)) or "none"
    raise NotFound(
        f"{len(found)} published ports of {guest} are {text}."
        if found
        else f"{guest} has no published port {text}.",
        hint=f"Its {'such' if found else 'published'} ports: {listed}",
    )


def _split_address(body: str) -> tuple[str, list[str]]:
    """(address or empty, the numbers) of `[::1]:80:80`, `127.0.0.1:80`, `80:80`, `80`."""
    if body.startswith("["):
        address, _, rest = body[1:].partition("]")
        return address, rest.lstrip(":").split(":")
    first, _, rest = body.partition(":")
    try:
        return str(ipaddress.IPv4Address(first)), rest.split(":")
    except ValueError:
        return "", body.split(":")
