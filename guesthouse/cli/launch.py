"""`guest launch`."""

from __future__ import annotations

import os
from typing import Any

import click

from guesthouse.cli import output
from guesthouse.cli.command import SIZE, command, complete_images, json_option, positive
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.session import open_house
from guesthouse.errors import UnknownImage
from guesthouse.model.device import parse_publish
from guesthouse.model.guest import Firmware, check_cpus, check_memory
from guesthouse.model.job import Job
from guesthouse.model.names import check_image_name, check_name
from guesthouse.model.reports import Accelerator, LaunchRequest

DEFAULT_IMAGE = "debian/12"


@command(
    "launch",
    examples=[
        ("guest launch", f"A {DEFAULT_IMAGE} guest with a name of the house's choice"),
        ("guest launch debian/12 web --cpus 2 --memory 2G --disk 20G", ""),
        ("guest launch debian/12 web -p 8080:80 -p 0.0.0.0:5353:53/udp", "With published ports"),
        ("guest launch micro tiny --memory 128M --no-wait", "Do not wait until it answers"),
        ("guest launch debian/12 box --no-start", "Only create it"),
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
        firmware=Firmware(rest["firmware"]),
        accelerator=Accelerator(rest["accelerator"]),
        display=not rest["no_display"],
        user=rest["user"],
        description=rest["description"],
        start=not rest["no_start"],
        wait_ready=not (rest["no_wait"] or rest["no_start"]),
        ready_timeout=rest["timeout"],
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
    if os.isatty(2) and not rest["no_start"]:
        output.note(f"enter it with: guest shell {guest.name}")
