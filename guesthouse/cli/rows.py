"""Lines of `guest ls`, from the JSON that the API answers. Imports no documents: start fast."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from guesthouse.cli.table import render
from guesthouse.model.units import format_size

HEADERS = ["NAME", "STATE", "CPUS", "MEMORY", "IMAGE", "ADDRESS", "PORTS", "SINCE"]
DROP = ("SINCE", "CPUS", "PORTS", "MEMORY", "IMAGE", "ADDRESS")
"""Columns that go first on a narrow terminal."""

SORTS = ("name", "memory", "since", "state")
"""What a list may be sorted by."""

_STATE_ORDER = ("running", "paused", "starting", "stopping", "failed", "stopped")

_EXPECTED = {"", "user", "created", "guest-shutdown"}
"""Reasons that need no mention beside the state."""


def guest_table(
    guests: Sequence[Mapping[str, Any]], *, width: int | None = None, colour: bool = False
) -> str:
    """The guests in the order in which they come."""
    now = time.time()
    rows = [_row(guest, now) for guest in guests]
    return render(HEADERS, rows, width=width, drop=DROP, colour=colour)


def sorted_guests(
    guests: Iterable[Mapping[str, Any]], by: str = "name", *, reverse: bool = False
) -> list[Mapping[str, Any]]:
    """By one of `SORTS`, and by name where that is the same."""
    found = sorted(guests, key=lambda guest: str(guest["name"]))
    if by == "memory":
        found.sort(key=lambda guest: -int(guest["spec"].get("memory", 1 << 30)))
    elif by == "since":
        found.sort(key=lambda guest: -float(guest["status"]["since"]))
    elif by == "state":
        found.sort(key=lambda guest: _state_rank(str(guest["status"]["state"])))
    return found[::-1] if reverse else found


def _state_rank(state: str) -> tuple[int, str]:
    known = state in _STATE_ORDER
    return (_STATE_ORDER.index(state) if known else len(_STATE_ORDER), state)


def state_text(guest: Mapping[str, Any]) -> str:
    """The state, with its reason where that is news: `paused (io-error)`, `running (booting)`."""
    status = guest["status"]
    state = str(status["state"])
    if state == "running":
        return "running (booting)" if guest.get("readiness", {}).get("waiting") else state
    reason = state_reason(state, str(status.get("reason", "")))
    return f"{state} ({reason})" if reason else state


def state_reason(state: str, reason: str) -> str:
    """The reason where it is news, else nothing."""
    return "" if state == "running" or reason in _EXPECTED else reason


def port_texts(guest: Mapping[str, Any]) -> list[str]:
    """Published ports, short: `8080->80`, `0.0.0.0:53->53/udp`."""
    return [_port(port) for nic in guest["spec"].get("nics", ()) for port in nic.get("ports", ())]


def span(seconds: float) -> str:
    """A stretch of time in its largest unit: `42s`, `7m`, `3h`, `12d`."""
    left = max(0, int(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if left >= size:
            return f"{left // size}{unit}"
    return f"{left}s"


def _row(guest: Mapping[str, Any], now: float) -> list[str]:
    spec = guest["spec"]
    return [
        str(guest["name"]),
        state_text(guest),
        str(spec.get("cpus", 1)),
        format_size(int(spec.get("memory", 1 << 30))),
        str(guest.get("image") or spec.get("image", "")),
        _address(guest.get("addresses", ())),
        " ".join(port_texts(guest)),
        span(now - float(guest["status"]["since"])),
    ]


def _address(addresses: Sequence[str]) -> str:
    """The address to show: the first IPv4 one, since it fits and is what people type."""
    return next((text for text in addresses if "." in text), addresses[0] if addresses else "")


def _port(port: Mapping[str, Any]) -> str:
    address = str(port.get("host_ip", "127.0.0.1"))
    shown = "" if address == "127.0.0.1" else f"[{address}]:" if ":" in address else f"{address}:"
    protocol = str(port.get("protocol", "tcp"))
    suffix = "" if protocol == "tcp" else f"/{protocol}"
    return f"{shown}{port['host_port']}->{port['guest_port']}{suffix}"
