"""What the installed QEMU is and offers, asked over QMP of a QEMU without a machine.

Costs 100 to 700 ms, most of it query-qmp-schema, so `probe` keeps the answer per binary.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from qemu.qmp import QMPClient, QMPError

from guesthouse.errors import LaunchFailed, QemuMissing, QemuTooOld
from guesthouse.model.host import HostFacts, QemuBinary

PROGRAM = "qemu-system-x86_64"
OVERRIDE = "GUESTHOUSE_QEMU"
OLDEST = (7, 2, 0)
ANSWER_SECONDS = 20.0

_Q35 = re.compile(r"pc-q35-(\d+)\.(\d+)(?:\.(\d+))?")

# Feature -> how to recognise it. Only what this program uses.
KVM_DEVICE_FD = "kvm-device-fd"
"""`-accel kvm,device=` takes a descriptor, so that a guest's process needs no group."""
USER_NETWORK = "user-network"
"""Built with libslirp: `-netdev user`."""


def find_qemu(env: Mapping[str, str]) -> Path | None:
    """The program that guests are started with: GUESTHOUSE_QEMU, else the one on PATH."""
    found = shutil.which(env.get(OVERRIDE) or PROGRAM, path=env.get("PATH"))
    return Path(found).resolve() if found else None


def require_qemu(facts: HostFacts) -> QemuBinary:
    """:raise QemuMissing: :raise QemuTooOld:"""
    if facts.qemu is None:
        known = facts.capability("qemu")
        raise QemuMissing(
            known.reason if known else f"{PROGRAM} is not installed.",
            hint=known.cure if known else "apt install qemu-system-x86",
            capability="qemu",
        )
    if facts.qemu.version < OLDEST:
        raise QemuTooOld(
            f"{facts.qemu.path} is version {facts.qemu.version_text}.",
            hint=f"Guesthouse needs QEMU {OLDEST[0]}.{OLDEST[1]} or newer.",
            capability="qemu",
        )
    return facts.qemu


async def examine(binary: Path) -> QemuBinary:
    """Ask `binary`.

    :raise LaunchFailed: it does not run, or does not answer within ANSWER_SECONDS.
    """
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryFile() as errors:
        with theirs:
            process = _start(binary, theirs.fileno(), errors)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await _ask(binary, ours)
        except (QMPError, OSError, EOFError, TimeoutError) as error:
            said = os.pread(errors.fileno(), 4096, 0).decode("utf-8", "replace").strip()
            raise LaunchFailed(f"{binary} does not run: {said or error}.") from error
        finally:
            process.kill()
            await asyncio.shield(asyncio.to_thread(process.wait))


def _start(binary: Path, number: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    argv = [
        str(binary),
        *("-S", "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-chardev", f"socket,id=qmp,fd={number}", "-mon", "chardev=qmp,mode=control"),
    ]
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[number],
            start_new_session=True,
        )
    except OSError as error:
        raise LaunchFailed(f"{binary} cannot be run: {error.strerror}.") from error


async def _ask(binary: Path, monitor: socket.socket) -> QemuBinary:
    qmp = QMPClient("probe")
    await qmp.connect(monitor)
    try:
        version: Any = await qmp.execute("query-version")
        machines: Any = await qmp.execute("query-machines")
        schema: Any = await qmp.execute("query-qmp-schema")
        try:
            kvm: Any = await qmp.execute("qom-list-properties", {"typename": "kvm-accel"})
        except QMPError:
            kvm = []  # built without KVM
    finally:
        await qmp.disconnect()
    numbers = version["qemu"]
    names = q35_machines(str(m["name"]) for m in machines)
    if not names:
        raise LaunchFailed(f"{binary} offers no versioned q35 machine.")
    return QemuBinary(
        path=str(binary),
        version=(numbers["major"], numbers["minor"], numbers["micro"]),
        machine=names[0],
        machines=names,
        features=features(schema, kvm),
    )


def q35_machines(names: Iterable[str]) -> tuple[str, ...]:
    """The versioned q35 machine types among `names`, newest first."""
    found = {
        name: tuple(int(part or 0) for part in match.groups())
        for name in names
        if (match := _Q35.fullmatch(name))
    }
    return tuple(sorted(found, key=found.__getitem__, reverse=True))


def features(schema: list[dict[str, Any]], kvm_properties: list[dict[str, Any]]) -> frozenset[str]:
    """Features in the answers to query-qmp-schema and to qom-list-properties of kvm-accel."""
    found: set[str] = set()
    for entry in schema:
        if entry["meta-type"] == "enum" and {"user", "tap", "hubport"} <= set(entry["values"]):
            found.add(USER_NETWORK)
    if any(p["name"] == "device" for p in kvm_properties):
        found.add(KVM_DEVICE_FD)
    return frozenset(found)
