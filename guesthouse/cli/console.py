"""`guest console`: the serial port of a guest."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, guest_argument
from guesthouse.cli.session import open_house
from guesthouse.cli.terminal import Input, handling, key_name, parse_key, raw
from guesthouse.client.streams import Console, open_console
from guesthouse.errors import DaemonUnreachable

PIECE = 4096


@command(
    "console",
    examples=[
        ("guest console web", "Ctrl-] leaves it"),
        ("guest console --detach-key ctrl-a web", "For keyboards on which ] is hard to reach"),
        ("guest console --replay 65536 web", "With more of what was written before"),
    ],
)
@guest_argument()
@click.option(
    "--detach-key",
    default="ctrl-]",
    show_default=True,
    metavar="KEY",
    help="The key that leaves; none for no such key.",
)
@click.option(
    "--replay",
    type=click.IntRange(0, 1 << 20),
    default=4096,
    show_default=True,
    metavar="BYTES",
    help="How much of what was written before comes first.",
)
def console(name: str, detach_key: str, replay: int) -> None:
    """Attach to a guest's serial console.

    It works from the first moment of the boot and without any help from the guest. Press Enter if
    it is silent. Several people may be attached at once.
    """
    key = parse_key(detach_key)
    house = open_house()
    link = open_console(house.transport, name, replay=replay)
    terminal = os.isatty(0)
    if terminal:
        output.note(f"this is the console of {name}; leave it with {key_name(key)}")
    try:
        left = _attend(link, terminal=terminal, key=key)
    finally:
        link.close()
    if terminal:
        output.note(f"left the console of {name}" if left else f"the console of {name} has ended")


def _attend(link: Console, *, terminal: bool, key: bytes) -> bool:
    """Pump until either side ends; whether it was ours."""
    keys = Input()
    left = threading.Event()

    def leave() -> None:
        left.set()
        link.abort()

    def send() -> None:
        try:
            for piece in keys.pieces(PIECE):
                before, found, _ = piece.partition(key) if key and terminal else (piece, b"", b"")
                link.write(before)
                if found:
                    break
            else:
                if terminal and not left.is_set():
                    return  # stopped because the guest's side has ended
            leave()
        except DaemonUnreachable:
            pass

    with ExitStack() as stack:
        if terminal:
            stack.enter_context(raw(0))
        stack.enter_context(handling({signal.SIGTERM: leave, signal.SIGHUP: leave}))
        threading.Thread(target=send, daemon=True).start()
        try:
            for data in link.output():
                view = memoryview(data)
                while view:
                    view = view[os.write(1, view) :]
        except DaemonUnreachable:
            if not left.is_set():
                raise
        finally:
            keys.stop()
    return left.is_set()
