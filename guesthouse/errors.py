"""The tree of errors.

Every error that a user can meet is one of these. It says what happened (`message`), what to do
next (`hint`), and carries a stable `code`, the HTTP status that the API answers with, and the exit
code of the command line::

    GuesthouseError
    ├── InvalidInput              400
    │   ├── UnknownField
    │   ├── MethodNotAllowed      405
    │   ├── TooLarge              413
    │   └── UnsupportedMediaType  415
    ├── NotFound                  404
    │   └── UnknownImage
    ├── Forbidden                 403
    ├── Conflict                  409
    │   ├── NameTaken
    │   ├── RevisionConflict
    │   ├── InvalidTransition
    │   ├── InUse
    │   ├── PortTaken
    │   └── Busy
    ├── Compacted                 410
    ├── Unavailable               503
    │   ├── DaemonUnreachable
    │   ├── ReadOnlyStore
    │   ├── CorruptStore
    │   ├── KeeperUnavailable
    │   ├── AgentUnavailable
    │   └── AgentUnsupported
    ├── DeadlineExceeded          504
    │   └── NotReady
    ├── Shortage                  507
    │   ├── NoSpace
    │   └── NoMemory
    ├── HostLacks                 501
    │   ├── QemuMissing
    │   └── QemuTooOld
    ├── EngineError               500
    │   ├── LaunchFailed
    │   ├── MonitorLost
    │   ├── QmpFailed
    │   ├── ToolFailed
    │   └── BuildFailed
    ├── Cancelled                 409
    ├── Interrupted               500
    └── Internal                  500
"""

from __future__ import annotations

from typing import ClassVar


class GuesthouseError(Exception):
    """Base of all errors. `detail` holds machine-readable facts (JSON-encodable values)."""

    code: ClassVar[str] = "error"
    title: ClassVar[str] = "Error"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", **detail: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InvalidInput(GuesthouseError):
    """A request, option or document that cannot be right.

    `detail["field"]` names the offending field, as a dotted path, where there is one.
    """

    code, title, status, exit_code = "invalid-input", "Invalid input", 400, 2


class UnknownField(InvalidInput):
    """A field, setting or parameter of a name that there is not."""

    code, title = "unknown-field", "Unknown field"


class MethodNotAllowed(InvalidInput):
    """The API knows the path, but not with this method."""

    code, title, status = "method-not-allowed", "Method not allowed", 405


class TooLarge(InvalidInput):
    """The request is larger than the API takes."""

    code, title, status = "too-large", "Request too large", 413


class UnsupportedMediaType(InvalidInput):
    """The request's body is not JSON."""

    code, title, status = "unsupported-media-type", "Unsupported media type", 415


class NotFound(GuesthouseError):
    """No guest, image, job … of that name or id."""

    code, title, status, exit_code = "not-found", "Not found", 404, 3


class UnknownImage(NotFound):
    """Neither an image of the house nor one that it can build."""

    code, title = "unknown-image", "Unknown image"


class Forbidden(GuesthouseError):
    """Not allowed to this user, or a path that the daemon must not open."""

    code, title, status, exit_code = "forbidden", "Forbidden", 403, 4


class Conflict(GuesthouseError):
    """It cannot be done as things stand."""

    code, title, status, exit_code = "conflict", "Conflict", 409, 5


class NameTaken(Conflict):
    """The name belongs to another object."""

    code, title = "name-taken", "Name taken"


class RevisionConflict(Conflict):
    """The document changed since it was read (compare-and-set)."""

    code, title = "revision-conflict", "Changed meanwhile"


class InvalidTransition(Conflict):
    """The guest's state does not allow this. `detail["state"]` is that state."""

    code, title = "invalid-state", "Not possible in this state"


class InUse(Conflict):
    """Something still refers to the object."""

    code, title = "in-use", "Still in use"


class PortTaken(Conflict):
    """Somebody holds the port that is to be published; the message says who."""

    code, title = "port-taken", "Port taken"


class Busy(Conflict):
    """A job holds the lock. `detail["holder"]` is its id."""

    code, title = "busy", "Busy"


