"""`guest launch`."""

from __future__ import annotations

import os
from typing import Any

import click

from guesthouse.cli import output
from guesthouse.cli.command import (
    SIZE,
    command,
    complete_images,
    complete_networks,
    json_option,
    positive,
)
from guesthouse.cli.firewall_words import complete_groups
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.session import open_house
from guesthouse.cli.sharing import share_request
from guesthouse.errors import Forbidden, InvalidInput, NotFound, UnknownImage
from guesthouse.model.device import parse_publish, ssh_login
from guesthouse.model.guest import Firmware, check_cpus, check_memory
from guesthouse.model.job import Job
from guesthouse.model.names import check_image_name, check_name
from guesthouse.model.nics import parse_nic
from guesthouse.model.reports import Accelerator, GuestView, LaunchRequest
from guesthouse.model.units import format_size

DEFAULT_IMAGE = "debian/12"
_LONGEST = 256 << 10
"""Bytes of a text that is sent to a guest."""


@command(
    "launch",
    examples=[
        ("guest launch", f"A {DEFAULT_IMAGE} guest with a name of the house's choice"),
        ("guest launch debian/12 web --cpus 2 --memory 2G --disk 20G", ""),
        ("guest launch debian/12 web -p 8080:80 -p 0.0.0.0:5353:53/udp", "With published ports"),
        ("guest launch debian/12 web --share ./site:/srv/site", "With a folder of this host"),
        ("guest launch debian/12 db --network lan", "On another network than default"),
        ("guest launch debian/12 dns --network lan,address4=10.77.0.2", "With a fixed address"),
        ("guest launch debian/12 web --group shop", "In a security group from the start"),
        ("guest launch micro tiny --memory 128M --no-wait", "Do not wait until it answers"),
        ("guest launch debian/12 box --no-start", "Only create it"),
        ("guest launch debian/12 web --ssh-key ~/.ssh/id_ed25519.pub -p 2222:22", "ssh -p 2222 …"),
        ("guest launch mycloud web --cloud-init user-data.yaml", "An image that has cloud-init"),
    ],
)
@click.argument("image", default=DEFAULT_IMAGE, shell_complete=complete_images)
@click.argument("name", required=False)
@click.option("--cpus", type=int, default=1, show_default=True, help="Virtual CPUs.")
@click.option("--memory", type=SIZE, help="Memory, e.g. 2G.")
@click.option("--disk", type=SIZE, help="Size of the root disk; default: the image's own.")
@click.option(
    "--publish",
    "-p",
    multiple=True,
    metavar="[IP:]HOST:GUEST[/udp]",
    help="Lead a host port into the guest; may be repeated. HOST 0 takes any free port.",
)
@click.option(
    "--share",
    "shares",
    multiple=True,
    metavar="HOST:GUEST[:ro]",
    help="Share a folder of this host with it; may be repeated.",
)
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="NAME[,address4=…][,address6=…][,mac=…]",
    shell_complete=complete_networks,
    help="Network of its card, or 'builtin' for one of its own; repeated: more cards.",
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="GROUP",
    shell_complete=complete_groups,
    help="Security group that it is in from the start; may be repeated.",
)
@click.option(
    "--firmware",
    type=click.Choice([one.value for one in Firmware]),
    default="bios",
    show_default=True,
    help="How it boots.",
)
@click.option(
    "--accelerator",
    type=click.Choice([one.value for one in Accelerator]),
    default="auto",
    show_default=True,
    help="KVM, or emulation where there is none.",
)
@click.option("--no-display", is_flag=True, help="Without a screen.")
@click.option("--user", help="Login user made beside root; default: the house's.")
@click.option(
    "--ssh-key",
    "ssh_keys",
    multiple=True,
    metavar="FILE",
    type=click.Path(),
    help="Public ssh key that may log in; may be repeated.",
)
@click.option(
    "--cloud-init",
    metavar="FILE",
    type=click.Path(),
    help="User data for cloud-init, for an image that has it; '-' is standard input.",
)
@click.option(
    "--network-config",
    metavar="FILE",
    type=click.Path(),
    help="Network configuration for cloud-init; default: ask for addresses.",
)
@click.option("--description", default="", help="A line of your own.")
@click.option("--no-start", is_flag=True, help="Only create it.")
@click.option("--no-wait", is_flag=True, help="Do not wait until the guest answers.")
@click.option(
    "--timeout",
    type=float,
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the guest may take until it answers.",
)
@json_option
def launch(
    image: str, name: str | None, publish: tuple[str, ...], as_json: bool, **rest: Any
) -> None:
    """Create a guest, start it and wait until it is ready.

    IMAGE is built first if this house has none of that name yet (see 'guest image ls').
    """
    positive(rest["timeout"], "--timeout")
    request = LaunchRequest(
        image=check_image_name(image),
        name=None if name is None else check_name(name),
        cpus=check_cpus(rest["cpus"]),
        memory=None if rest["memory"] is None else check_memory(rest["memory"]),
        disk=rest["disk"],
        publish=tuple(parse_publish(text) for text in publish),
        **_cards(rest["networks"]),
        groups=rest["groups"],
        shares=tuple(share_request(text) for text in rest["shares"]),
        firmware=Firmware(rest["firmware"]),
        accelerator=Accelerator(rest["accelerator"]),
        display=not rest["no_display"],
        user=rest["user"],
        description=rest["description"],
        start=not rest["no_start"],
        wait_ready=not (rest["no_wait"] or rest["no_start"]),
        ready_timeout=rest["timeout"],
        ssh_keys=tuple(key for path in rest["ssh_keys"] for key in read_keys(path)),
        user_data=read_text(rest["cloud_init"]),
        network_config=read_text(rest["network_config"]),
    )
    house = open_house()

    def submit() -> Job:
        try:
            return house.launch(request)
        except UnknownImage as error:
            if name is not None:
                raise
            # Most who give one word mean the guest's name.
            hint = f"{error.hint} The name comes after it: guest launch {DEFAULT_IMAGE} {image}"
            raise UnknownImage(error.message, hint=hint.strip(), **error.detail) from error

    (job,) = carry_out(house, [Wish(name or image, submit)])
    ref = job.target.removeprefix("guests/") or job.target_name
    if as_json:
        output.json_result(house.raw(f"/v1/guests/{ref}"))
        return
    guest = house.guest(ref)
    done = "Created" if rest["no_start"] else "Launched"
    output.result(f"{done} {guest.name} ({guest.image})")
    for nic in guest.spec.nics:
        for port in nic.ports:
            output.result(f"  {port} leads into it")
    if not rest["no_start"]:
        say_how_to_reach(guest)


