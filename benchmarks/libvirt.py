"""libvirt as a contender, where it is installed: the same kernel, initrd and devices by `virsh`.

    python -m benchmarks.libvirt install   its packages, by apt (as root)
    python -m benchmarks.libvirt start     virtlogd and libvirtd, without a service manager, in an
                                           empty network: its own would change the host's rules
    python -m benchmarks.libvirt stop      both of them

What differs: libvirt places the devices itself, gives q35 its SATA controller, knows pvpanic only
on the ISA bus, and adds what it needs for itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

NAME = "libvirt"
PACKAGES = ("libvirt-daemon-system", "libvirt-daemon-system-sysv", "libvirt-clients")
"""With its scripts for sysvinit: those for systemd would upgrade systemd itself."""
DOMAIN = "guesthouse-benchmark"
_DAEMONS = ("virtlogd", "libvirtd")
_VIRSH = ("virsh", "--quiet", "--connect", "qemu:///system")
_PATIENCE = 120
_TEMPLATE = """<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <genid/>
  <memory unit='MiB'>{memory}</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu>{cpus}</vcpu>
  <sysinfo type='smbios'><oemStrings><entry>{seed}</entry></oemStrings></sysinfo>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{append}</cmdline>
    <smbios mode='sysinfo'/>
  </os>
  <features><acpi/><vmport state='off'/><smm state='off'/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>{cpu}</model></cpu>
  <on_reboot>restart</on_reboot>
  <devices>
    <emulator>{emulator}</emulator>
    <controller type='usb' model='none'/>
    <serial type='unix'>
      <source mode='bind' path='{folder}/serial.sock'/>
      <target type='isa-serial' port='0'/>
    </serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <channel type='unix'><target type='virtio' name='house.guest.ssh.0'/></channel>
    <interface type='user'><model type='virtio'/><rom enabled='no'/></interface>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='virtio' freePageReporting='on'/>
    <panic model='isa'/>
    <video><model type='vga'/></video>
    <input type='tablet' bus='virtio'/>
    <graphics type='vnc' socket='{folder}/vnc.sock'/>
  </devices>
</domain>
"""


class Libvirt:
    """One transient or running domain of a guest's launch record, without disks."""

    def __init__(self, guest: Mapping[str, Any], kernel: str, initrd: str) -> None:
        """:param guest: as the API answers it, with its launch record."""
        # Its QEMU runs as a user of its own, who must reach these.
        self._folder = Path(tempfile.mkdtemp(prefix="gh-libvirt-"))
        self._folder.chmod(0o777)
        for name, path in (("kernel", kernel), ("initrd", initrd)):
            shutil.copyfile(path, self._folder / name)
        virsh("define", str(self._written(guest)))

    def start_paused(self) -> float:
        """Seconds that `virsh start --paused` takes as a process."""
        return _timed("start", "--paused", DOMAIN)

    def start_until_agent(self) -> float:
        """Seconds from `virsh start` until libvirt tells that the agent's port was opened, and it
        answers."""
        command = [*_VIRSH, "event", DOMAIN, "agent-lifecycle", "--loop"]
        command += ["--timeout", str(_PATIENCE)]
        with subprocess.Popen(["stdbuf", "-oL", *command], stdout=subprocess.PIPE) as listening:
            assert listening.stdout is not None
            time.sleep(0.5)  # it says nothing when it has begun to listen
            began = time.perf_counter()
            virsh("start", DOMAIN)
            # The first event says that a domain that starts has no agent yet.
            heard = any(b"state: 'connected'" in line for line in listening.stdout)
            listening.terminate()
        if not heard:
            raise TimeoutError(f"libvirt heard of no agent within {_PATIENCE} s")
        virsh("qemu-agent-command", DOMAIN, '{"execute":"guest-ping"}')
        return time.perf_counter() - began

    def kill(self) -> float:
        return _timed("destroy", DOMAIN)

    def close(self) -> None:
        for verb in ("destroy", "undefine"):
            subprocess.run([*_VIRSH, verb, DOMAIN], check=False, capture_output=True)
        shutil.rmtree(self._folder)

    def _written(self, guest: Mapping[str, Any]) -> Path:
        launch, spec = guest["launch"], guest["spec"]
        argv = launch["argv"]
        seed = next(w for w in argv if w.startswith("type=11,")).partition("value=")[2]
        known = {
            "name": DOMAIN,
            "uuid": str(uuid.uuid4()),
            "memory": str(spec["memory"] >> 20),
            "cpus": str(spec["cpus"]),
            "seed": seed.replace(",,", ","),
            "machine": launch["machine"],
            "cpu": launch["cpu"],
            "kernel": f"{self._folder}/kernel",
            "initrd": f"{self._folder}/initrd",
            "append": argv[argv.index("-append") + 1],
            "emulator": argv[argv.index("-name") - 1],
            "folder": str(self._folder),
        }
        path = self._folder / "domain.xml"
        path.write_text(_TEMPLATE.format_map({key: escape(text) for key, text in known.items()}))
        return path


def answers() -> bool:
    """Whether a libvirtd is there to be measured."""
    if shutil.which("virsh") is None:
        return False
    return subprocess.run([*_VIRSH, "uri"], check=False, capture_output=True).returncode == 0


def virsh(*words: str) -> str:
    done = subprocess.run([*_VIRSH, *words], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"virsh {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def _timed(*words: str) -> float:
    began = time.perf_counter()
    virsh(*words)
    return time.perf_counter() - began


def install() -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    subprocess.run(command, check=True, env=environment)


def start() -> None:
    for daemon in _DAEMONS:
        subprocess.run(["unshare", "--net", "--", daemon, "--daemon"], check=True)
    ended = time.monotonic() + 30
    while not answers():
        if time.monotonic() > ended:
            raise TimeoutError("libvirtd does not answer")
        time.sleep(0.1)


def stop() -> None:
    for daemon in reversed(_DAEMONS):
        written = Path(f"/run/{daemon}.pid")
        if written.exists():
            os.kill(int(written.read_text()), signal.SIGTERM)


def main(words: Sequence[str]) -> int:
    steps = {"install": install, "start": start, "stop": stop}
    if len(words) != 1 or words[0] not in steps:
        print(__doc__)
        return 2
    steps[words[0]]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
