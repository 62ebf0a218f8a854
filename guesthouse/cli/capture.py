"""`guest nic capture`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from guesthouse.cli import output
from guesthouse.cli.command import SIZE, command, guest_argument
from guesthouse.cli.session import open_house
from guesthouse.client.transport import Stream
from guesthouse.errors import Forbidden, InvalidInput
from guesthouse.model.capture import INTERFACE_STATISTICS, PACKET, CaptureQuery, whole_blocks
from guesthouse.model.units import format_size, parse_seconds


class Seconds(click.ParamType[float]):
    """Seconds, written as `30s` or `2m`."""

    name = "time"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        return parse_seconds(value, field="seconds")


@command(
    "capture",
    examples=[
        ("guest nic capture web 0 -o web.pcapng", "Until Ctrl-C"),
        ("guest nic capture web 0 -o - | wireshark -k -i -", "Live"),
        ("guest nic capture web 0 -o - | tcpdump -nr -", ""),
        ("guest nic capture web 0 -o web.pcapng --seconds 30s --size 100M", "Whichever is first"),
    ],
)
@guest_argument()
@click.argument("card", metavar="CARD")
@click.option(
    "--output",
    "-o",
    "target",
    required=True,
    type=click.Path(dir_okay=False, allow_dash=True),
    help="The pcapng file to write; - is standard output.",
)
@click.option("--seconds", type=Seconds(), metavar="TIME", help="End after so long: 30s, 2m.")
@click.option("--packets", type=click.IntRange(1), metavar="N", help="End after N packets.")
@click.option("--size", type=SIZE, metavar="SIZE", help="End before the file has more: 100M.")
@click.option(
    "--snaplen",
    type=click.IntRange(16, 262144),
    default=262144,
    metavar="BYTES",
    help="Keep so much of each packet.",
)
def capture(
    name: str,
    card: str,
    target: str,
    seconds: float | None,
    packets: int | None,
    size: int | None,
    snaplen: int,
) -> None:
    """Write the packets of a running guest's card to a file or a pipe, as they come.

    It is what the guest sends and what it gets, after what impairments and rules leave of it.
    Ctrl-C ends it, and the file is whole. Who reads too slowly loses packets, and is told how many.
    """
    if target == "-" and os.isatty(1):
        raise InvalidInput(
            "A capture on a terminal is no use.", hint="Pipe it, or give a file with -o."
        )
    wanted = CaptureQuery(seconds=seconds, packets=packets, size=size, snaplen=snaplen)
    house = open_house()
    with house.capture(name, card, wanted) as stream, _opened(target) as fd:
        if os.isatty(2):
            output.note(f"capturing card {card} of {name}; Ctrl-C ends it")
        try:
            count, lost, written = _write(stream, fd)
        except BrokenPipeError:  # whoever read has enough, as `| tcpdump -c 5 -r -`
            return
    if target != "-":
        output.result(f"Wrote {target}: {_packets(count)}, {format_size(written)}")
    if lost:
        output.warning(
            f"{_packets(lost)} more came and were lost: they came faster than they were written.",
            hint="Keep less of each: --snaplen 128",
        )


@contextmanager
def _opened(target: str) -> Iterator[int]:
    """:raise Forbidden: the file cannot be written."""
    if target == "-":
        yield 1
        return
    try:
        fd = os.open(Path(target), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Forbidden(
            f"{target} cannot be written: {error.strerror}.", hint="Give another file with -o."
        ) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _write(stream: Stream, fd: int) -> tuple[int, int, int]:
    """Whole blocks alone, so that the file can be read wherever it ends.

    :return: packets, packets lost, bytes. :raise BrokenPipeError: nobody reads any more.
    """
    count = lost = written = 0
    try:
        for block in whole_blocks(stream):
            # An interrupt waits: half a block would spoil the file.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                _write_all(fd, block.data)
                written += len(block.data)
                count += block.kind == PACKET
                lost = block.lost if block.kind == INTERFACE_STATISTICS else lost
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    except KeyboardInterrupt:
        pass
    return count, lost, written


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _packets(count: int) -> str:
    return "1 packet" if count == 1 else f"{count} packets"
