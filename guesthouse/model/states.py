"""A guest's states and the one table of transitions between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from guesthouse.errors import InvalidTransition


class GuestState(StrEnum):
    """What a guest is doing. Every status also carries a reason and the time since."""

    CREATING = "creating"
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    STOPPING = "stopping"
    FAILED = "failed"
    DELETING = "deleting"
    UNOBSERVED = "unobserved"


S = GuestState

TRANSITIONS: dict[GuestState, frozenset[GuestState]] = {
    S.CREATING: frozenset({S.STOPPED, S.DELETING, S.FAILED}),
    S.STOPPED: frozenset({S.STARTING, S.DELETING}),
    S.STARTING: frozenset({S.RUNNING, S.PAUSED, S.STOPPED, S.FAILED, S.STOPPING, S.UNOBSERVED}),
    S.RUNNING: frozenset(
        {S.PAUSED, S.STOPPING, S.STOPPED, S.FAILED, S.SUSPENDING, S.STARTING, S.UNOBSERVED}
    ),
    S.PAUSED: frozenset(
        {S.RUNNING, S.STOPPING, S.STOPPED, S.FAILED, S.SUSPENDING, S.STARTING, S.UNOBSERVED}
    ),
    S.SUSPENDING: frozenset({S.SUSPENDED, S.RUNNING, S.PAUSED, S.STOPPED, S.FAILED, S.UNOBSERVED}),
    S.SUSPENDED: frozenset({S.STARTING, S.STOPPED, S.DELETING, S.FAILED}),
    S.STOPPING: frozenset({S.STOPPED, S.RUNNING, S.PAUSED, S.FAILED, S.STARTING, S.UNOBSERVED}),
    S.FAILED: frozenset({S.STARTING, S.STOPPED, S.DELETING}),
    S.DELETING: frozenset({S.FAILED, S.STOPPED}),
    S.UNOBSERVED: frozenset({S.RUNNING, S.PAUSED, S.STOPPED, S.FAILED, S.STOPPING, S.DELETING}),
}

LIVE = frozenset({S.STARTING, S.RUNNING, S.PAUSED, S.SUSPENDING, S.STOPPING, S.UNOBSERVED})
"""States in which the guest has, or may have, a process."""

_CURE = {
    S.STOPPED: "Start it first: guest start {name}",
    S.RUNNING: "Stop it first: guest stop {name}",
    S.PAUSED: "Resume it first: guest resume {name}",
    S.SUSPENDED: "Start it first: guest start {name}",
    S.FAILED: "See why with 'guest logs {name}', then start it again: guest start {name}",
}


def check_transition(
    name: str, now: GuestState, then: GuestState, *, verb: str = "do that"
) -> None:
    """:raise InvalidTransition: the table does not allow `now` → `then`."""
    if then not in TRANSITIONS[now]:
        raise InvalidTransition(
            f"Cannot {verb}: guest {name!r} is {now.value}.",
            hint=_CURE.get(now, "Wait for the running job: guest job ls").format(name=name),
            guest=name,
            state=now.value,
        )


def require_state(
    name: str,
    now: GuestState,
    allowed: frozenset[GuestState],
    *,
    verb: str,
    cures: Mapping[GuestState, str] = {},
) -> None:
    """:param cures: what to do in which state, where that is not what it is for most verbs.

    :raise InvalidTransition: `now` is not one of `allowed`.
    """
    if now not in allowed:
        cure = {**_CURE, **cures}.get(now, "Wait for the running job: guest job ls")
        raise InvalidTransition(
            f"Cannot {verb}: guest {name!r} is {now.value}.",
            hint=cure.format(name=name),
            guest=name,
            state=now.value,
        )
