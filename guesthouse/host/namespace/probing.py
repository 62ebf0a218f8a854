"""Does this host let us have a house's namespace? What it lacks, each with the exact cure.

Whether it does is found out by making one (holder.attempt), because every switch that could be
read has been seen to lie: Ubuntu's AppArmor lets the namespace be made and denies what it is for.
The switches are read afterwards, to say why.
"""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from guesthouse.errors import GuesthouseError, HostLacks
from guesthouse.host import capabilities as host
from guesthouse.host.namespace import holder
from guesthouse.host.namespace.entering import tool_environment
from guesthouse.host.namespace.holder import Failure
from guesthouse.host.namespace.idplan import (
    BLOCK,
    IdPlan,
    more_blocks,
    personal_plan,
    system_plan,
)
from guesthouse.host.spawn import PACKAGES
from guesthouse.model.document import Noun
from guesthouse.model.host import Capability

NAME = "house-namespace"
TOOLS = ("ip", "nft", "nsenter", "prlimit", "setpriv", "unshare")

_LIMITS = ("user.max_user_namespaces", "user.max_net_namespaces", "user.max_mnt_namespaces")
_SWITCHES = (
    *_LIMITS,
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
)
_REFUSED = (errno.EPERM, errno.EACCES)
_NO_PROGRAM = 127
_FOR_ROOT = (
    "In a container? Let its owner add CAP_SYS_ADMIN and CAP_NET_ADMIN, and allow mounts (seccomp, "
    "AppArmor)."
)


class Situation(Noun, frozen=True, kw_only=True):
    """What is asked when the namespace could not be made.

    :ivar am_root: no user namespace was wanted. :ivar switches: values of sysctls, those that
        there are. :ivar no_new_privs: setuid programs do nothing for us.
    :ivar python: the program that makes the namespace, as AppArmor knows it.
    :ivar release: /etc/os-release.
    """

    am_root: bool
    switches: Mapping[str, str]
    no_new_privs: bool
    python: str
    release: Mapping[str, str]


def situation() -> Situation:
    """Of this process. Blocks shortly."""
    switches = {}
    for name in _SWITCHES:
        text = _text(Path("/proc/sys") / name.replace(".", "/")).strip()
        if text:
            switches[name] = text
    return Situation(
        am_root=os.geteuid() == 0,
        switches=switches,
        no_new_privs="\nNoNewPrivs:\t1\n" in _text(Path("/proc/self/status")),
        python=str(Path(sys.executable).resolve()),
        release=host.os_release(_text(Path("/etc/os-release"))),
    )


def explain(failure: Failure, at: Situation) -> HostLacks:
    """What the failure means and what cures it; `detail["capability"]` names what is lacking."""
    if failure.step == "tap":
        reason, cure = _of_tap(failure)
        return HostLacks(reason, hint=cure, capability="tun")
    if failure.step.startswith("new"):
        reason, cure = _of_map(failure, at)
    elif failure.step == "unshare":
        reason, cure = _of_unshare(failure, at)
    else:
        reason, cure = _of_act(failure, at)
    return HostLacks(
        f"The house cannot have a network namespace of its own here: {reason}.",
        hint=cure,
        capability=NAME,
        step=failure.step,
    )


def wanted_plan(etc: Path = Path("/etc")) -> IdPlan:
    """The id plan for this process's user. Blocks shortly.

    :raise HostLacks: too few subordinate ids (capability `subids`).
    """
    subuid, subgid = _text(etc / "subuid"), _text(etc / "subgid")
    uid = os.geteuid()
    if uid == 0:
        return system_plan(subuid, subgid)
    return personal_plan(owners(), uid=uid, gid=os.getegid(), subuid=subuid, subgid=subgid)


def owners() -> tuple[str, ...]:
    """How subuid(5) may call this process's user; the first is for people."""
    uid = os.geteuid()
    if uid == 0:
        return ("guesthouse", "root", "0")
    try:
        return (pwd.getpwuid(uid).pw_name, str(uid))
    except KeyError:
        return (str(uid),)


async def capabilities(etc: Path = Path("/etc")) -> tuple[Capability, ...]:
    """`house-namespace`, `container-ids`, `tun` and `network-tools`. Takes some 50 ms.

    It reports what is missing and raises nothing for it.
    """
    at = situation()
    try:
        plan = wanted_plan(etc)
        found = await holder.attempt(plan)
    except GuesthouseError as error:
        return (
            Capability(name=NAME, available=False, reason=error.message, cure=error.hint),
            Capability(
                name="container-ids",
                available=False,
                reason="There is no namespace for containers.",
                cure=error.hint,
            ),
            host.of_tun(),
            of_tools(at.release),
        )
    tun, tools = host.of_tun(), of_tools(at.release)
    if isinstance(found, Failure):
        why = explain(found, at)
        if why.detail["capability"] == "tun":
            tun = Capability(name="tun", available=False, reason=why.message, cure=why.hint)
            space = _available(())
        else:
            space = Capability(name=NAME, available=False, reason=why.message, cure=why.hint)
    else:
        space = _available(found)
    return space, of_blocks(plan, etc), tun, tools


