"""The guest: what is wanted (`spec`), what is observed (`status`), what was started (`launch`)."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from guesthouse.errors import InvalidInput
from guesthouse.model.device import Disk, Nic, check_publish, numbered
from guesthouse.model.document import Document, Noun
from guesthouse.model.firewall import Firewall, check_firewall
from guesthouse.model.image import Seed
from guesthouse.model.impairment import check_nic_impairment
from guesthouse.model.names import check_name
from guesthouse.model.share import Share, check_shares
from guesthouse.model.states import GuestState
from guesthouse.model.units import format_size

MIN_MEMORY = 64 << 20
MAX_CPUS = 512
DEFAULT_ORDER = 100
MAX_ORDER = 9999
LONGEST = 3600.0
"""Seconds that a start or a stop of the host may be held up by one guest."""


class Firmware(StrEnum):
    BIOS = "bios"
    UEFI = "uefi"


class BootPath(StrEnum):
    """How a guest comes up.

    `disk`: its own boot loader, so that a kernel upgraded inside it is the one that boots.
    `kernel`: the image's kernel and a small initrd directly, for images without a disk.
    `first-kernel`: directly for the first boot only, later ones by `disk`.
    """

    DISK = "disk"
    KERNEL = "kernel"
    FIRST_KERNEL = "first-kernel"


class OnPanic(StrEnum):
    STOP = "stop"
    PAUSE = "pause"


class Autostart(StrEnum):
    """Whether a guest is started after its host was: never, always, or if it ran before that."""

    OFF = "off"
    ON = "on"
    LAST = "last"


class ShutdownAction(StrEnum):
    """What becomes of a guest when its host goes down. `leave`: it ends as the host does."""

    STOP = "stop"
    KILL = "kill"
    LEAVE = "leave"


class GuestSpec(Noun, kw_only=True, frozen=True):
    """What the user wants.

    :ivar image: name of the image it was made from; `image_id` the exact one.
    :ivar memory: bytes.
    :ivar machine: versioned machine type, pinned at creation (`pc-q35-7.2`).
    :ivar cpu: CPU model; empty chooses `host` under KVM and `max`/`qemu64` under TCG.
    :ivar accelerator: `auto`, `kvm` or `tcg`.
    :ivar display: a screen (VGA, reached by VNC) or none.
    :ivar user: login user that the seed makes beside root.
    :ivar seed: how it learns who it is; `nocloud` if it has a disc for cloud-init.
    :ivar agent: QEMU's guest agent is expected to answer. :ivar ssh_port: so is our ssh port.
    :ivar keys: public ssh keys that may log in, beside the house's own.
    :ivar protected: it cannot be removed until this is taken back.
    :ivar autostart_order: lower ones start first after a boot of the host, and stop last.
    :ivar autostart_delay: seconds after its start before the next guest is started.
    :ivar shutdown_timeout: seconds to power off when the host goes down, before it is killed.
    """

    image: str
    image_id: str
    cpus: int = 1
    memory: int = 1 << 30
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    firmware: Firmware = Firmware.BIOS
    boot: BootPath = BootPath.DISK
    machine: str = ""
    cpu: str = ""
    accelerator: str = "auto"
    display: bool = True
    on_panic: OnPanic = OnPanic.STOP
    user: str = "guest"
    description: str = ""
    protected: bool = False
    autostart: Autostart = Autostart.OFF
    autostart_order: int = DEFAULT_ORDER
    autostart_delay: float = 0.0
    shutdown_action: ShutdownAction = ShutdownAction.STOP
    shutdown_timeout: float = 60.0
    seed: Seed = Seed.HOUSE
    agent: bool = True
    ssh_port: bool = True
    keys: tuple[str, ...] = ()
    shares: tuple[Share, ...] = ()
    firewall: Firewall = Firewall()

    def __post_init__(self) -> None:
        if any(nic.index < 0 for nic in self.nics):
            msgspec.structs.force_setattr(self, "nics", numbered(self.nics))

    def nic(self, index: int) -> Nic | None:
        return next((nic for nic in self.nics if nic.index == index), None)

    def with_nic(self, nic: Nic) -> GuestSpec:
        """With that card, in place of the one of its number if there is one; sorted by number."""
        others = (one for one in self.nics if one.index != nic.index)
        nics = sorted((*others, nic), key=lambda one: one.index)
        return msgspec.structs.replace(self, nics=tuple(nics))

    def without_nic(self, index: int) -> GuestSpec:
        kept = tuple(one for one in self.nics if one.index != index)
        return msgspec.structs.replace(self, nics=kept)


class GuestStatus(Noun, kw_only=True, frozen=True):
    """What is observed. Written on transitions only.

    :ivar reason: one word for programs (`user`, `guest-shutdown`, `panic`, `qemu-crash`, …).
    :ivar message: one sentence for people.
    :ivar since: seconds since the epoch when this state began.
    :ivar pid: QEMU's process while there is one.
    :ivar started_at: when the running guest was started; survives incarnations and the daemon.
    :ivar ready: names of the readiness checks passed so far, in order.
    """

    state: GuestState
    reason: str = ""
    message: str = ""
    since: float
    pid: int | None = None
    started_at: float | None = None
    ready: tuple[str, ...] = ()


class LaunchRecord(Noun, kw_only=True, frozen=True):
    """What the present incarnation was started with; compared with `spec` for pending changes.

    :ivar incarnation: counts the processes that this guest has had.
    :ivar pid_start: start time of the process in clock ticks since boot (proc(5), field 22).
    :ivar boot_id: /proc/sys/kernel/random/boot_id of the host at the start.
    :ivar boot: the path really taken: `disk` or `kernel`.
    """

    incarnation: int
    argv: tuple[str, ...]
    machine: str
    cpu: str
    accelerator: str
    accelerator_reason: str = ""
    engine: str
    boot: BootPath
    spec: GuestSpec
    pid: int
    pid_start: int
    boot_id: str
    launched_at: float


class Guest(Document, kw_only=True, frozen=True):
    """:ivar uuid: SMBIOS UUID, stored at creation. :ivar number: index of its uid and the like.

    :ivar deleted_at: when it was moved to the trash (seconds since the epoch), where it keeps its
        id, disks, key and number, but not its name; None outside the trash.
    """

    name: str
    uuid: str
    number: int
    created_at: float
    spec: GuestSpec
    status: GuestStatus
    launch: LaunchRecord | None = None
    booted: bool = False
    deleted_at: float | None = None

    @property
    def in_trash(self) -> bool:
        return self.deleted_at is not None

    @property
    def state(self) -> GuestState:
        return self.status.state

    @property
    def run_key(self) -> str:
        """Names the present incarnation towards the keeper."""
        return f"{self.id}.{self.launch.incarnation if self.launch else 0}"


def check_cpus(count: int) -> int:
    """`count` itself. :raise InvalidInput: no guest can have so many."""
    if not 1 <= count <= MAX_CPUS:
        raise InvalidInput(
            f"{count} CPUs are not possible.", hint=f"Use 1 to {MAX_CPUS}.", field="cpus"
        )
    return count


def check_memory(size: int) -> int:
    """`size` in bytes itself. :raise InvalidInput: too little, or not whole mebibytes."""
    if size < MIN_MEMORY or size % (1 << 20):
        # Whoever leaves the unit away means mebibytes or gibibytes, not bytes.
        unit = " Write its unit, such as 512M or 2G." if size < 1 << 20 else ""
        raise InvalidInput(
            f"{size} bytes of memory are not possible.",
            hint=f"Use whole mebibytes, at least {format_size(MIN_MEMORY)}.{unit}",
            field="memory",
        )
    return size


def check_spec(spec: GuestSpec) -> None:
    """Semantic checks that types cannot express.

    :raise InvalidInput: names the field.
    """
    check_cpus(spec.cpus)
    check_memory(spec.memory)
    if spec.accelerator not in {"auto", "kvm", "tcg"}:
        raise InvalidInput(
            f"{spec.accelerator!r} is no accelerator.",
            hint="Use auto, kvm or tcg.",
            field="accelerator",
        )
    check_name(spec.user, field="user")
    _check_host_life(spec)
    check_shares(spec.shares)
    check_firewall(spec.firewall)
    for index, nic in enumerate(spec.nics):
        check_nic_impairment(nic.impairment, field=f"nics[{index}].impairment")
        for port in nic.ports:
            check_publish(port)
    names = [disk.name for disk in spec.disks]
    if len(set(names)) != len(names):
        raise InvalidInput("Two disks have the same name.", field="disks")


def _check_host_life(spec: GuestSpec) -> None:
    if not 0 <= spec.autostart_order <= MAX_ORDER:
        raise InvalidInput(
            f"The order {spec.autostart_order} is not possible.",
            hint=f"Use 0 to {MAX_ORDER}; lower ones start first.",
            field="autostart_order",
        )
    for field in ("autostart_delay", "shutdown_timeout"):
        seconds = getattr(spec, field)
        if not 0 <= seconds <= LONGEST:
            raise InvalidInput(
                f"{seconds:g} seconds are not possible.",
                hint="Use 0 seconds to 1 hour.",
                field=field,
            )


PENDING_FIELDS = (
    "cpus",
    "memory",
    "firmware",
    "machine",
    "cpu",
    "accelerator",
    "display",
    "on_panic",
    "user",
)


def pending_changes(guest: Guest) -> tuple[str, ...]:
    """Fields whose wanted value differs from what the running guest was started with."""
    if guest.launch is None or guest.status.pid is None:
        return ()
    started, wanted = guest.launch.spec, guest.spec
    return tuple(f for f in PENDING_FIELDS if getattr(started, f) != getattr(wanted, f))
