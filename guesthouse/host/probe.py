"""Looks at this host: QEMU, accelerators, namespaces and the rest, as `HostFacts`.

What is slow is kept in one file: QEMU's answers and the verdict on KVM, for as long as the binary
(path, change time, size), the kernel's boot and the user stay the same.
"""

from __future__ import annotations

import asyncio
import os
import platform
import pwd
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec

from guesthouse.errors import GuesthouseError
from guesthouse.host import capabilities, cgroups, probe_kvm, probe_qemu, virtiofsd
from guesthouse.host.kvm_device import KVM
from guesthouse.host.kvm_device import examine as examine_device
from guesthouse.host.launcher import Confinement, guest_identity
from guesthouse.host.namespace import probing
from guesthouse.host.probe_kvm import KvmVerdict
from guesthouse.host.process import boot_id
from guesthouse.model.document import Noun
from guesthouse.model.host import Capability, HostFacts, QemuBinary

CACHE_FILE = "host-facts.json"
_FORMAT = 1
_NETWORK = (("nft", "nftables"), ("dnsmasq", "dnsmasq-base"), ("slirp4netns", "slirp4netns"))
"""Programs of the house's own network, and the packages that bring them."""
_OS_RELEASE = Path("/etc/os-release")


class Remembered(Noun, kw_only=True, frozen=True):
    """The file's content. It is used only if all but the last two fields are what they were."""

    format: int
    binary: str
    changed: int
    size: int
    boot: str
    uid: int
    qemu: QemuBinary
    kvm: KvmVerdict | None = None


async def probe(
    cache: Path, *, refresh: bool = False, env: Mapping[str, str] = os.environ, kvm: Path = KVM
) -> HostFacts:
    """Look at this host. Takes under 100 ms, once per boot a few seconds.

    It reports what is missing and raises nothing for it; `probe_qemu.require_qemu` does.

    :param cache: folder for the file that keeps slow answers. :param refresh: ask everything anew.
    """
    am_root = os.geteuid() == 0
    release = capabilities.os_release(_text(_OS_RELEASE))
    qemu, verdict, problem = await _engine(cache, refresh=refresh, env=env, kvm=kvm)
    userns, namespace = await asyncio.gather(capabilities.of_userns(), probing.capabilities())
    found = [
        capabilities.of_qemu(qemu, problem, release, env.get(probe_qemu.OVERRIDE, "")),
        capabilities.of_kvm(verdict),
        capabilities.of_program("qemu-img", "qemu-img", "qemu-utils", release),
        capabilities.of_ovmf(release),
        capabilities.of_program("mmdebstrap", "mmdebstrap", "mmdebstrap", release),
        userns,
        capabilities.of_subids(),
        *namespace,
        *(capabilities.of_program(name, name, package, release) for name, package in _NETWORK),
        virtiofsd.capability(
            await virtiofsd.find(env), qemu, capabilities.install(release, "virtiofsd")
        ),
        capabilities.of_cgroups(),
        capabilities.of_linger(env.get("XDG_RUNTIME_DIR", ""), os.geteuid(), user_name()),
    ]
    found.append(capabilities.of_networks(found))
    accelerator, reason = choose(verdict)
    return HostFacts(
        boot_id=boot_id(),
        kernel=platform.release(),
        os=release.get("PRETTY_NAME", "Linux"),
        cpus=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        cgroups=cgroups.layout(_text(Path("/proc/self/mountinfo"))),
        root=am_root,
        accelerator=accelerator,
        accelerator_reason=reason,
        qemu=qemu,
        capabilities=tuple(found),
        probed_at=time.time(),
    )


def user_name() -> str:
    """Who we are, or our uid where nobody gave it a name."""
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def choose(verdict: KvmVerdict | None) -> tuple[str, str]:
    """(accelerator, why)."""
    if verdict is None:
        return "tcg", "There is no QEMU to try KVM with."
    if verdict.verdict == "works":
        return "kvm", verdict.reason
    return "tcg", f"Emulation, because: {verdict.reason}"


def kvm_group(facts: HostFacts) -> int | None:
    """The group that a guest's process must keep to open /dev/kvm by path.

    None where it needs none, or gets a descriptor instead.
    """
    if facts.qemu is None or probe_qemu.KVM_DEVICE_FD in facts.qemu.features:
        return None
    return examine_device(am_root=facts.root).group


