"""`guest rename` and `guest set`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, complete_guests, guest_argument
from guesthouse.cli.following import Wish, carry_out
from guesthouse.cli.session import open_house
from guesthouse.errors import InvalidInput
from guesthouse.model.guest import (
    Autostart,
    Firmware,
    OnPanic,
    ShutdownAction,
    check_cpus,
    check_memory,
)
from guesthouse.model.names import check_name
from guesthouse.model.reports import Accelerator
from guesthouse.model.units import parse_seconds, parse_size


@command("rename", examples=[("guest rename web web-old", "Its disks, ports and id stay")])
@click.argument("old", shell_complete=complete_guests)
@click.argument("new")
def rename(old: str, new: str) -> None:
    """Give a guest another name. The name inside the guest follows at its next start."""
    check_name(new)
    house = open_house()
    carry_out(house, [Wish(old, lambda: house.rename(old, new))])
    output.result(f"Renamed {old} to {new}")


@command(
    "set",
    examples=[
        ("guest set web memory=4G cpus=4", "Takes effect at the next start if it runs"),
        ("guest set web disk=30G", "Disks only grow"),
        ("guest set web description='the one behind the proxy'", ""),
        ("guest set db autostart=on autostart.order=10 autostart.delay=20s", "Up with its host"),
        ("guest set db shutdown.timeout=5m", "Longer to end its work when the host goes down"),
    ],
)
@guest_argument()
@click.argument(
    "changes",
    nargs=-1,
    required=True,
    metavar="KEY=VALUE...",
    shell_complete=lambda ctx, param, incomplete: _complete_change(ctx, incomplete),
)
def set_guest(name: str, changes: tuple[str, ...]) -> None:
    """Change what a guest has: cpus, memory, disk, …

    \b
    cpus=4              virtual CPUs
    memory=4G           memory
    disk=30G            size of the root disk; it only grows
    description=TEXT    a line of your own
    display=on|off      a screen
    cpu=MODEL           CPU model; empty lets the house choose
    firmware=bios|uefi
    accelerator=auto|kvm|tcg
    autostart=on|off|last
                        start it after its host was; 'last' if it ran before
    autostart.order=10  lower ones start first and stop last
    autostart.delay=20s after its start, before the next one
    shutdown.action=stop|kill|leave
                        what becomes of it when its host goes down
    shutdown.timeout=2m to power off then, before it is killed
    on-panic=stop|pause what happens when the guest's kernel panics
    protected=on|off    'guest rm' refuses to remove it
    """
    wanted = dict(parse_change(text) for text in changes)
    house = open_house()
    carry_out(house, [Wish(name, lambda: house.set_guest(name, wanted))])
    guest = house.guest(name)
    for text in changes:
        key = parse_change(text)[0]
        when = (
            f"pending: takes effect with 'guest restart {guest.name}'"
            if key in guest.pending
            else "applied"
        )
        output.result(f"{guest.name}: {text} ({when})")


def _complete_change(ctx: click.Context, incomplete: str) -> list[str]:
    """Keys that are not on the line yet, and the values of those that have but a few."""
    key, equals, begun = incomplete.partition("=")
    if equals:
        return [f"{key}={one}" for one in _VALUES.get(_field(key), ()) if one.startswith(begun)]
    taken = {_field(change.partition("=")[0]) for change in ctx.params.get("changes") or ()}
    keys = [_key(field) for field in _READERS if field not in taken]
    return [f"{one}=" for one in keys if one.startswith(incomplete)]


def parse_change(text: str) -> tuple[str, Any]:
    """(field of the API, value) of `key=value`.

    :raise InvalidInput: not of that shape, no such key, or a value that cannot be.
    """
    key, equals, value = text.partition("=")
    field = _field(key.strip())
    reader = _READERS.get(field)
    if not equals or reader is None:
        raise _no_key(text, key if equals else text)
    try:
        return field, reader(value.strip(), field)
    except ValueError:
        raise InvalidInput(
            f"{field}={value} cannot be: {value!r} is not {_KINDS.get(field, 'a value')}.",
            hint="See: guest set --help",
            field=field,
        ) from None


def _no_key(text: str, key: str) -> InvalidInput:
    from difflib import get_close_matches

    near = get_close_matches(_field(key), _READERS, n=1)
    known = ", ".join(_key(field) for field in _READERS)
    return InvalidInput(
        f"{text!r} changes nothing: write KEY=VALUE, where KEY is one of {known}.",
        hint=f"Did you mean {_key(near[0])}=…?" if near else "See: guest set --help",
        field=key,
    )


def _field(key: str) -> str:
    """The API's name of what a key changes."""
    return key.replace("-", "_").replace(".", "_")


def _key(field: str) -> str:
    """As `set --help` writes it."""
    family, _, rest = field.partition("_")
    return f"{family}.{rest}" if rest and family in _FAMILIES else field.replace("_", "-")


_FAMILIES = frozenset({"autostart", "shutdown"})


def _autostart(text: str) -> str:
    if text.lower() in _SWITCHES:
        return (Autostart.ON if _SWITCHES[text.lower()] else Autostart.OFF).value
    return Autostart(text).value


def _switch(text: str) -> bool:
    if text.lower() not in _SWITCHES:
        raise ValueError(text)
    return _SWITCHES[text.lower()]


_SWITCHES = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}

_READERS: dict[str, Callable[[str, str], Any]] = {
    "cpus": lambda text, _: check_cpus(int(text)),
    "memory": lambda text, field: check_memory(parse_size(text, field=field)),
    "disk": lambda text, field: parse_size(text, field=field),
    "description": lambda text, _: text,
    "display": lambda text, _: _switch(text),
    "cpu": lambda text, _: text,
    "autostart": lambda text, _: _autostart(text),
    "autostart_order": lambda text, _: int(text),
    "autostart_delay": lambda text, field: parse_seconds(text, field=field),
    "shutdown_action": lambda text, _: ShutdownAction(text).value,
    "shutdown_timeout": lambda text, field: parse_seconds(text, field=field),
    "firmware": lambda text, _: Firmware(text).value,
    "accelerator": lambda text, _: Accelerator(text).value,
    "on_panic": lambda text, _: OnPanic(text).value,
    "protected": lambda text, _: _switch(text),
}

_VALUES: dict[str, tuple[str, ...]] = {
    "autostart": tuple(one.value for one in Autostart),
    "shutdown_action": tuple(one.value for one in ShutdownAction),
    "display": ("on", "off"),
    "firmware": tuple(one.value for one in Firmware),
    "accelerator": tuple(one.value for one in Accelerator),
    "on_panic": tuple(one.value for one in OnPanic),
    "protected": ("on", "off"),
}

_KINDS = {
    "cpus": "a number",
    "autostart_order": "a number",
    **{
        field: (" or " if len(values) == 2 else ", ").join(values)
        for field, values in _VALUES.items()
    },
}
