"""`guest exec` and `guest shell`: commands in a guest, as if they ran here."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import click

from guesthouse.cli import output
from guesthouse.cli.codes import INTERRUPTED, OUR_FAILURE, PIPE_CLOSED
from guesthouse.cli.command import command, complete_guests, guest_argument, positive
from guesthouse.cli.session import open_house
from guesthouse.cli.terminal import Input, handling, raw, size
from guesthouse.client.streams import PIECE, STDERR, STDOUT, Command, open_command
from guesthouse.errors import DaemonUnreachable, GuesthouseError, InvalidInput
from guesthouse.model.reports import ExecRequest, Exit, Tty

IMPATIENT = 3
"""Ctrl-C so often within two seconds leaves a command that ignores it."""

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1,
              signal.SIGUSR2)  # fmt: skip


@command(
    "exec",
    context_settings={"allow_interspersed_args": False},
    examples=[
        ("guest exec web -- uname -a", ""),
        ("tar c site | guest exec web -- tar x -C /srv", "Pipes go through"),
        ("guest exec --user guest --env LANG=C web -- sh -c 'echo $LANG'", ""),
        ("guest exec -t web -- top", "With a terminal"),
        ("guest exec --timeout 60 web -- apt-get update", "Killed after a minute"),
        ("for g in $(guest ls -q); do guest exec -n $g -- uptime; done", ""),
    ],
)
@click.option("--user", "-u", default="root", show_default=True, help="Run it as this user.")
@click.option("--env", "-e", multiple=True, metavar="NAME=VALUE", help="May be repeated.")
@click.option("--cwd", help="Working folder in the guest; default: the user's home.")
@click.option("--tty", "-t", is_flag=True, help="Give it a terminal.")
@click.option("--no-stdin", "-n", is_flag=True, help="Give it an empty standard input.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Kill it after so long.")
@guest_argument()
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND...")
def execute(name: str, argv: tuple[str, ...], env: tuple[str, ...], **rest: Any) -> int:
    """Run a command in a guest.

    Standard input, output and error are the command's; signals and the size of the terminal are
    forwarded. The exit code is the command's, 128 + n if signal n killed it, and 255 when it
    could not be run or was lost on the way.
    """
    argv = argv[1:] if argv[:1] == ("--",) else argv
    if not argv:
        raise click.UsageError(
            f"Which command? Write: guest exec {name} -- COMMAND, or: guest shell {name}"
        )
    if argv[0].startswith("-"):
        raise click.UsageError(f"Options such as {argv[0]} go before the guest's name.")
    return in_guest(
        name,
        argv,
        user=rest["user"],
        env=dict(_variable(text) for text in env),
        cwd=rest["cwd"],
        tty=rest["tty"],
        stdin=not rest["no_stdin"],
        timeout=positive(rest["timeout"], "--timeout"),
    )


@command(
    "shell",
    examples=[
        ("guest shell web", "As root; 'exit' or Ctrl-D leaves"),
        ("guest shell --user guest web", ""),
        ("guest shell web < script.sh", "A script through its standard input"),
    ],
)
@click.option("--user", "-u", default="root", show_default=True, help="Whose shell.")
@click.argument("name", shell_complete=complete_guests)
def shell(name: str, user: str) -> int:
    """Open a login shell in a guest."""
    return in_guest(name, (), user=user, tty=os.isatty(0))


def in_guest(
    name: str,
    argv: tuple[str, ...],
    *,
    user: str = "root",
    env: dict[str, str] | None = None,
    cwd: str | None = None,
    tty: bool = False,
    stdin: bool = True,
    timeout: float | None = None,
) -> int:
    """Run it with our standard streams; returns the exit code for the whole program."""
    if tty and not os.isatty(0):
        raise InvalidInput(
            "A terminal was asked for, but standard input is none.",
            hint="Leave -t away in scripts and pipes.",
            field="tty",
        )
    columns, rows = size(0)
    terminal = Tty(term=os.environ.get("TERM") or "xterm", columns=columns, rows=rows)
    request = ExecRequest(
        argv=argv,
        user=user,
        env=env or {},
        cwd=cwd,
        tty=terminal if tty else None,
        stdin=stdin,
        timeout=timeout,
    )
    try:
        house = open_house()
        with open_command(house.transport, name, request) as running:
            return _Session(running, tty=tty, stdin=stdin).run()
    except GuesthouseError as error:
        output.error(error)
        return OUR_FAILURE


class _Session:
    """Pumps between our streams and the command's: this thread its output, others our input.

    Nothing is buffered but one piece in each direction, so memory stays flat whatever flows.
    """

    def __init__(self, running: Command, *, tty: bool, stdin: bool) -> None:
        self._running = running
        self._tty = tty
        self._input = Input() if stdin else None
        self._controls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._interrupts: list[float] = []
        self._given_up = False

    def run(self) -> int:
        threads = [threading.Thread(target=self._send_controls, daemon=True)]
        if self._input is not None:
            threads.append(threading.Thread(target=self._send_input, daemon=True))
        with ExitStack() as stack:
            if self._tty:
                stack.enter_context(raw(0))
            stack.enter_context(handling(self._handlers()))
            for thread in threads:
                thread.start()
            try:
                return self._receive()
            except GuesthouseError:
                if self._given_up:
                    return INTERRUPTED
                raise
            finally:
                self._controls.put(None)
                if self._input is not None:
                    self._input.stop()

    def _receive(self) -> int:
        for channel, data in self._running.output():
            try:
                _write_all(1 if channel == STDOUT else 2, data)
            except OSError:
                if channel == STDERR:
                    continue
                return PIPE_CLOSED  # whoever reads us has enough; closing the stream kills it
        ended = self._running.exit
        assert ended is not None
        return exit_code(ended)

    def _send_input(self) -> None:
        assert self._input is not None
        try:
            for piece in self._input.pieces(PIECE):
                self._running.write(piece)
            if not self._tty:
                self._running.end_input()
        except DaemonUnreachable:
            pass  # the command has ended, or the receiving side reports what broke

    def _send_controls(self) -> None:
        while (act := self._controls.get()) is not None:
            try:
                act()
            except DaemonUnreachable:
                return

    def _handlers(self) -> dict[signal.Signals, Callable[[], None]]:
        # Signal handlers only put into the queue: sending there could wait for this very thread.
        handlers: dict[signal.Signals, Callable[[], None]] = {
            number: partial(self._forward, number) for number in _FORWARDED
        }
        if self._tty:
            handlers[signal.SIGWINCH] = lambda: self._controls.put(
                lambda: self._running.resize(*size(0))
            )
        return handlers

    def _forward(self, number: signal.Signals) -> None:
        name = number.name.removeprefix("SIG")
        self._controls.put(lambda: self._running.signal(name))
        if number in {signal.SIGINT, signal.SIGHUP}:
            now = time.monotonic()
            self._interrupts = [at for at in self._interrupts if at > now - 2] + [now]
            if number is signal.SIGHUP or len(self._interrupts) >= IMPATIENT:
                self._given_up = True
                self._running.abort()


def exit_code(ended: Exit) -> int:
    """As a shell reports it: the code, or 128 and the number of the signal."""
    if ended.signal is not None:
        number = getattr(signal, f"SIG{ended.signal.removeprefix('SIG')}", None)
        return 128 + number if isinstance(number, int) else OUR_FAILURE
    return OUR_FAILURE if ended.code is None else ended.code & 0xFF


def _write_all(fd: int, data: bytes) -> None:
    """Past Python's own buffers, which would hold a second copy."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _variable(text: str) -> tuple[str, str]:
    """`NAME=VALUE`, or `NAME` for its value here.

    :raise InvalidInput: no name, or a variable that is not set here.
    """
    name, equals, value = text.partition("=")
    if not equals:
        value = os.environ.get(name, "")
        if name not in os.environ:
            name = ""
    if not name:
        raise InvalidInput(
            f"--env {text} names no variable that is set here.",
            hint="Write NAME=VALUE, or the NAME of a variable of this environment.",
            field="env",
        )
    return name, value
