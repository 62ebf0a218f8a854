"""The tree of errors.

Every error that a user can meet is one of these. It says what happened (`message`), what to do
next (`hint`), and carries a stable `code`, the HTTP status that the API answers with, and the exit
code of the command line::

    GuesthouseError
    ├── InvalidInput              400  a request or document that cannot be right; names the field
    │   ├── UnknownField
    │   ├── MethodNotAllowed      405  the API knows the path, but not with this method
    │   ├── TooLarge              413  the request is larger than the API takes
    │   └── UnsupportedMediaType  415  the request's body is not JSON
    ├── NotFound                  404  no guest, image, job … of that name or id
    │   └── UnknownImage
    ├── Forbidden                 403  not allowed, or a path that the daemon must not open
    ├── Conflict                  409
    │   ├── NameTaken                  the name belongs to another object
    │   ├── RevisionConflict           the document changed since it was read (compare-and-set)
    │   ├── InvalidTransition          the guest's state does not allow this
    │   ├── InUse                      something still refers to the object
    │   ├── PortTaken                  a published port is held by somebody; names the holder
    │   └── Busy                       a lock is held; names the job that holds it
    ├── Compacted                 410  the watch asks for a revision no longer kept: list again
    ├── Unavailable               503
    │   ├── DaemonUnreachable          the client found no daemon
    │   ├── ReadOnlyStore              the store was written by a newer Guesthouse
    │   ├── CorruptStore               the database is damaged; it is left as it is
    │   ├── KeeperUnavailable          the keeper process does not answer
    │   ├── AgentUnavailable           the guest's agent or ssh does not answer
    │   └── AgentUnsupported           the guest's agent lacks that command
    ├── DeadlineExceeded          504  something did not happen in time
    │   └── NotReady                   the guest did not become ready; names the failing check
    ├── Shortage                  507
    │   ├── NoSpace                    the disk is full
    │   └── NoMemory                   the host has too little memory
    ├── HostLacks                 501  this host cannot do that; names the capability and the cure
    │   ├── QemuMissing
    │   └── QemuTooOld
    ├── EngineError               500  QEMU, qemu-img or another engine failed
    │   ├── LaunchFailed               the guest's process did not come up
    │   ├── QmpFailed                  a QMP command was refused
    │   ├── ToolFailed                 an external command failed; keeps its last lines
    │   └── BuildFailed                an image could not be built
    ├── Cancelled                 409  the job was cancelled
    ├── Interrupted               500  the daemon died in the middle and the work was undone
    └── Internal                  500  a defect of ours
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
    """`detail["field"]` names the offending field, as a dotted path, where there is one."""

    code, title, status, exit_code = "invalid-input", "Invalid input", 400, 2


class UnknownField(InvalidInput):
    code, title = "unknown-field", "Unknown field"


class MethodNotAllowed(InvalidInput):
    code, title, status = "method-not-allowed", "Method not allowed", 405


class TooLarge(InvalidInput):
    code, title, status = "too-large", "Request too large", 413


class UnsupportedMediaType(InvalidInput):
    code, title, status = "unsupported-media-type", "Unsupported media type", 415


class NotFound(GuesthouseError):
    code, title, status, exit_code = "not-found", "Not found", 404, 3


class UnknownImage(NotFound):
    code, title = "unknown-image", "Unknown image"


class Forbidden(GuesthouseError):
    code, title, status, exit_code = "forbidden", "Forbidden", 403, 4


class Conflict(GuesthouseError):
    code, title, status, exit_code = "conflict", "Conflict", 409, 5


class NameTaken(Conflict):
    code, title = "name-taken", "Name taken"


class RevisionConflict(Conflict):
    code, title = "revision-conflict", "Changed meanwhile"


class InvalidTransition(Conflict):
    code, title = "invalid-state", "Not possible in this state"


class InUse(Conflict):
    code, title = "in-use", "Still in use"


class PortTaken(Conflict):
    code, title = "port-taken", "Port taken"


class Busy(Conflict):
    """`detail["holder"]` is the id of the job that holds the lock."""

    code, title = "busy", "Busy"


class Compacted(GuesthouseError):
    code, title, status = "compacted", "Revision no longer kept", 410


class Unavailable(GuesthouseError):
    code, title, status, exit_code = "unavailable", "Unavailable", 503, 6


class DaemonUnreachable(Unavailable):
    code, title = "daemon-unreachable", "Daemon unreachable"


class ReadOnlyStore(Unavailable):
    code, title = "read-only-store", "Store is read-only"


class CorruptStore(Unavailable):
    code, title = "corrupt-store", "Database damaged"


class KeeperUnavailable(Unavailable):
    code, title = "keeper-unavailable", "Keeper unavailable"


class AgentUnavailable(Unavailable):
    code, title = "agent-unavailable", "Guest does not answer"


class AgentUnsupported(Unavailable):
    code, title = "agent-unsupported", "Not offered by the guest's agent"


class DeadlineExceeded(GuesthouseError):
    code, title, status, exit_code = "deadline-exceeded", "Not in time", 504, 7


class NotReady(DeadlineExceeded):
    code, title = "not-ready", "Guest not ready"


class Shortage(GuesthouseError):
    code, title, status, exit_code = "shortage", "Not enough", 507, 8


class NoSpace(Shortage):
    code, title = "no-space", "No space left"


class NoMemory(Shortage):
    code, title = "no-memory", "Not enough memory"


class HostLacks(GuesthouseError):
    """`detail["capability"]` names what the host lacks; `hint` is the cure."""

    code, title, status, exit_code = "host-lacks", "This host cannot do that", 501, 9


class QemuMissing(HostLacks):
    code, title = "qemu-missing", "QEMU missing"


class QemuTooOld(HostLacks):
    code, title = "qemu-too-old", "QEMU too old"


class EngineError(GuesthouseError):
    code, title = "engine-error", "Engine failed"


class LaunchFailed(EngineError):
    code, title = "launch-failed", "Guest did not start"


class QmpFailed(EngineError):
    code, title = "qmp-failed", "QMP command refused"


class ToolFailed(EngineError):
    code, title = "tool-failed", "Command failed"


class BuildFailed(EngineError):
    code, title = "build-failed", "Image not built"


class Cancelled(GuesthouseError):
    code, title, status, exit_code = "cancelled", "Cancelled", 409, 10


class Interrupted(GuesthouseError):
    code, title = "interrupted", "Interrupted"


class Internal(GuesthouseError):
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
