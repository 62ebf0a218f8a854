"""What the API takes and answers beside the stored documents: requests, views and stream frames.

Sizes are bytes and times are seconds throughout. A request that leaves a field out gets its
default; the bounds here are those of the wire, semantic checks belong to the operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta, structs

from guesthouse.model.device import MAX_CARDS, PortRequest, Protocol
from guesthouse.model.document import Noun
from guesthouse.model.guest import (
    LONGEST,
    MAX_CPUS,
    MAX_ORDER,
    MIN_MEMORY,
    Autostart,
    Firmware,
    Guest,
    OnPanic,
    ShutdownAction,
)
from guesthouse.model.image import Image
from guesthouse.model.networking import NetworkName
from guesthouse.model.nics import NicRequest
from guesthouse.model.share import MAX_SHARES
from guesthouse.model.sharing import ShareRequest

# JSON readers written in JavaScript keep integers exact up to 2**53.
_LARGEST = 1 << 53

Cpus = Annotated[int, Meta(ge=1, le=MAX_CPUS, description="Number of virtual CPUs.")]
Memory = Annotated[
    int, Meta(ge=MIN_MEMORY, le=_LARGEST, description="Memory in bytes, whole mebibytes.")
]
DiskSize = Annotated[int, Meta(ge=1, le=_LARGEST, description="Size of the root disk in bytes.")]
Seconds = Annotated[float, Meta(ge=0, le=86_400, description="Seconds, at most a day.")]
HostSeconds = Annotated[float, Meta(ge=0, le=LONGEST, description="Seconds, at most an hour.")]
Order = Annotated[int, Meta(ge=0, le=MAX_ORDER, description="Lower ones start first.")]
Line = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=4096)]
PublicKey = Annotated[str, Meta(max_length=16_384)]
UserData = Annotated[str, Meta(max_length=256 << 10)]


class Accelerator(StrEnum):
    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class LogSource(StrEnum):
    """`serial`: the guest's console. `engine`: QEMU's own words. `house`: what the house did."""

    SERIAL = "serial"
    ENGINE = "engine"
    HOUSE = "house"


# --- Requests ------------------------------------------------------------------------------------


class LaunchRequest(Noun, kw_only=True, frozen=True):
    """Create a guest and, by default, start it and wait until it is ready.

    :ivar name: null asks for a generated one.
    :ivar memory: null takes what suits the image: 1 GiB, or 256 MiB for one without a disk.
    :ivar disk: size of the root disk; null keeps the image's own.
    :ivar wait_ready: the job ends only when the guest answers, or after `ready_timeout`.
    :ivar user: login user made beside root; null takes the house's default.
    :ivar cpu: CPU model; empty lets the house choose.
    :ivar ssh_keys: public keys that may log in: lines of .pub files.
    :ivar user_data: for cloud-init, in an image that has it. It is kept as a secret.
    :ivar network_config: cloud-init's, version 1 or 2; empty asks for an address.
    :ivar shares: folders of this host that it has from the start.
    :ivar networks: one for each network card, by name or id; `builtin` is a network of the guest's
        own. None named: the network `default`, or `builtin` where this host has no networks.
    :ivar nics: instead of `networks`: its cards, each with its network and what is fixed of it.
    :ivar groups: security groups that it is in from the start, in order, by name or id.
    """

    image: Line
    name: Line | None = None
    cpus: Cpus = 1
    memory: Memory | None = None
    disk: DiskSize | None = None
    publish: Annotated[tuple[PortRequest, ...], Meta(max_length=256)] = ()
    firmware: Firmware = Firmware.BIOS
    accelerator: Accelerator = Accelerator.AUTO
    display: bool = True
    user: Line | None = None
    description: Text = ""
    start: bool = True
    wait_ready: bool = True
    ready_timeout: Seconds = 300.0
    cpu: Line = ""
    on_panic: OnPanic = OnPanic.STOP
    ssh_keys: Annotated[tuple[PublicKey, ...], Meta(max_length=16)] = ()
    user_data: UserData = ""
    network_config: UserData = ""
    shares: Annotated[tuple[ShareRequest, ...], Meta(max_length=MAX_SHARES)] = ()
    networks: Annotated[tuple[NetworkName, ...], Meta(max_length=MAX_CARDS)] = ()
    nics: Annotated[tuple[NicRequest, ...], Meta(max_length=MAX_CARDS)] = ()
    groups: Annotated[tuple[NetworkName, ...], Meta(max_length=64)] = ()


class StartRequest(Noun, kw_only=True, frozen=True):
    """:ivar paused: leave the CPUs stopped; `resume` sets them going."""

    paused: bool = False
    wait_ready: bool = False
    ready_timeout: Seconds = 300.0


class StopRequest(Noun, kw_only=True, frozen=True):
    """:ivar force: kill at once. :ivar timeout: how long a polite request may take before that."""

    force: bool = False
    timeout: Seconds = 60.0


class RestartRequest(Noun, kw_only=True, frozen=True):
    """Stop as in `StopRequest`, then start."""

    force: bool = False
    timeout: Seconds = 60.0


class StopGuestsRequest(Noun, kw_only=True, frozen=True):
    """Stop every guest, as for a shutdown of the host.

    :ivar action: null does what each guest's `shutdown_action` says; `stop` and `kill` do that to
        all of them, also to those that would be left running.
    :ivar timeout: seconds to power off before a guest is killed; null takes each guest's own.
    """

    action: ShutdownAction | None = None
    timeout: HostSeconds | None = None


class EmptyRequest(Noun, kw_only=True, frozen=True):
    """A verb without options: pause, resume, reset, power-button."""


class RenameRequest(Noun, kw_only=True, frozen=True):
    name: Line


class SetRequest(Noun, kw_only=True, frozen=True):
    """What to change; null or absent leaves a field alone.

    :ivar disk: the root disk's new size; disks only grow.
    """

    cpus: Cpus | None = None
    memory: Memory | None = None
    disk: DiskSize | None = None
    description: Text | None = None
    cpu: Line | None = None
    autostart: Autostart | None = None
    autostart_order: Order | None = None
    autostart_delay: HostSeconds | None = None
    shutdown_action: ShutdownAction | None = None
    shutdown_timeout: HostSeconds | None = None
    display: bool | None = None
    firmware: Firmware | None = None
    accelerator: Accelerator | None = None
    on_panic: OnPanic | None = None
    protected: bool | None = None


class DeleteRequest(Noun, kw_only=True, frozen=True):
    """:ivar force: kill the guest first if it runs. :ivar now: do not keep it in the trash."""

    force: bool = False
    now: bool = False


class UndeleteRequest(Noun, kw_only=True, frozen=True):
    """:ivar name: bring it back under another name; null keeps the one it had."""

    name: Line | None = None


class UnpublishRequest(Noun, kw_only=True, frozen=True):
    """Which published port to close."""

    protocol: Protocol = Protocol.TCP
    host_ip: Line
    host_port: Annotated[int, Meta(ge=1, le=65535)]


class BuildImageRequest(Noun, kw_only=True, frozen=True):
    """:ivar rebuild: build again though an image of the same recipe is there."""

    name: Line
    rebuild: bool = False


class Tty(Noun, kw_only=True, frozen=True):
    """A terminal: its type as in TERM, and its size in characters."""

    term: Line = "xterm-256color"
    columns: Annotated[int, Meta(ge=1, le=10_000)] = 80
    rows: Annotated[int, Meta(ge=1, le=10_000)] = 24


class ExecRequest(Noun, kw_only=True, frozen=True):
    """The first message of an exec WebSocket.

    :ivar argv: the command; empty runs a login shell.
    :ivar cwd: working folder; null is the user's home.
    :ivar stdin: false closes the command's input at once.
    :ivar timeout: seconds after which the command is killed; null never does.
    """

    argv: tuple[str, ...] = ()
    user: Line = "root"
    env: dict[str, str] = {}
    cwd: Text | None = None
    tty: Tty | None = None
    stdin: bool = True
    timeout: Seconds | None = None


class ExecControl(Noun, kw_only=True, frozen=True):
    """A text frame from the client while a command runs; each carries one of these.

    :ivar resize: (columns, rows). :ivar signal: name without SIG, such as `INT`.
    """

    eof: bool = False
    resize: (
        tuple[
            Annotated[int, Meta(ge=1, le=10_000)],
            Annotated[int, Meta(ge=1, le=10_000)],
        ]
        | None
    ) = None
    signal: Annotated[str, Meta(pattern="^[A-Z][A-Z0-9]{1,11}$")] | None = None


# --- Views ---------------------------------------------------------------------------------------


class Readiness(Noun, kw_only=True, frozen=True):
    """How far a guest has come up.

    :ivar passed: names of the checks passed, in order.
    :ivar waiting: the check that it is waiting for now; null when none is.
    :ivar hint: what to do when that check does not come.
    """

    passed: tuple[str, ...] = ()
    waiting: str | None = None
    hint: str = ""


class GuestView(Guest, kw_only=True, frozen=True):
    """A guest's document and what the house knows of it from memory.

    :ivar pending: fields of `spec` that take effect at the next start.
    :ivar image: name of the image that it was made from.
    :ivar addresses: last known IP addresses.
    :ivar job: id of the job that holds the guest's lock.
    :ivar clock: what is wrong with the guest's clock that could not be put right.
    :ivar expires_at: when the trash gives it up (seconds since the epoch); null outside the trash.
    """

    pending: tuple[str, ...] = ()
    image: str = ""
    addresses: tuple[str, ...] = ()
    readiness: Readiness = Readiness()
    clock: str = ""
    job: str | None = None
    expires_at: float | None = None

    @classmethod
    def of(
        cls,
        guest: Guest,
        *,
        pending: tuple[str, ...] = (),
        addresses: tuple[str, ...] = (),
        readiness: Readiness | None = None,
        clock: str = "",
        job: str | None = None,
        expires_at: float | None = None,
    ) -> GuestView:
        """The view of `guest`; `readiness` defaults to what its status records."""
        return cls(
            **structs.asdict(guest),
            pending=pending,
            image=guest.spec.image,
            addresses=addresses,
            readiness=readiness or Readiness(passed=guest.status.ready),
            clock=clock,
            job=job,
            expires_at=expires_at,
        )


class ImageView(Image, kw_only=True, frozen=True):
    """:ivar in_use_by: names of the guests made from it whose disks still lie on its layer.

    :ivar in_use_by_trash: names of such guests in the trash.
    """

    in_use_by: tuple[str, ...] = ()
    in_use_by_trash: tuple[str, ...] = ()

    @classmethod
    def of(cls, image: Image, *, users: Iterable[Guest] = ()) -> ImageView:
        users = tuple(users)
        return cls(
            **structs.asdict(image),
            in_use_by=tuple(guest.name for guest in users if not guest.in_trash),
            in_use_by_trash=tuple(guest.name for guest in users if guest.in_trash),
        )


class KnownImage(Noun, kw_only=True, frozen=True):
    """An image that this house knows how to build. :ivar built: the catalogue holds one."""

    name: str
    description: str
    built: bool


class HouseMode(StrEnum):
    PERSONAL = "personal"
    SYSTEM = "system"


class HouseInfo(Noun, kw_only=True, frozen=True):
    """Who answers.

    :ivar started_at: seconds since the epoch.
    :ivar supervised: a service manager started it, and has its log.
    :ivar read_only: why the house refuses every change; empty when it does not.
    :ivar quarantined: documents that do not parse: their keys, and why.
    :ivar unknown_copies: how many documents have a copy beside the disks and are not in the
        database: it was lost or replaced, and `guest recover` brings them back.
    :ivar trash_days: how long removed guests stay in the trash; 0 removes them at once.
    :ivar code_changed: the program was upgraded since this daemon was started from it.
    """

    version: str
    api: int = 1
    mode: HouseMode
    node: str
    pid: int
    started_at: float
    socket: str
    state_folder: str
    supervised: bool = False
    read_only: str = ""
    quarantined: dict[str, str] = {}
    unknown_copies: int = 0
    trash_days: int = 7
    code_changed: bool = False


class FindingKind(StrEnum):
    """`layer`: a file among the disks that no document and no copy tells about."""

    GUEST = "guest"
    IMAGE = "image"
    VOLUME = "volume"
    NETWORK = "network"
    LEASE = "lease"
    GROUP = "security-group"
    SET = "address-set"
    LAYER = "layer"


class Finding(Noun, kw_only=True, frozen=True):
    """Something beside the disks that the database does not know.

    :ivar state: of a guest that comes back: `running`, `stopped`, `failed`, `suspended` or
        `trash`; empty for everything else.
    :ivar back: whether a recovery brings it back; what it does not, it leaves as it is.
    :ivar problem: what is wrong with it, and what comes of that; empty when all is well.
    """

    kind: FindingKind
    id: str
    name: str = ""
    state: str = ""
    back: bool = True
    problem: str = ""


class RecoverySurvey(Noun, kw_only=True, frozen=True):
    """What a recovery finds: guests, images, volumes, networks and what belongs to them, and
    layers, in this order."""

    findings: tuple[Finding, ...] = ()


# --- Errors and streams --------------------------------------------------------------------------


class ProblemDetails(Noun, kw_only=True, frozen=True):
    """RFC 9457 problem details (`application/problem+json`).

    :ivar type: `urn:guesthouse:error:` and the code. :ivar detail: what happened and why.
    :ivar hint: what to do next. :ivar context: machine-readable facts, such as `field`.
    :ivar instance: the path that was asked for.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str = ""
    context: dict[str, Any] = {}
    instance: str = ""


