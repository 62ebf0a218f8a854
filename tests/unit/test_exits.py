"""How an end is told, from what the keeper wrote down."""

from __future__ import annotations

import signal
import socket
from typing import Any

import pytest

from guesthouse.drivers.qemu.exits import explain, last_line, seen
from guesthouse.drivers.qemu.failures import launch_error
from guesthouse.drivers.qemu.states import state_of, translate
from guesthouse.errors import HostLacks, LaunchFailed, NoMemory, PortTaken
from guesthouse.host.keeper_client import Ending, ExitRecord


def record(**fields: Any) -> ExitRecord:
    wanted: dict[str, Any] = {
        "key": "g.1",
        "pid": 10,
        "start_ticks": 20,
        "exit_code": None,
        "signal": None,
        "shutdown": None,
        "panic": None,
        "at": 0.0,
        "boot_id": "now",
        "stderr_tail": "",
        **fields,
    }
    return ExitRecord(**wanted)


def ending(reason: str, *, guest: bool = True) -> Ending:
    return Ending(guest, reason, 1.0)


@pytest.mark.parametrize(
    ("fields", "reason", "words"),
    [
        ({"exit_code": 0, "shutdown": ending("guest-shutdown")}, "guest-shutdown", "itself off"),
        ({"exit_code": 0, "shutdown": ending("guest-reset")}, "guest-reset", "restarted"),
        ({"exit_code": 0, "shutdown": ending("guest-panic")}, "guest-panic", "panic"),
        ({"exit_code": 0, "shutdown": ending("host-qmp-quit", guest=False)}, "quit", "told"),
        ({"exit_code": 0, "shutdown": ending("host-signal", guest=False)}, "quit", "signal"),
        ({"shutdown": ending("host-qmp-system-reset", guest=False)}, "guest-reset", "reset"),
        ({"signal": signal.SIGKILL}, "killed", "SIGKILL"),
        ({"signal": signal.SIGTERM}, "killed", "SIGTERM"),
        ({"signal": signal.SIGSEGV}, "crash", "SIGSEGV"),
        ({"signal": signal.SIGSYS}, "crash", "sandbox"),
        ({"signal": signal.SIGABRT, "stderr_tail": "x\nassertion failed\n"}, "crash", "assertion"),
        ({"signal": 99}, "killed", "99"),
        ({"exit_code": 1, "stderr_tail": "qemu-system-x86_64: bad disk\n"}, "crash", ": bad disk"),
        ({"exit_code": 2}, "crash", "code 2."),
        ({"exit_code": 0}, "quit", "without a reason"),
        ({}, "unknown", "not known"),
        # An adopted process: nobody could wait for it, its last word counts.
        ({"shutdown": ending("guest-shutdown")}, "guest-shutdown", "itself off"),
        # A crash while it cleans up after the guest's own end is not the guest's end.
        (
            {"signal": signal.SIGSEGV, "shutdown": ending("guest-shutdown")},
            "guest-shutdown",
            "itself off",
        ),
        ({"shutdown": ending("some-day-new"), "exit_code": 0}, "quit", "without"),
        ({"boot_id": "earlier", "signal": signal.SIGKILL}, "host-rebooted", "restarted"),
    ],
)
def test_ends(fields: dict[str, Any], reason: str, words: str) -> None:
    end = explain(record(**fields), boot_id="now")
    assert end.reason == reason
    assert words in end.message
    assert end.message.endswith(".") or fields.get("stderr_tail")


def test_unwatched_ends() -> None:
    assert seen("guest-shutdown").reason == "guest-shutdown"
    assert seen(None).reason == "unknown"
    assert seen("nonsense").reason == "unknown"


def test_last_line_is_without_the_programs_name() -> None:
    assert last_line("a\nqemu-system-x86_64: -disk: no: such\n\n") == "-disk: no: such"
    hinted = 'qemu-system-x86_64: -blockdev x: Failed to get "write" lock\nIs another process?\n'
    assert last_line(hinted) == '-blockdev x: Failed to get "write" lock'
    assert last_line("error: plain") == "error: plain"
    assert last_line("") == ""


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("qemu-system-x86_64: unable to map backing store: Cannot allocate memory", NoMemory),
        ("Could not access KVM kernel module: Permission denied", HostLacks),
        ("qemu-system-x86_64: failed to initialize kvm: No such device", HostLacks),
        ("qemu-system-x86_64: -device x: 'x' is not a valid device model name", LaunchFailed),
        ("", LaunchFailed),
    ],
)
async def test_why_a_start_failed(text: str, kind: type[Exception]) -> None:
    error = await launch_error(record(exit_code=1, stderr_tail=text))
    assert type(error) is kind
    if text:
        assert text.removeprefix("qemu-system-x86_64: ") in error.message


@pytest.mark.parametrize(("kind", "protocol"), [(socket.SOCK_STREAM, "tcp"), (2, "udp")])
async def test_a_taken_port_names_its_holder(kind: int, protocol: str) -> None:
    with socket.socket(socket.AF_INET, kind) as holder:
        holder.bind(("127.0.0.1", 0))
        if protocol == "tcp":
            holder.listen()
        port = holder.getsockname()[1]
        said = (
            "qemu-system-x86_64: -netdev user,id=n0: Could not set up host forwarding rule "
            f"'{protocol}:127.0.0.1:{port}-:80'\n"
        )
        error = await launch_error(record(exit_code=1, stderr_tail=said))
    assert isinstance(error, PortTaken)
    assert error.detail["host_port"] == port
    assert error.detail["protocol"] == protocol
    assert "process" in str(error.detail["holder"])


def test_states() -> None:
    assert state_of("running") == ("running", "")
    assert state_of("prelaunch") == ("paused", "starting")
    assert state_of("inmigrate") == ("paused", "starting")
    assert state_of("io-error") == ("paused", "io-error")
    assert state_of("guest-panicked") == ("paused", "panic")
    assert state_of("internal-error") == ("paused", "engine-error")


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("STOP", {}, "paused"),
        ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}, "shutdown"),
        ("BLOCK_IO_ERROR", {"action": "stop"}, "io-error"),
        ("BLOCK_IO_ERROR", {"action": "report"}, None),
        ("VSERPORT_CHANGE", {"id": "agent0", "open": True}, "agent-open"),
        ("VSERPORT_CHANGE", {"id": "agent0", "open": False}, "agent-close"),
        ("VSERPORT_CHANGE", {"id": "ssh0", "open": True}, "ssh-open"),
        ("VSERPORT_CHANGE", {"id": "ssh0", "open": False}, None),
        ("RTC_CHANGE", {"offset": 1}, None),
    ],
)
def test_events(name: str, data: dict[str, Any], kind: str | None) -> None:
    event = translate(name, data)
    assert (event.kind if event else None) == kind
