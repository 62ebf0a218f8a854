"""What guests take of their host. Measured when asked for, and never stored."""

from __future__ import annotations

from guesthouse.model.document import Noun
from guesthouse.model.states import GuestState


class ProcessUsage(Noun, kw_only=True, frozen=True):
    """Of a guest's process. Sizes are bytes of the host's memory.

    :ivar cpu_seconds: CPU time of all its threads since it began.
    :ivar resident: what it occupies; pages that it shares with other processes count fully (RSS).
    :ivar proportional: the same, with each shared page divided by those who share it (PSS); null
        where the kernel does not tell us.
    :ivar measured_at: seconds on a clock of the host that never jumps. Two answers say how much CPU
        time was taken in between.
    """

    pid: int
    cpu_seconds: float
    resident: int
    proportional: int | None = None
    measured_at: float


class DiskUsage(Noun, kw_only=True, frozen=True):
    """Of one disk. Sizes are bytes.

    :ivar size: what the guest sees. :ivar used: what its own layer takes of the host's file system,
        without the image below, which others share; null when its file cannot be found.
    """

    name: str
    size: int
    used: int | None


class GuestUsage(Noun, kw_only=True, frozen=True):
    """:ivar memory: bytes that the guest was given. :ivar process: null when none runs."""

    id: str
    name: str
    state: GuestState
    cpus: int
    memory: int
    process: ProcessUsage | None
    disks: tuple[DiskUsage, ...] = ()
