"""How an incarnation ended, from what was written down about it. Pure."""

from __future__ import annotations

import signal

from guesthouse.drivers.base import Exit
from guesthouse.host.keeper_client import ExitRecord

HOST_REBOOTED = Exit("host-rebooted", "The host was restarted while the guest ran.")
UNKNOWN = Exit("unknown", "The guest's process ended; how is not known.")

# QEMU's ShutdownCause (qapi/run-state.json) -> ours.
_CAUSES = {
    "guest-shutdown": Exit("guest-shutdown", "The guest switched itself off."),
    "guest-reset": Exit("guest-reset", "The guest restarted itself."),
    "guest-panic": Exit("guest-panic", "The guest's operating system crashed (panic)."),
    # A reset from outside, where a restart begins another process.
    "host-qmp-system-reset": Exit("guest-reset", "The guest was reset."),
    "host-qmp-quit": Exit("quit", "The engine was told to end."),
    "host-signal": Exit("quit", "A signal asked the engine to end (SIGTERM, SIGINT or SIGHUP)."),
    "host-ui": Exit("quit", "The engine was closed by its own window."),
    "host-error": Exit("crash", "The engine met an error that it could not go on from."),
}

_CRASHES = {
    signal.SIGSEGV: "The engine crashed (SIGSEGV: it touched memory that is not its own).",
    signal.SIGABRT: "The engine crashed (SIGABRT: it found itself in an impossible state).",
    signal.SIGBUS: "The engine crashed (SIGBUS: memory or a file under it went away).",
    signal.SIGSYS: "The engine was stopped by its sandbox (SIGSYS: a forbidden system call).",
}


def explain(record: ExitRecord, *, boot_id: str) -> Exit:
    """How the process of `record` ended.

    The guest's own word counts before the process's: an engine that crashes while it cleans up
    after the guest switched itself off is no crash of the guest.

    :param boot_id: the one in which the incarnation was started.
    """
    if record.boot_id != boot_id:
        return HOST_REBOOTED
    if record.shutdown is not None and record.shutdown.reason in _CAUSES:
        return _CAUSES[record.shutdown.reason]
    if record.signal is not None:
        return _signalled(record)
    said = last_line(record.stderr_tail)
    if record.exit_code:
        words = f": {said}" if said else "."
        return Exit("crash", f"The engine ended with exit code {record.exit_code}{words}")
    if record.exit_code == 0:
        return Exit("quit", "The engine ended by itself, without a reason.")
    return UNKNOWN


def _signalled(record: ExitRecord) -> Exit:
    assert record.signal is not None  # the caller looked
    try:
        number = signal.Signals(record.signal)
    except ValueError:
        return Exit("killed", f"The engine was ended by signal {record.signal}.")
    if number is signal.SIGKILL:
        return Exit("killed", "The guest's process was killed (SIGKILL).")
    if number in _CRASHES:
        said = last_line(record.stderr_tail)
        return Exit("crash", _CRASHES[number] + (f" It said: {said}" if said else ""))
    return Exit("killed", f"The guest's process was ended by {number.name}.")


def seen(reason: str | None) -> Exit:
    """The end of a process that no keeper watched, from the last SHUTDOWN that we saw."""
    return _CAUSES.get(reason or "", UNKNOWN)


def last_line(text: str) -> str:
    """The engine's last error, without its name in front; else its last line, whatever it is."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Hints follow on lines of their own.
    for line in reversed(lines):
        program, colon, rest = line.partition(": ")
        if colon and program.startswith("qemu-system-"):
            return rest
    return lines[-1] if lines else ""
