"""What this host offers beside QEMU, each with the reason and the exact cure."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from guesthouse.errors import GuesthouseError
from guesthouse.host import cgroups
from guesthouse.host.firmware import ROOT, find_ovmf
from guesthouse.host.probe_kvm import KvmVerdict
from guesthouse.host.probe_qemu import OLDEST, OVERRIDE, PROGRAM
from guesthouse.host.spawn import run
from guesthouse.host.userns import subordinate_range
from guesthouse.model.host import Capability, QemuBinary

NETWORKS = "networks"
_FOR_NETWORKS = ("house-namespace", "tun", "network-tools", "nft", "dnsmasq")
_FOR_UPLINK = "slirp4netns"
_TRIAL_SECONDS = 10.0
_TUN = Path("/dev/net/tun")
# Administrator's tools live there; an ordinary user's PATH lacks them.
_SBIN = "/usr/sbin:/sbin"


def os_release(text: str) -> dict[str, str]:
    """The fields of os-release(5)."""
    fields = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name: value.strip().strip("\"'") for name, _, value in fields}


def install(release: Mapping[str, str], package: str) -> str:
    """The command that installs a Debian package here, or what to look for elsewhere."""
    family = {release.get("ID", ""), *release.get("ID_LIKE", "").split()}
    if family & {"debian", "ubuntu"}:
        return f"sudo apt install {package}"
    return f"Install what this distribution calls {package}."


def of_qemu(
    found: QemuBinary | None, problem: str, release: Mapping[str, str], chosen: str = ""
) -> Capability:
    """:param problem: why `found` is None, where there is a binary that does not run.

    :param chosen: what GUESTHOUSE_QEMU says.
    """
    if found is None:
        if chosen:
            reason = problem or f"{OVERRIDE} is {chosen!r}, where there is no program to run."
            cure = f"Correct {OVERRIDE} or unset it, then: guest daemon restart"
        else:
            reason = problem or f"{PROGRAM} is not on PATH."
            cure = install(release, "qemu-system-x86")
        return Capability(name="qemu", available=False, reason=reason, cure=cure)
    if found.version < OLDEST:
        wanted = f"{OLDEST[0]}.{OLDEST[1]}"
        return Capability(
            name="qemu",
            available=False,
            reason=f"QEMU {found.version_text} is older than {wanted}.",
            cure=f"Install QEMU {wanted} or newer.",
        )
    return Capability(
        name="qemu", available=True, reason=f"QEMU {found.version_text} at {found.path}."
    )


def of_kvm(verdict: KvmVerdict | None) -> Capability:
    if verdict is None:
        return Capability(name="kvm", available=False, reason="Without QEMU there is no trial.")
    return Capability(
        name="kvm",
        available=verdict.verdict == "works",
        reason=verdict.reason,
        cure=verdict.cure,
        verdict=verdict.verdict,
    )


def of_program(name: str, program: str, package: str, release: Mapping[str, str]) -> Capability:
    """A capability that is nothing but an installed program."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")
    if path:
        return Capability(name=name, available=True, reason=f"{program} is at {path}.")
    return Capability(
        name=name,
        available=False,
        reason=f"{program} is not installed.",
        cure=install(release, package),
    )


def of_ovmf(release: Mapping[str, str], root: Path = ROOT) -> Capability:
    found = find_ovmf(root)
    if found:
        return Capability(name="ovmf", available=True, reason=f"UEFI firmware is at {found.code}.")
    return Capability(
        name="ovmf",
        available=False,
        reason="No UEFI firmware (OVMF) is installed; guests with BIOS firmware do not need it.",
        cure=install(release, "ovmf"),
    )


async def of_userns() -> Capability:
    """Really makes a user namespace and does in it what only its root may (sethostname).

    Ubuntu's AppArmor lets the namespace be made and refuses every privilege inside.
    """
    act = "import socket; socket.sethostname('guesthouse')"
    argv = ["unshare", "--user", "--map-root-user", "--uts", "--"]
    argv += [sys.executable, "-I", "-S", "-c", act]
    try:
        done = await run(argv, timeout=_TRIAL_SECONDS, check=False)
        said = done.err.decode("utf-8", "replace").strip().splitlines()
        failed = (said[-1] if said else f"exit code {done.code}") if done.code else ""
    except GuesthouseError as error:
        failed = error.message
    if not failed:
        return Capability(
            name="userns", available=True, reason="A user namespace was made, with root's powers."
        )
    return Capability(
        name="userns",
        available=False,
        reason=f"User namespaces do not work here: {failed}.",
        cure=userns_cure(_sysctls()),
    )