class Compacted(GuesthouseError):
    """The watch asks for a revision that is no longer kept: list again."""

    code, title, status = "compacted", "Revision no longer kept", 410


class Unavailable(GuesthouseError):
    """Somebody who is needed for it does not answer."""

    code, title, status, exit_code = "unavailable", "Unavailable", 503, 6


class DaemonUnreachable(Unavailable):
    """No daemon answers, or the connection to it broke."""

    code, title = "daemon-unreachable", "Daemon unreachable"


class ReadOnlyStore(Unavailable):
    """The house refuses changes: its documents were written by a newer Guesthouse."""

    code, title = "read-only-store", "Store is read-only"


class CorruptStore(Unavailable):
    """The database is damaged. It is left as it is; `guest recover` rebuilds it."""

    code, title = "corrupt-store", "Database damaged"


class KeeperUnavailable(Unavailable):
    """The process that is the parent of all guests does not answer. Guests live on."""

    code, title = "keeper-unavailable", "Keeper unavailable"


class AgentUnavailable(Unavailable):
    """The guest's agent or its ssh does not answer."""

    code, title = "agent-unavailable", "Guest does not answer"


class AgentUnsupported(Unavailable):
    """The guest's agent lacks that command."""

    code, title = "agent-unsupported", "Not offered by the guest's agent"


class DeadlineExceeded(GuesthouseError):
    """Something did not happen in time."""

    code, title, status, exit_code = "deadline-exceeded", "Not in time", 504, 7


class NotReady(DeadlineExceeded):
    """The guest did not become ready; `detail["check"]` names the check that did not pass."""

    code, title = "not-ready", "Guest not ready"


class Shortage(GuesthouseError):
    """Too little of something."""

    code, title, status, exit_code = "shortage", "Not enough", 507, 8


class NoSpace(Shortage):
    """The disk is full."""

    code, title = "no-space", "No space left"


class NoMemory(Shortage):
    """The host has too little memory."""

    code, title = "no-memory", "Not enough memory"


class HostLacks(GuesthouseError):
    """This host cannot do that.

    `detail["capability"]` names what it lacks; the hint is the cure.
    """

    code, title, status, exit_code = "host-lacks", "This host cannot do that", 501, 9


class QemuMissing(HostLacks):
    """QEMU is not installed."""

    code, title = "qemu-missing", "QEMU missing"


class QemuTooOld(HostLacks):
    """The QEMU that is installed is older than Guesthouse needs."""

    code, title = "qemu-too-old", "QEMU too old"


class EngineError(GuesthouseError):
    """QEMU, qemu-img or another engine failed."""

    code, title = "engine-error", "Engine failed"


class LaunchFailed(EngineError):
    """The guest's process did not come up."""

    code, title = "launch-failed", "Guest did not start"


class MonitorLost(EngineError):
    """The monitor's connection broke: QEMU has ended, or it does not answer any more."""

    code, title = "monitor-lost", "Engine does not answer"


class QmpFailed(EngineError):
    """The running QEMU refused a command."""

    code, title = "qmp-failed", "QMP command refused"


class ToolFailed(EngineError):
    """An external command failed; the message has its last lines."""

    code, title = "tool-failed", "Command failed"


class BuildFailed(EngineError):
    """An image could not be built."""

    code, title = "build-failed", "Image not built"


class Cancelled(GuesthouseError):
    """The job was cancelled, and what it had done was undone."""

    code, title, status, exit_code = "cancelled", "Cancelled", 409, 10


class Interrupted(GuesthouseError):
    """The daemon died in the middle, and what had been done was undone."""

    code, title = "interrupted", "Interrupted"


class Internal(GuesthouseError):
    """A defect of Guesthouse itself."""

    code, title = "internal", "Internal error"


def all_errors() -> dict[str, type[GuesthouseError]]:
    """Every error class by its code; the client uses it to raise what the API answered."""
    found: dict[str, type[GuesthouseError]] = {}
    queue: list[type[GuesthouseError]] = [GuesthouseError]
    while queue:
        kind = queue.pop()
        found[kind.code] = kind
        queue.extend(kind.__subclasses__())
    return found
