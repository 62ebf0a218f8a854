"""The user's terminal while it belongs to a guest: raw mode, its size, and waiting for keys."""

from __future__ import annotations

import os
import select
import signal
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from guesthouse.errors import InvalidInput

Size = tuple[int, int]
"""(columns, rows)"""


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """Hand every key to us as it is. The terminal is as before afterwards, come what may."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)  # not TCSAFLUSH: what is typed already counts
        yield
    finally:
        try:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
        except termios.error:
            pass  # the terminal itself is gone


def size(fd: int) -> Size:
    try:
        columns, rows = os.get_terminal_size(fd)
    except OSError:
        columns, rows = 0, 0
    return (columns or 80, rows or 24)


@contextmanager
def handling(handlers: dict[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    """Call these on their signals, and have the former handlers back afterwards."""

    def handler(act: Callable[[], None]) -> Callable[[int, FrameType | None], None]:
        return lambda _number, _frame: act()

    before = {number: signal.signal(number, handler(act)) for number, act in handlers.items()}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


class Input:
    """Standard input as pieces, read in a thread that another one can stop.

    Waiting in poll(2) and not in read(2) leaves what is typed after `stop` to the next program.
    """

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        self._wake_read, self._wake = os.pipe()

    def pieces(self, limit: int) -> Iterator[bytes]:
        """Until the end of the input, or `stop`. A closed input is an empty one."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._wake_read in ready:
                return
            try:
                piece = os.read(self._fd, limit)
            except OSError:
                return
            if not piece:
                return
            yield piece

    def stop(self) -> None:
        os.write(self._wake, b".")


def parse_key(text: str) -> bytes:
    """The byte of a key such as `^]`, `ctrl-a` or `none` (empty).

    :raise InvalidInput: no such key.
    """
    lowered = text.strip().lower()
    if lowered == "none":
        return b""
    for prefix in ("ctrl-", "ctrl+", "c-", "^"):
        key = lowered.removeprefix(prefix)
        # The control character of a key is its code without the upper three bits (ASCII).
        if lowered.startswith(prefix) and len(key) == 1 and "@" <= key.upper() <= "_":
            return bytes([ord(key.upper()) & 0x1F])
    raise InvalidInput(
        f"{text!r} is not a key to leave with.",
        hint="Write ctrl- and a letter or one of @ [ \\ ] ^ _, for example ctrl-a; or none.",
        field="detach-key",
    )


def key_name(key: bytes) -> str:
    return f"Ctrl-{chr(key[0] | 0x40)}" if key else "no key"