def userns_cure(sysctls: Mapping[str, str]) -> str:
    """What to change, from the values of the switches that forbid user namespaces."""
    for name, forbidding, permitting in _USERNS_SWITCHES:
        if sysctls.get(name) == forbidding:
            return f"sudo sysctl -w {name}={permitting} (and keep it in /etc/sysctl.d/)"
    return "Inside a container: let its owner allow the unshare system call (seccomp)."


_USERNS_SWITCHES = (
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("user.max_user_namespaces", "0", "65536"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
)


def _sysctls() -> dict[str, str]:
    found = {}
    for name, _forbidding, _permitting in _USERNS_SWITCHES:
        try:
            found[name] = (Path("/proc/sys") / name.replace(".", "/")).read_text().strip()
        except OSError:
            continue
    return found


def of_subids(etc: Path = Path("/etc")) -> Capability:
    """A range of subordinate ids for this user (root needs none from these files)."""
    uid = os.geteuid()
    if uid == 0:
        return Capability(name="subids", available=True, reason="Root may use any id.")
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    missing = [
        str(listing)
        for listing in (etc / "subuid", etc / "subgid")
        if subordinate_range(listing, name, uid) is None
    ]
    if missing:
        return Capability(
            name="subids",
            available=False,
            reason=f"{' and '.join(missing)} give {name} no range of 65535 ids.",
            cure="sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 "
            f"{name} (any range that nobody else has)",
        )
    return Capability(name="subids", available=True, reason=f"{name} has subordinate ids.")


def of_tun(path: Path = _TUN) -> Capability:
    """Opening /dev/net/tun; making a tap needs CAP_NET_ADMIN in some namespace besides."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        return Capability(
            name="tun",
            available=False,
            reason=f"{path} may not be opened by this user.",
            cure=f"sudo chmod 0666 {path} (the usual mode)",
        )
    except OSError as error:
        return Capability(
            name="tun",
            available=False,
            reason=f"{path} cannot be opened: {error.strerror}.",
            cure="sudo modprobe tun",
        )
    return Capability(name="tun", available=True, reason=f"{path} can be opened.")


def of_linger(
    runtime: str, uid: int, name: str, *, run: Path = Path("/run"), var: Path = Path("/var/lib")
) -> Capability:
    """May guests go on after the user's last session ended?

    systemd then removes /run/user/UID, where the sockets are, and ends what its user manager
    started, unless the user lingers (logind.conf(5), loginctl(1)).

    :param runtime: XDG_RUNTIME_DIR.
    """
    if not (run / "systemd" / "system").is_dir():
        reason = "No systemd runs here, which would end things when you log out."
    elif not Path(runtime).is_relative_to(run / "user"):
        reason = "Nothing of this house belongs to a login session."
    elif (var / "systemd" / "linger" / name).exists():
        reason = f"What {name} runs goes on after the last session."
    else:
        return Capability(
            name="linger",
            available=False,
            reason=f"When the last session of {name} ends, systemd takes the sockets of this house "
            "away, and may end its guests.",
            cure="loginctl enable-linger" if uid else f"loginctl enable-linger {name}",
        )
    return Capability(name="linger", available=True, reason=reason)


def lacking(found: Iterable[Capability], *, uplink: bool = True) -> Capability | None:
    """What is in the way of networks of the house; None where nothing is.

    :param found: of this host. :param uplink: the network leads out.
    """
    known = {one.name: one for one in found}
    for name in (*_FOR_NETWORKS, *((_FOR_UPLINK,) if uplink else ())):
        one = known.get(name)
        if one is None:
            reason = f"Nobody has looked whether this host has {name}."
            return Capability(name=name, available=False, reason=reason, cure="guest doctor")
        if not one.available:
            return one
    return None


def of_networks(found: Iterable[Capability]) -> Capability:
    """Can guests be on networks of the house? Those that name none are then on one together."""
    lack = lacking(found)
    if lack is None:
        return Capability(
            name=NETWORKS, available=True, reason="Guests are on networks, and reach each other."
        )
    return Capability(
        name=NETWORKS,
        available=False,
        reason=f"Each guest is in a network of its own, and none reaches another: {lack.reason}",
        cure=lack.cure,
    )


def of_cgroups(proc: Path = Path("/proc/self")) -> Capability:
    """May we limit guests by groups of our own?"""
    mounts = (proc / "mountinfo").read_text()
    kind = cgroups.layout(mounts)
    if kind == "none":
        return Capability(name="cgroups", available=False, reason="No cgroup file system here.")
    if cgroups.writable(cgroups.own_groups(mounts, (proc / "cgroup").read_text())):
        return Capability(
            name="cgroups", available=True, reason=f"Groups ({kind}) may be made below our own."
        )
    return Capability(
        name="cgroups",
        available=False,
        reason=f"Our own group ({kind}) may not be divided by us.",
        cure="Start the daemon by systemd with Delegate=yes, for example: "
        "systemd-run --user --scope -p Delegate=yes guest daemon start",
    )
