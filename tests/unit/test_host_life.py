"""What a guest wants of its host's start and end: the spec, the orders, and who is in them."""

from __future__ import annotations

import time

import msgspec
import pytest

from guesthouse.cli.change import parse_change
from guesthouse.errors import InvalidInput
from guesthouse.model.guest import (
    Autostart,
    BootPath,
    Guest,
    GuestStatus,
    LaunchRecord,
    ShutdownAction,
    check_spec,
)
from guesthouse.model.host import Capability
from guesthouse.model.states import GuestState
from guesthouse.model.units import parse_seconds
from guesthouse.operations.hosting import ran_before, stop_groups, wants_start

from .cli_room import Room
from .fake_house import make_guest

S = GuestState


def names(guests: list[Guest]) -> list[str]:
    return [guest.name for guest in guests]


def launched(guest: Guest, boot_id: str, state: S, *, reason: str = "user", pid: int = 0) -> Guest:
    record = LaunchRecord(
        incarnation=1,
        argv=(),
        machine="q35",
        cpu="max",
        accelerator="tcg",
        engine="QEMU",
        boot=BootPath.DISK,
        spec=guest.spec,
        pid=7,
        pid_start=7,
        boot_id=boot_id,
        launched_at=time.time(),
    )
    status = GuestStatus(state=state, reason=reason, since=time.time(), pid=pid or None)
    return msgspec.structs.replace(guest, launch=record, status=status)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5), ("90", 90), ("2m", 120), ("2 min", 120), ("1.5h", 5400), ("500ms", 0.5), ("0", 0)],
)
def test_spans_of_time(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-5s", "5 weeks", "1h30m", "\u0665s", "inf", "1e9"])
def test_what_is_no_span_of_time(text: str) -> None:
    with pytest.raises(InvalidInput, match="span of time") as caught:
        parse_seconds(text, field="autostart_delay")
    assert caught.value.detail["field"] == "autostart_delay"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"autostart_order": -1}, "autostart_order"),
        ({"autostart_order": 10000}, "autostart_order"),
        ({"autostart_delay": 3601.0}, "autostart_delay"),
        ({"shutdown_timeout": -1.0}, "shutdown_timeout"),
        ({"shutdown_timeout": float("nan")}, "shutdown_timeout"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, float], field: str) -> None:
    spec = make_guest("web").spec
    check_spec(spec)
    with pytest.raises(InvalidInput) as caught:
        check_spec(msgspec.structs.replace(spec, **fields))
    assert caught.value.detail["field"] == field


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("autostart=true", ("autostart", "on")),
        ("autostart=off", ("autostart", "off")),
        ("autostart=last", ("autostart", "last")),
        ("autostart.order=10", ("autostart_order", 10)),
        ("autostart-delay=5s", ("autostart_delay", 5.0)),
        ("shutdown.action=leave", ("shutdown_action", "leave")),
        ("shutdown.timeout=2m", ("shutdown_timeout", 120.0)),
    ],
)
def test_how_it_is_written(text: str, change: tuple[str, object]) -> None:
    assert parse_change(text) == change


def test_misspelt_changes_are_named() -> None:
    with pytest.raises(InvalidInput, match="off, on, last"):
        parse_change("autostart=sometimes")
    with pytest.raises(InvalidInput) as caught:
        parse_change("shutdown.timout=5s")
    assert "shutdown.timeout=" in caught.value.hint


def test_guests_start_by_order_and_then_by_name() -> None:
    on = Autostart.ON
    guests = [
        make_guest("web", autostart=on),
        make_guest("db", autostart=on, autostart_order=10),
        make_guest("app", autostart=on),
        make_guest("idle"),
        make_guest("late", autostart=on, autostart_order=200),
    ]
    assert names(wants_start(guests, ())) == ["db", "app", "web", "late"]


def test_last_starts_only_what_ran() -> None:
    ran, idle = (make_guest(name, autostart=Autostart.LAST) for name in ("ran", "idle"))
    off = make_guest("off")
    assert names(wants_start([ran, idle, off], [ran.id, off.id])) == ["ran"]


def test_nothing_starts_out_of_the_trash() -> None:
    gone = msgspec.structs.replace(make_guest("gone", autostart=Autostart.ON), deleted_at=1.0)
    assert wants_start([gone], [gone.id]) == []


def test_what_ran_when_the_host_went_down() -> None:
    def guest(name: str, *args: object, **rest: object) -> Guest:
        return launched(make_guest(name, S.STOPPED), *args, **rest)  # type: ignore[arg-type]  # passed through

    crashed = guest("crashed", "before", S.RUNNING, pid=9)
    paused = guest("paused", "before", S.PAUSED, pid=9)
    orderly = guest("orderly", "before", S.STOPPED, reason="host-shutdown")
    cut_short = guest("cut-short", "before", S.STOPPING, reason="host-shutdown", pid=9)
    others = [
        guest("by-user", "before", S.STOPPED, reason="guest-shutdown"),
        guest("being-stopped", "before", S.STOPPING, pid=9),
        guest("long-ago", "earlier", S.STOPPED, reason="host-shutdown"),
        make_guest("never", S.STOPPED),
    ]
    found = ran_before([crashed, paused, orderly, cut_short, *others], "before")
    assert found == [crashed.id, paused.id, orderly.id, cut_short.id]


def test_guests_stop_in_the_reverse_order_equal_ones_together() -> None:
    guests = [
        make_guest("db", autostart_order=10),
        make_guest("web"),
        make_guest("app"),
        make_guest("late", autostart_order=200),
    ]
    assert [names(group) for group in stop_groups(guests)] == [["late"], ["app", "web"], ["db"]]
    assert stop_groups([]) == []


def test_info_says_what_is_unusual(guest: Room) -> None:
    guest.house.add(
        "db",
        autostart=Autostart.ON,
        autostart_order=10,
        autostart_delay=20.0,
        shutdown_action=ShutdownAction.LEAVE,
    )
    said = guest("info", "db").out
    assert "always, order 10, then 20 s" in said
    assert "leave it" in said
    assert "Autostart" not in guest("info", "web").out


def test_a_time_without_guests_to_stop_is_a_mistake(guest: Room) -> None:
    said = guest("daemon", "stop", "--timeout", "5")
    assert (said.code, said.out) == (2, "")
    assert "--timeout is for --guests" in said.err
    assert guest("daemon", "stop", "--guests=often").code == 2
    assert guest("daemon", "stop", "--guests", "--timeout", "-1").code == 2


def test_doctor_tells_of_lingering(guest: Room) -> None:
    guest.house.capabilities += (
        Capability(
            name="linger", available=False, reason="Guests end.", cure="loginctl enable-linger"
        ),
    )
    said = guest("doctor").out
    assert "cure: loginctl enable-linger" in said