class EventKind(StrEnum):
    """`resync`: events were lost; list everything again.

    `quarantine`: the document under the key `id` does not parse, or does so again.
    """

    GUEST = "guest"
    IMAGE = "image"
    VOLUME = "volume"
    JOB = "job"
    NETWORK = "network"
    LEASE = "lease"
    GROUP = "security-group"
    SET = "address-set"
    QUARANTINE = "quarantine"
    RESYNC = "resync"


class HouseEvent(Noun, kw_only=True, frozen=True):
    """Data of a server-sent event of the house.

    :ivar id: of the object; empty for a resync.
    :ivar document: as it is now, of the event's kind: a guest, image, volume, job, network,
        lease, security group or address set; null when it was deleted.
    """

    id: str
    revision: int
    document: Any = None


class LogLine(Noun, kw_only=True, frozen=True):
    """Data of a job's `log` event."""

    line: str


class Exit(Noun, kw_only=True, frozen=True):
    """How a command ended: a code, or the name of the signal that killed it (without SIG)."""

    code: int | None = None
    signal: str | None = None


class ExecStarted(Noun, kw_only=True, frozen=True):
    """The first text frame from the server: the command runs."""

    started: bool = True


class ExecExit(Noun, kw_only=True, frozen=True):
    """The last text frame from the server when the command ended."""

    exit: Exit


class ExecProblem(Noun, kw_only=True, frozen=True):
    """The last frame of any WebSocket of this API when something failed."""

    problem: ProblemDetails
