"""What this host can do."""

from __future__ import annotations

from guesthouse.model.document import Document, Noun


class Capability(Noun, kw_only=True, frozen=True):
    """Something a host or a mode can or cannot do.

    :ivar name: `kvm`, `userns`, `tun`, `qemu`, …
    :ivar reason: one sentence: why it is there or what is missing.
    :ivar cure: the exact command or setting that would bring it; empty when there is none.
    :ivar verdict: of `kvm`, for programs: `works`, `cannot-run` (it opens, but an ordinary guest
        does not run), `no-permission` or `absent`.
    """

    name: str
    available: bool
    reason: str
    cure: str = ""
    verdict: str = ""


class QemuBinary(Noun, kw_only=True, frozen=True):
    """:ivar machine: newest versioned q35 machine type it offers."""

    path: str
    version: tuple[int, int, int]
    machine: str
    machines: tuple[str, ...] = ()
    features: frozenset[str] = frozenset()

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))


class HostFacts(Noun, kw_only=True, frozen=True):
    """:ivar memory: bytes in all. :ivar cgroups: `v1`, `v2`, `hybrid` or `none`."""

    boot_id: str
    kernel: str
    os: str
    cpus: int
    memory: int
    cgroups: str
    root: bool
    accelerator: str
    accelerator_reason: str
    qemu: QemuBinary | None
    capabilities: tuple[Capability, ...]
    probed_at: float

    def capability(self, name: str) -> Capability | None:
        return next((c for c in self.capabilities if c.name == name), None)


class PendingAutostart(Noun, kw_only=True, frozen=True):
    """Guests are to be started after a boot, and the job for it may not have been submitted yet.

    :ivar job: the id that it gets. :ivar ran: ids of the guests that ran when the host went down.
    """

    job: str
    ran: tuple[str, ...] = ()


class HostRecord(Document, kw_only=True, frozen=True):
    """What a house remembers of its host.

    :ivar boot_id: /proc/sys/kernel/random/boot_id when a daemon ran last.
    """

    boot_id: str
    autostart: PendingAutostart | None = None