async def _engine(
    cache: Path, *, refresh: bool, env: Mapping[str, str], kvm: Path
) -> tuple[QemuBinary | None, KvmVerdict | None, str]:
    """(QEMU, KVM's verdict, what is wrong with QEMU where it is None)."""
    binary = probe_qemu.find_qemu(env)
    if binary is None:
        return None, None, ""
    known = None if refresh else await asyncio.to_thread(_load, cache, binary)
    try:
        qemu = known.qemu if known else await probe_qemu.examine(binary)
    except GuesthouseError as error:
        return None, None, error.message
    am_root = os.geteuid() == 0
    # What the device alone decides may change at any time and costs nothing to ask.
    verdict = probe_kvm.without_trial(examine_device(am_root=am_root, path=kvm))
    if verdict is None and known:
        verdict = known.kvm
    if verdict is None:
        verdict = await probe_kvm.judge(
            qemu.path, qemu.machine, am_root=am_root, identity=_identity(am_root, kvm), kvm=kvm
        )
    settled = verdict if verdict.settled else None
    if known is None or known.kvm != settled:
        await asyncio.to_thread(_save, cache, binary, qemu, settled)
    return qemu, verdict, ""


def _identity(am_root: bool, kvm: Path) -> Confinement:
    """Of a guest's process, for the trial."""
    group = examine_device(am_root=am_root, path=kvm).group
    identity = guest_identity(
        am_root=am_root,
        index=0,
        subuid=_text(Path("/etc/subuid")),
        subgid=_text(Path("/etc/subgid")),
        kvm_gid=group,
    )
    return Confinement(uid=identity.uid, gid=identity.gid, groups=identity.groups)


class HostProbe:
    """The newest facts of this host.

    :ivar more: capabilities that others found out meanwhile. `look_too` looks at others still.
    """

    def __init__(self, cache: Path, facts: HostFacts) -> None:
        self._cache, self._facts = cache, facts
        self.more: Callable[[], tuple[Capability, ...]] = tuple
        self._look: Callable[[], Awaitable[tuple[Capability, ...]]] | None = None
        self._seen: tuple[Capability, ...] = ()

    async def look_too(self, look: Callable[[], Awaitable[tuple[Capability, ...]]]) -> None:
        """Have the answers of `look` among the facts, now and after each `refresh`."""
        self._look, self._seen = look, await look()

    def __call__(self) -> HostFacts:
        known = self._facts.capabilities
        names = {one.name for one in known}
        more = tuple(one for one in (*self._seen, *self.more()) if one.name not in names)
        return msgspec.structs.replace(self._facts, capabilities=(*known, *more))

    async def refresh(self) -> HostFacts:
        """Look afresh."""
        self._facts = await probe(self._cache, refresh=True)
        if self._look is not None:
            self._seen = await self._look()
        return self()


def _load(cache: Path, binary: Path) -> Remembered | None:
    """What is remembered of this very binary; anything else, or damage, counts as nothing."""
    try:
        known = msgspec.json.decode((cache / CACHE_FILE).read_bytes(), type=Remembered)
        wanted = _remember(binary, known.qemu, known.kvm)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return known if known == wanted else None


def _save(cache: Path, binary: Path, qemu: QemuBinary, kvm: KvmVerdict | None) -> None:
    temporary = cache / f".{CACHE_FILE}.{os.getpid()}"
    try:
        temporary.write_bytes(msgspec.json.encode(_remember(binary, qemu, kvm)))
        temporary.replace(cache / CACHE_FILE)
    except OSError:
        # It is only faster with the file: a full or read-only disk is no reason to fail.
        temporary.unlink(missing_ok=True)


def _remember(binary: Path, qemu: QemuBinary, kvm: KvmVerdict | None) -> Remembered:
    found = binary.stat()
    return Remembered(
        format=_FORMAT,
        binary=str(binary),
        changed=found.st_mtime_ns,
        size=found.st_size,
        boot=boot_id(),
        uid=os.geteuid(),
        qemu=qemu,
        kvm=kvm,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
