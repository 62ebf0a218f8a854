"""The verbs on one guest or several: start, stop, restart, pause, resume, reset."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import click

from guesthouse.cli.command import command, guests_argument, positive
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.session import open_house
from guesthouse.client.house import House
from guesthouse.model.job import Job
from guesthouse.model.reports import RestartRequest, StartRequest, StopRequest


def _each(names: tuple[str, ...], act: Callable[[House, str], Job], done: str) -> None:
    """Do `act` to each guest once, all at the same time, and say what became of them."""
    house = open_house()
    wishes = [Wish(name, partial(act, house, name)) for name in dict.fromkeys(names)]
    carry_out(house, wishes, lambda job: f"{done} {job.target_name or job.target}")


force_option = click.option("--force", "-f", is_flag=True, help="Kill it at once.")
timeout_option = click.option(
    "--timeout",
    type=float,
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long it may take to shut down before it is killed.",
)


@command(
    "start",
    examples=[
        ("guest start web", ""),
        ("guest start web db mail", "Several at once"),
        ("guest start --wait web && guest exec web -- uptime", "Go on when it answers"),
        ("guest start --paused web", "Held before its first instruction; 'guest resume' lets go"),
    ],
)
@guests_argument()
@click.option("--paused", is_flag=True, help="Start it with its CPUs stopped.")
@click.option("--wait", is_flag=True, help="Wait until the guest answers.")
@click.option(
    "--timeout",
    type=float,
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long --wait waits.",
)
def start(names: tuple[str, ...], paused: bool, wait: bool, timeout: float) -> None:
    """Start guests."""
    positive(timeout, "--timeout")
    if paused and wait:
        raise click.UsageError("--paused and --wait exclude each other: a paused guest is silent.")
    request = StartRequest(paused=paused, wait_ready=wait, ready_timeout=timeout)
    done = "Started, paused:" if paused else "Started"
    _each(names, lambda house, name: house.start(name, request), done)


@command(
    "stop",
    examples=[
        ("guest stop web", "Ask it to shut down; kill it if it has not after a minute"),
        ("guest stop --timeout 300 db", "Give it longer"),
        ("guest stop --force web", "Pull the plug"),
    ],
)
@guests_argument()
@force_option
@timeout_option
def stop(names: tuple[str, ...], force: bool, timeout: float) -> None:
    """Shut guests down.

    They are asked politely, by their agent and then by ACPI, and killed when they take too long.
    'guest info' says which it was.
    """
    positive(timeout, "--timeout")
    request = StopRequest(force=force, timeout=timeout)
    _each(names, lambda house, name: house.stop(name, request), "Stopped")


@command(
    "restart",
    examples=[
        ("guest restart web", "Pending changes take effect"),
        ("guest restart --force web", "Do not wait for it to shut down"),
    ],
)
@guests_argument()
@force_option
@timeout_option
def restart(names: tuple[str, ...], force: bool, timeout: float) -> None:
    """Shut guests down and start them again."""
    positive(timeout, "--timeout")
    request = RestartRequest(force=force, timeout=timeout)
    _each(names, lambda house, name: house.restart(name, request), "Restarted")


@command("pause", examples=[("guest pause web", "It keeps its memory and takes no CPU time")])
@guests_argument()
def pause(names: tuple[str, ...]) -> None:
    """Stop the CPUs of guests where they are."""
    _each(names, lambda house, name: house.pause(name), "Paused")


@command("resume", examples=[("guest resume web", "Go on after 'guest pause' or a full disk")])
@guests_argument()
def resume(names: tuple[str, ...]) -> None:
    """Let paused guests go on."""
    _each(names, lambda house, name: house.resume(name), "Resumed")


@command("reset", examples=[("guest reset web", "When it hangs; unsaved data is lost")])
@guests_argument()
def reset(names: tuple[str, ...]) -> None:
    """Press the reset button of guests.

    Their systems get no chance to save anything; 'guest restart' gives them one.
    """
    _each(names, lambda house, name: house.reset(name), "Reset")