def _cards(networks: tuple[str, ...]) -> dict[str, Any]:
    """The fields of the request that say which cards it has."""
    if not any("," in text for text in networks):
        return {"networks": networks}
    return {"nics": tuple(parse_nic(text) for text in networks)}


def say_how_to_reach(guest: GuestView) -> None:
    if guest.spec.ssh_port:
        if os.isatty(2):
            output.note(f"enter it with: guest shell {guest.name}")
        return
    # Nobody waited for it, so this is where its user learns how it is doing.
    login = ssh_login(guest.spec.nics)
    ways = f"{login}; " if login else ""
    ways += f"guest console {guest.name} (serial)"
    if guest.spec.display:
        ways += f"; guest screenshot {guest.name}; VNC by the API (/v1/guests/{guest.name}/vnc)"
    output.note(f"reach it by: {ways}")
    if not guest.spec.agent:
        output.note("its image has no agent, so the house does not know how far it has come")


def read_keys(path: str) -> list[str]:
    """The public keys in a .pub or authorized_keys file. :raise InvalidInput: a private key."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    if any("PRIVATE KEY" in line for line in lines):
        raise InvalidInput(
            f"{path} is a private key, which stays with you.",
            hint=f"Give the public one: {path}.pub",
            field="ssh_keys",
        )
    return [line for line in lines if line and not line.startswith("#")]


def read_text(path: str | None) -> str:
    """A file of this host, or standard input for `-`; nothing for None.

    :raise NotFound: :raise Forbidden: it cannot be read. :raise InvalidInput: it is no text, or
        too long.
    """
    if path is None:
        return ""
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
            data = file.read(_LONGEST + 1)
        if len(data) > _LONGEST:
            raise InvalidInput(f"{path} is longer than {format_size(_LONGEST)}.", field="file")
        return data.decode()
    except FileNotFoundError:
        raise NotFound(f"There is no file {path}.", hint="Check the path.") from None
    except OSError as error:
        raise Forbidden(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not a text in UTF-8.", field="file") from None
