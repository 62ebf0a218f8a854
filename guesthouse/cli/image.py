"""`guest image ls|build|import|info|rm`."""

from __future__ import annotations

import time
from functools import partial

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, complete_images, json_option, yes_option
from guesthouse.cli.family import Family
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.importing import image_import
from guesthouse.cli.remove import require_all
from guesthouse.cli.rows import span
from guesthouse.cli.session import open_house
from guesthouse.cli.table import colourful, render, show, terminal_width
from guesthouse.client.house import image_path
from guesthouse.model.image import ImageKind, Seed
from guesthouse.model.names import check_image_name
from guesthouse.model.reports import ImageView, KnownImage
from guesthouse.model.units import format_size

image_argument = click.argument("name", metavar="IMAGE", shell_complete=complete_images)


@click.group(
    "image",
    cls=Family,
    examples=[
        ("guest image ls", "Those built, and those that can be"),
        ("guest image build debian/12", ""),
        ("guest image import debian-12-generic.qcow2", "A disk that somebody else made"),
    ],
)
def image() -> None:
    """Images: what guests are made from."""


@command(
    "ls",
    examples=[("guest image ls", ""), ("guest image ls --json | jq -r '.[].name'", "Those built")],
)
@json_option
def image_ls(as_json: bool) -> None:
    """List the images that are built, and those that can be.

    With --json, those built.
    """
    house = open_house()
    if as_json:
        output.json_result(house.raw("/v1/images"))
        return
    show(image_table(house.images(), house.known_images(), width=terminal_width()))


def image_table(
    images: list[ImageView], known: list[KnownImage], *, width: int | None = None
) -> str:
    now = time.time()
    about = {one.name: one.description for one in known}
    rows = [
        [one.name, format_size(one.size), span(now - one.created_at), " ".join(one.in_use_by),
         one.description or about.get(one.name) or _told(one)]
        for one in sorted(images, key=lambda one: (one.name, -one.created_at))
    ]  # fmt: skip
    built = {one.name for one in images}
    rows += [[one.name, "-", "not built", "", one.description] for one in known
             if one.name not in built]  # fmt: skip
    headers = ["NAME", "SIZE", "AGE", "USED BY", "ABOUT"]
    return render(headers, rows, width=width, drop=("ABOUT", "AGE"), colour=colourful())


def _told(made: ImageView) -> str:
    """What there is to say of an image that nobody has described."""
    if made.format is None:
        return ""
    what = made.os.get("pretty") or ("A disc to boot from" if made.kind is ImageKind.ISO else "")
    return f"{what}, imported ({made.format.value})" if what else f"Imported ({made.format.value})"


@command(
    "build",
    examples=[
        ("guest image build debian/12", "Nothing to do if it is there already"),
        ("guest image build --rebuild debian/12", "With today's packages"),
    ],
)
@image_argument
@click.option("--rebuild", is_flag=True, help="Build it again though it is there.")
def image_build(name: str, rebuild: bool) -> None:
    """Build an image from its distribution's own packages."""
    check_image_name(name)
    house = open_house()
    (job,) = carry_out(house, [Wish(name, partial(house.build_image, name, rebuild=rebuild))])
    made = house.image(name)
    output.result(f"{made.name} is built ({format_size(made.size)})")
    if made.created_at < job.created_at:
        output.note("it was there already; --rebuild builds it again")


@command(
    "info", examples=[("guest image info debian/12", ""), ("guest image info micro --json", "")]
)
@image_argument
@json_option
def image_info(name: str, as_json: bool) -> None:
    """Show everything about an image."""
    house = open_house()
    if as_json:
        output.json_result(house.raw(image_path(name)))
        return
    made = house.image(name)
    rows = [
        ("Name", made.name),
        ("Id", made.id),
        *([("About", made.description)] if made.description else []),
        ("Kind", _kind(made)),
        ("Size", format_size(made.size)),
        ("Guest sees", format_size(made.virtual_size) if made.virtual_size else "no disk"),
        ("Made", f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(made.created_at))}"),
        ("Source", made.source),
        *([("Format", f"{made.format.value}, as it was imported")] if made.format else []),
        ("Set up by", _SEEDS[made.seed]),
        ("Carries", _carries(made)),
        ("Digest", made.digest),
        ("Used by", ", ".join(made.in_use_by) or "no guest"),
        *([("In the trash", ", ".join(made.in_use_by_trash))] if made.in_use_by_trash else []),
    ]
    rows += [(f"os {key}", value) for key, value in sorted(made.os.items())]
    rows += [(key, value) for key, value in sorted(made.facts.items())]
    output.pairs(rows)


_SEEDS = {
    Seed.HOUSE: "this house",
    Seed.NOCLOUD: "cloud-init, by a NoCloud disc",
    Seed.NONE: "its user",
}


def _kind(made: ImageView) -> str:
    """In words."""
    if made.kind is ImageKind.ISO:
        return "disc to boot from"
    return "disk" if made.virtual_size else "kernel and initrd"


def _carries(made: ImageView) -> str:
    parts = [name for name, there in (("agent", made.agent), ("ssh port", made.ssh_port)) if there]
    return " and ".join(parts) or "nothing of this house"


@command(
    "rm",
    examples=[("guest image rm micro", "Guests made from it are not harmed: it stays while used")],
)
@click.argument(
    "names", nargs=-1, required=True, metavar="IMAGE...", shell_complete=complete_images
)
@yes_option
def image_rm(names: tuple[str, ...], yes: bool) -> None:
    """Remove images. Those that guests still lie on are refused.

    When one of the names is unknown, nothing is removed.
    """
    house = open_house()
    require_all(names, house.image)
    question = f"Remove {', '.join(names)}? To build or import it again takes a while."
    if not output.confirm(question, yes=yes, retry=f"guest image rm --yes {' '.join(names)}"):
        output.note("nothing removed")
        raise click.exceptions.Exit(1)
    wishes = [Wish(name, partial(house.remove_image, name)) for name in names]
    carry_out(house, wishes, lambda job: f"Removed {job.target_name}")


for _command in (image_ls, image_build, image_import, image_info, image_rm):
    image.add_command(_command)
