"""Why a start failed: QEMU's last words as one of our errors."""

from __future__ import annotations

import re

from guesthouse.drivers.qemu.exits import explain, last_line
from guesthouse.errors import GuesthouseError, HostLacks, LaunchFailed, NoMemory, PortTaken
from guesthouse.host.keeper_client import ExitRecord
from guesthouse.model.device import Protocol
from guesthouse.network.ports import find_holder

# net/slirp.c: the rule as it was given on the command line.
_FORWARD = re.compile(
    r"[Cc]ould not set up host forwarding rule '(?P<protocol>tcp|udp):(?P<ip>[^:']*):(?P<port>\d+)-"
)
_NO_MEMORY = ("Cannot allocate memory", "cannot set up guest memory")
_NO_KVM = ("failed to initialize kvm", "Could not access KVM kernel module")


async def launch_error(record: ExitRecord) -> GuesthouseError:
    """What to raise for a process that ended before it could be talked to."""
    said = record.stderr_tail
    forward = _FORWARD.search(said)
    if forward is not None:
        return await _port_taken(forward)
    if any(text in said for text in _NO_MEMORY):
        return NoMemory(
            f"The host has too little memory: {last_line(said)}",
            hint="Stop another guest, or give this one less memory.",
        )
    if any(text in said for text in _NO_KVM):
        return HostLacks(
            f"KVM could not be used: {last_line(said)}",
            hint="See 'guest doctor', or set the accelerator to tcg.",
            capability="kvm",
        )
    words = last_line(said) or explain(record, boot_id=record.boot_id).message
    return LaunchFailed(
        f"The engine did not start: {words}",
        hint="Its messages are in the guest's engine log.",
        stderr=said,
        exit_code=record.exit_code,
        signal=record.signal,
    )


async def _port_taken(forward: re.Match[str]) -> PortTaken:
    ip, port = forward["ip"] or "0.0.0.0", int(forward["port"])  # noqa: S104 — quoted, not bound
    holder = await find_holder(ip, port, Protocol(forward["protocol"]))
    return PortTaken(
        f"Port {ip}:{port}/{forward['protocol']} of this host is held by "
        f"{holder or 'another program'}.",
        hint="Publish another port, or stop what holds this one.",
        host_ip=ip,
        host_port=port,
        protocol=forward["protocol"],
        holder=holder,
    )
