"""QEMU's run states and events in the contract's words. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guesthouse.drivers.base import DriverEvent

# RunState (qapi/run-state.json) -> (state, reason).
_STATES = {
    "running": ("running", ""),
    "paused": ("paused", "user"),
    "io-error": ("paused", "io-error"),
    "watchdog": ("paused", "watchdog"),
    "guest-panicked": ("paused", "panic"),
    "internal-error": ("paused", "engine-error"),
    "prelaunch": ("paused", "starting"),
    "shutdown": ("paused", "user"),
}

NEEDS_RESET = frozenset({"panic", "engine-error"})
"""Reasons for a pause that only a reset ends: QEMU refuses to go on."""

# Event (qapi/*.json) -> kind.
_EVENTS = {
    "STOP": "paused",
    "RESUME": "resumed",
    "RESET": "reset",
    "POWERDOWN": "powerdown",
    "SHUTDOWN": "shutdown",
    "GUEST_PANICKED": "panic",
    "WATCHDOG": "watchdog",
    "DEVICE_UNPLUG_GUEST_ERROR": "unplug-refused",
}


def state_of(status: str) -> tuple[str, str]:
    """Of query-status. States of migration and the like count as being on the way."""
    return _STATES.get(status, ("paused", "starting"))


def translate(name: str, data: Mapping[str, Any]) -> DriverEvent | None:
    """An event of QEMU as one of ours; None for what nobody needs to know."""
    kind = _EVENTS.get(name, "")
    if name == "BLOCK_IO_ERROR" and data.get("action") == "stop":
        kind = "io-error"
    elif name == "DEVICE_DELETED" and data.get("device"):
        kind = "unplugged"
    elif name == "VSERPORT_CHANGE":
        opened = bool(data.get("open"))
        if data.get("id") == "agent0":
            kind = "agent-open" if opened else "agent-close"
        elif data.get("id") == "ssh0" and opened:
            kind = "ssh-open"
    return DriverEvent(kind, dict(data)) if kind else None