def of_blocks(plan: IdPlan, etc: Path = Path("/etc")) -> Capability:
    """Enough ids for containers?"""
    if plan.block_count:
        reason = f"There are ids for {plan.block_count} containers."
        return Capability(name="container-ids", available=True, reason=reason)
    owner = owners()[0]
    add = more_blocks(owner, plan, _text(etc / "subuid"), _text(etc / "subgid"))
    later = "" if not plan.mapped else " (it counts when the house starts with no guest running)"
    return Capability(
        name="container-ids",
        available=False,
        reason=f"A container needs {BLOCK} ids of its own, and {owner} has {plan.end - 1} in all.",
        cure=add + later,
    )


def of_tools(release: Mapping[str, str]) -> Capability:
    """The programs that build networks and launch guests in them."""
    path = tool_environment()["PATH"]
    missing = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if not missing:
        reason = f"{', '.join(TOOLS)} are installed."
        return Capability(name="network-tools", available=True, reason=reason)
    packages = " ".join(sorted({PACKAGES[tool] for tool in missing}))
    return Capability(
        name="network-tools",
        available=False,
        reason=f"Not installed: {', '.join(missing)}.",
        cure=host.install(release, packages),
    )


def _available(lacks: tuple[str, ...]) -> Capability:
    reason = "A namespace was made, with root's powers in it."
    if "ipv6" in lacks:
        reason += " This kernel has no IPv6."
    return Capability(name=NAME, available=True, reason=reason)


def _of_tap(failure: Failure) -> tuple[str, str]:
    found = host.of_tun()
    if not found.available:
        return found.reason, found.cure
    said = os.strerror(failure.number)
    return f"/dev/net/tun opens, but makes no tap: {said}.", "sudo modprobe tun"


def _of_map(failure: Failure, at: Situation) -> tuple[str, str]:
    """newuidmap or newgidmap, which are setuid root."""
    program = failure.step
    if failure.number == _NO_PROGRAM:
        return f"{program} is not installed", host.install(at.release, "uidmap")
    if at.no_new_privs:
        return (
            f"{program} cannot do its work, since the daemon may not gain privileges",
            "Start it outside of the sandbox that forbids that (NoNewPrivileges= of systemd, "
            "no-new-privileges of a container).",
        )
    if "not allowed" in failure.said:
        listing = "/etc/subuid" if program == "newuidmap" else "/etc/subgid"
        return (
            f"{program} refuses the ids: {failure.said}",
            f"Look at the lines of this user in {listing}; newuidmap(1) has the rules.",
        )
    reinstall = host.install(at.release, "--reinstall uidmap")
    return f"{program} failed: {failure.said or os.strerror(failure.number)}", reinstall


def _of_unshare(failure: Failure, at: Situation) -> tuple[str, str]:
    if failure.number == errno.ENOSPC:
        shut = [name for name in _LIMITS if at.switches.get(name) == "0"]
        if shut:
            verb = "forbids" if len(shut) == 1 else "forbid"
            return f"{' and '.join(shut)} {verb} it", _set(shut, "65536")
        return (
            "this user has as many namespaces as it may",
            _set(_LIMITS, "131072") + ", or end what holds them (lsns shows it)",
        )
    if failure.number in (errno.EINVAL, errno.ENOSYS):
        return (
            "this kernel has no such namespaces",
            "Boot a kernel with CONFIG_USER_NS and CONFIG_NET_NS.",
        )
    if at.am_root:
        return f"this root may not make it ({os.strerror(failure.number)})", _FOR_ROOT
    if at.switches.get("kernel.unprivileged_userns_clone") == "0":
        name = "kernel.unprivileged_userns_clone"
        return f"{name} forbids it", _set([name], "1")
    return _of_act(failure, at)


def _of_act(failure: Failure, at: Situation) -> tuple[str, str]:
    """Something that only root may do was refused to the root of the new namespace."""
    said = failure.said or os.strerror(failure.number)
    if failure.number in _REFUSED:
        if at.am_root:
            return f"this root may not do what it is for ({failure.step}: {said})", _FOR_ROOT
        if at.switches.get("kernel.apparmor_restrict_unprivileged_userns") == "1":
            return f"AppArmor forbids it ({failure.step}: {said})", apparmor_cure(at.python)
        return (
            f"its root may not do what it is for ({failure.step}: {said}), as in a container",
            "Let the container's owner allow the system calls unshare, mount and setns (seccomp) "
            "and unmask /proc and /sys.",
        )
    if failure.number == errno.EROFS:
        return (
            "/proc/sys may not be written, as in a container",
            "Let the container's owner make it writable (Docker: --security-opt "
            "systempaths=unconfined).",
        )
    if failure.step == "record":
        return f"its record cannot be written ({said})", "Look at the house's runtime folder."
    return f"{failure.step} failed: {said}", "Run `guest doctor` and report what it says."


def apparmor_cure(python: str) -> str:
    """A profile that allows user namespaces to `python` alone, as Ubuntu 24.04 has for others."""
    profile = (
        "abi <abi/4.0>,\\ninclude <tunables/global>\\n"
        f"profile guesthouse {python} flags=(unconfined) {{\\n  userns,\\n}}\\n"
    )
    file = "/etc/apparmor.d/guesthouse"
    return f"printf '{profile}' | sudo tee {file} && sudo apparmor_parser -r {file}"


def _set(names: list[str] | tuple[str, ...], value: str) -> str:
    settings = " ".join(f"{name}={value}" for name in names)
    return f"sudo sysctl -w {settings} (and keep it in /etc/sysctl.d/)"


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
