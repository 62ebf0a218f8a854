"""`guest image import`: a disk image of this host, sent to the house.

This process opens the file and sends what is in it; holes are not sent.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click

from guesthouse.cli import output
from guesthouse.cli.command import command
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.session import open_house
from guesthouse.cli.transfer import Counter
from guesthouse.client.house import House
from guesthouse.errors import Forbidden, GuesthouseError, InvalidInput, NameTaken, NoSpace, NotFound
from guesthouse.model.image import ImageKind, Seed, SourceFormat
from guesthouse.model.imports import ImportImageRequest
from guesthouse.model.names import check_image_name
from guesthouse.model.units import format_size

_PIECE = 1 << 20
_SMALL_HOLE = 1 << 20
"""Bytes; shorter holes are sent: a request for each stretch between them would cost more."""
_ENDINGS = re.compile(r"\.(qcow2|img|raw|vmdk|vdi|vhdx|vhd|vpc|iso)$")


@command(
    "import",
    examples=[
        (
            "guest image import debian-12-generic-amd64.qcow2 cloud/12",
            "Then: guest launch cloud/12",
        ),
        ("guest image import netinst.iso", "A disc to boot from, called netinst"),
        ("guest image import old-server.vmdk server --seed none", "Nothing on it reads cloud-init"),
        ("guest image import disk.img scratch --format raw", "Whatever its content looks like"),
    ],
)
@click.argument("file", metavar="FILE", type=click.Path())
@click.argument("name", metavar="[NAME]", required=False)
@click.option(
    "--format",
    "kind",
    type=click.Choice([one.value for one in SourceFormat]),
    help="What FILE is; default: told from the file.",
)
@click.option("--description", default="", help="A line of your own.")
@click.option("--os", "system", default="", help='What is on it, such as "Debian 12".')
@click.option("--agent", is_flag=True, help="It has qemu-guest-agent: launches wait for that.")
@click.option(
    "--seed",
    type=click.Choice([Seed.NOCLOUD.value, Seed.NONE.value]),
    default=Seed.NOCLOUD.value,
    show_default=True,
    help="Whether cloud-init, or anything else on it, reads a NoCloud disc.",
)
@click.option("--quiet", "-q", is_flag=True, help="No progress of the sending.")
def image_import(
    file: str,
    name: str | None,
    kind: str | None,
    description: str,
    system: str,
    agent: bool,
    seed: str,
    quiet: bool,
) -> None:
    """Make an image of a file: a disk of another program, or a disc to boot from.

    Taken are qcow2, raw, VMDK, VDI, VHDX, VHD (vpc) and bootable ISO files that hold all of their
    content by themselves. NAME is made from that of FILE unless you give one.
    """
    name = check_image_name(name or name_of(file))
    house = open_house()
    _refuse_taken(house, name)
    upload = send_file(house, Path(file), quiet=quiet)
    request = ImportImageRequest(
        upload=upload,
        name=name,
        format=SourceFormat(kind) if kind else None,
        description=description,
        os=system,
        agent=agent,
        seed=Seed(seed),
    )
    try:
        carry_out(house, [Wish(name, lambda: house.import_image(request))])
    except GuesthouseError:
        with suppress(GuesthouseError):  # the job has thrown it away, if there was one
            house.discard_upload(upload)
        raise
    made = house.image(name)
    what = "disc" if made.kind is ImageKind.ISO else "disk"
    output.result(f"{made.name} is imported ({what} of {format_size(made.virtual_size)})")
    if left_out := made.facts.get("left out"):
        output.note(left_out)


def name_of(file: str) -> str:
    """A name for an image, from that of its file.

    :raise InvalidInput: none can be made.
    """
    plain = _ENDINGS.sub("", Path(file).name.lower())
    name = re.sub(r"[^a-z0-9._-]+", "-", plain).strip("-._")[:63]
    if not name:
        raise InvalidInput(
            f"No name can be made from {file!r}.",
            hint="Give one: guest image import FILE NAME",
            field="name",
        )
    return name


def _refuse_taken(house: House, name: str) -> None:
    """Before much is sent for nothing. The house checks it again."""
    built = {image.name for image in house.images()}
    if name in built | {known.name for known in house.known_images()}:
        raise NameTaken(
            f"There is already an image {name!r}.",
            hint="Give another name: guest image import FILE NAME",
            name=name,
        )


def send_file(house: House, path: Path, *, quiet: bool) -> str:
    """Send a file; answers the id of its upload. When it fails, nothing of it stays.

    :raise NotFound: :raise Forbidden: it cannot be read. :raise InvalidInput: it is no file, is
        empty, or was changed meanwhile.
    """
    try:
        # Not waiting for a writer, should it be a pipe.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            facts = os.fstat(fd)
            regular = stat.S_ISREG(facts.st_mode)
            if not regular or not facts.st_size:
                what = "is empty" if regular else "is not a regular file"
                raise InvalidInput(f"{path} {what}.", hint="Give a disk image.", field="file")
            return _send(house, fd, facts.st_size, quiet=quiet)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise NotFound(f"There is no file {path}.", hint="Check the path.") from None
    except OSError as error:
        raise Forbidden(
            f"{path} cannot be read: {error.strerror}.", hint="Check its owner and mode."
        ) from error


def _send(house: House, fd: int, size: int, *, quiet: bool) -> str:
    stretches = list(data_of(fd, size))
    data = sum(end - start for start, end in stretches)
    upload = house.create_upload(size)
    try:
        if data > upload.room:
            raise NoSpace(
                f"The file has {format_size(data)} of data; the house has room for"
                f" {format_size(upload.room)}.",
                hint="Remove what you no longer need (guest rm, guest image rm), or give the house"
                " a larger file system.",
            )
        with Counter(quiet=quiet) as counter:
            counter.expect(data)
            for start, end in stretches:
                pieces = _pieces(fd, start, end, counter)
                house.write_upload(upload.id, start, pieces, end - start)
    except BaseException:
        with suppress(GuesthouseError):
            house.discard_upload(upload.id)
        raise
    return upload.id


def data_of(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where there is data, as (start, end), over small holes; all of it where nobody can tell."""
    start: int | None = None
    end = at = 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
            hole = os.lseek(fd, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                break
            begin, hole = at, size
        if start is None:
            start = begin
        elif begin - end > _SMALL_HOLE:
            yield start, end
            start = begin
        end = at = hole
    if start is not None:
        yield start, end


def _pieces(fd: int, start: int, end: int, counter: Counter) -> Iterator[bytes]:
    at = start
    while at < end:
        piece = os.pread(fd, min(_PIECE, end - at), at)
        if not piece:
            raise InvalidInput(
                "The file became shorter while it was sent.", hint="Try again.", field="file"
            )
        yield piece
        at += len(piece)
        counter.add(len(piece))
