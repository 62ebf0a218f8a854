"""Does KVM run ordinary guests here? Found by running one.

Opening /dev/kvm, and even creating a virtual machine, proves nothing: on some hosts, which are
virtual machines themselves, firmware and boot loaders run and every 64-bit kernel dies. So the
guest of kvm_trial.S is run, which does what kernels do first. It needs a tenth of a second.

What was found with it: on a host whose KVM is kvm_pvm (6.18, itself a guest), QEMU 7.2 runs the
trial as far as long mode, then reports "KVM internal error, emulation failure" at the first SSE2
instruction; with that left out, at the first exception (int3), and then on the way to ring 3.
Timer interrupts and hlt do work there, which is why boot loaders do too. The same trial runs to
its end under TCG.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from pathlib import Path
from typing import IO, Literal

from guesthouse.host.kvm_device import KVM, KvmDevice, examine
from guesthouse.host.kvm_trial import CODE, DEBUG_PORT, EXIT_GOOD, EXIT_PORT, STEPS
from guesthouse.host.launcher import Confinement, confine
from guesthouse.model.document import Noun

Verdict = Literal["works", "cannot-run", "no-permission", "absent"]

START_SECONDS = 8.0
"""For QEMU and the firmware, on a host that is busy."""
RUN_SECONDS = 2.0
"""From the trial's first letter to its last; it needs a hundredth of that."""

_INTERNAL_ERROR = b"KVM internal error"


class KvmVerdict(Noun, kw_only=True, frozen=True):
    """:ivar settled: it will be the same until the next boot; a trial that hung may have been
    unlucky and is run again next time.
    """

    verdict: Verdict
    reason: str
    cure: str = ""
    settled: bool = False


class Trial(Noun, kw_only=True, frozen=True):
    """What one run of the trial guest showed. :ivar letters: its progress. :ivar error: QEMU's."""

    exit_code: int | None
    letters: str
    error: str

    @property
    def passed(self) -> bool:
        return self.exit_code == EXIT_GOOD and self.letters.endswith("F")


def without_trial(device: KvmDevice) -> KvmVerdict | None:
    """The verdict where the device alone decides; None where the trial must."""
    if not device.present:
        return KvmVerdict(verdict="absent", reason=device.reason, cure=device.cure)
    if not device.opens:
        return KvmVerdict(verdict="no-permission", reason=device.reason, cure=device.cure)
    return None


async def judge(
    qemu: str, machine: str, *, am_root: bool, identity: Confinement, kvm: Path = KVM
) -> KvmVerdict:
    """Run the trial guest under KVM, confined as guests are, and judge.

    :param identity: of a guest's process. Where the device is open to root only, the trial stays
        root (without its capabilities), to tell whether a cure of the mode is worth while.
    """
    device = examine(am_root=am_root, path=kvm)
    early = without_trial(device)
    if early is not None:
        return early
    if not device.guests_open:
        identity = Confinement()
    trial = await run_trial(qemu, machine, "kvm", confinement=identity, am_root=am_root)
    if not trial.passed:
        return _failed(trial)
    if not device.guests_open:
        return KvmVerdict(verdict="no-permission", reason=device.reason, cure=device.cure)
    return KvmVerdict(
        verdict="works", reason="A trial guest ran to its end under KVM.", settled=True
    )


def _failed(trial: Trial) -> KvmVerdict:
    where = STEPS.get(trial.letters[-1:], "somewhere")
    internal = _INTERNAL_ERROR.decode() in trial.error
    how = "died of a KVM internal error" if internal else "stopped"
    if not trial.letters and trial.error and not internal:
        return KvmVerdict(
            verdict="cannot-run",
            reason=f"{KVM} opens, but QEMU cannot use it: {trial.error.splitlines()[-1]}",
            cure="See what the kernel says of it: sudo dmesg | grep -i kvm",
        )
    return KvmVerdict(
        verdict="cannot-run",
        reason=f"{KVM} opens, but an ordinary guest does not run: the trial guest {how} {where}.",
        cure="Ask the host's operator for nested virtualisation; guests run by emulation here.",
        settled=internal,
    )


async def run_trial(
    qemu: str, machine: str, accelerator: str, *, confinement: Confinement, am_root: bool
) -> Trial:
    """Run the trial guest for at most START_SECONDS + RUN_SECONDS, and end it whatever it does."""
    code = os.memfd_create("trial", os.MFD_CLOEXEC)
    try:
        os.write(code, CODE)
        argv = _argv(qemu, machine, accelerator, code)
        with tempfile.TemporaryFile() as errors:
            process = _start(confine(argv, confinement, am_root=am_root), code, errors)
            return await _watch(process, errors)
    finally:
        os.close(code)


def _start(argv: list[str], code: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        bufsize=0,
        pass_fds=[code],
        start_new_session=True,
    )


def _argv(qemu: str, machine: str, accelerator: str, code: int) -> list[str]:
    return [
        qemu,
        *("-machine", machine, "-accel", accelerator),
        *("-cpu", "host" if accelerator == "kvm" else "max", "-m", "32"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"),
        *("-chardev", "stdio,id=debug,signal=off"),
        *("-device", f"isa-debugcon,iobase={DEBUG_PORT:#x},chardev=debug"),
        *("-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1"),
        *("-kernel", f"/proc/self/fd/{code}", "-no-reboot"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
    ]


async def _watch(process: subprocess.Popen[bytes], errors: IO[bytes]) -> Trial:
    """Read the guest's letters until QEMU ends, or reports that it is stuck, or time is up."""
    assert process.stdout is not None
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _protocol = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), process.stdout
    )
    letters = b""
    try:
        deadline = loop.time() + START_SECONDS
        while (left := deadline - loop.time()) > 0:
            try:
                # Wakes now and then, since a stuck QEMU tells so on stderr only and lives on.
                data = await asyncio.wait_for(reader.read(64), min(left, 0.1))
            except TimeoutError:
                if _INTERNAL_ERROR in _text(errors):
                    break
                continue
            if not data:
                break
            if not letters:
                deadline = loop.time() + RUN_SECONDS
            letters += data
        ended = reader.at_eof()
    finally:
        transport.close()
        if not reader.at_eof():
            process.kill()
        code = await asyncio.shield(asyncio.to_thread(process.wait))
    return Trial(
        exit_code=code if ended else None,
        letters=letters.decode("ascii", "replace"),
        error=_text(errors).decode("utf-8", "replace").strip(),
    )


def _text(errors: IO[bytes]) -> bytes:
    """What QEMU wrote so far; its own position in the file is left alone."""
    return os.pread(errors.fileno(), 64 << 10, 0)
