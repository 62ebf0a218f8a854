"""Working as root without being root: a namespace in which this user is 0.

Building an image needs many owners, mounts and chroot. An ordinary user gets them in a user
namespace of its own: the user is 0 there and its subordinate ids (subuid(5)) are 1 and up, so what
is written belongs to the user outside. Root gets the mount and PID namespaces alone. Killing the
command ends everything in its PID namespace and takes the mounts with it.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
from dataclasses import dataclass
from pathlib import Path

from guesthouse.errors import HostLacks

NEEDED_IDS = 65535
"""How many subordinate ids a Debian tree may use; 65534 is nobody."""

_TOOL_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
_APPARMOR = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
_DEBIAN_SWITCH = Path("/proc/sys/kernel/unprivileged_userns_clone")
_MAXIMUM = Path("/proc/sys/user/max_user_namespaces")


@dataclass(frozen=True)
class IdRange:
    """`count` ids from `start` on, which a user may map into its namespaces."""

    start: int
    count: int


def subordinate_range(listing: Path, name: str, uid: int) -> IdRange | None:
    """The user's first range of at least NEEDED_IDS in /etc/subuid or /etc/subgid.

    Lines name their user or give its uid. None when there is no such range or no such file.
    """
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        owner, _, numbers = line.strip().partition(":")
        start, _, count = numbers.partition(":")
        if owner not in (name, str(uid)) or not (start.isdigit() and count.isdigit()):
            continue
        if int(count) >= NEEDED_IDS:
            return IdRange(int(start), int(count))
    return None


def require_ranges(etc: Path = Path("/etc")) -> None:
    """Raises HostLacks unless this user has subordinate ids and the tools that map them."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    for tool in ("newuidmap", "newgidmap"):
        if shutil.which(tool, path=_TOOL_PATH) is None:
            raise _lacks(f"{tool} is missing", "Install it: apt-get install uidmap")
    for listing in (etc / "subuid", etc / "subgid"):
        if subordinate_range(listing, name, uid) is None:
            raise _lacks(
                f"{listing} gives {name} no {NEEDED_IDS} ids",
                "Let an administrator run: usermod --add-subuids 100000-165535"
                f" --add-subgids 100000-165535 {name} (any range that nobody else has)",
            )


async def enter() -> list[str]:
    """The beginning of a command line that runs the rest as root of its own namespaces.

    It is tried out first. Raises HostLacks (capability "userns") with the reason and the cure.
    """
    prefix = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    if os.geteuid() != 0:
        require_ranges()
        prefix[1:1] = ["--user", "--map-root-user", "--map-auto"]
    said = ""
    # Where parts of /proc are masked (inside a container) no new one may be mounted.
    for extra in (["--mount-proc"], []):
        status, said = await _try([*prefix, *extra, "--", "true"])
        if status == 0:
            return [*prefix, *extra, "--"]
    raise _lacks(said.strip() or "unshare failed", _cure())


async def remove_tree(path: Path) -> None:
    """Removes a tree that may hold files of our subordinate ids. A path that is not there is fine.

    Raises HostLacks when such files are left and the namespace cannot be entered.
    """
    await asyncio.to_thread(shutil.rmtree, path, True)
    if path.exists():
        status, said = await _try([*await enter(), "rm", "-rf", "--", str(path)])
        if status != 0 or path.exists():
            raise _lacks(f"{path} cannot be removed: {said.strip()}", "Remove it by hand.")


async def _try(argv: list[str]) -> tuple[int, str]:
    """Runs a command to its end; status and what it said on stderr."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PATH": _TOOL_PATH, "LC_ALL": "C.UTF-8"},
        )
    except FileNotFoundError:
        return 127, f"{argv[0]} is missing"
    _, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode("utf-8", "replace")


def _cure() -> str:
    if os.geteuid() == 0:
        return (
            "This root may not make mount and PID namespaces (a container?): give it CAP_SYS_ADMIN"
            " or build on another host."
        )
    if _reads(_MAXIMUM) == "0":
        return "Let an administrator run: sysctl user.max_user_namespaces=65536"
    if _reads(_DEBIAN_SWITCH) == "0":
        return "Let an administrator run: sysctl kernel.unprivileged_userns_clone=1"
    if _reads(_APPARMOR) == "1":
        return (
            "AppArmor forbids them here, as on Ubuntu. Let an administrator run: sysctl"
            " kernel.apparmor_restrict_unprivileged_userns=0, or add an AppArmor profile that"
            " allows userns for /usr/bin/unshare"
        )
    return "Build the image as root, or on a host that allows user namespaces."


def _reads(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _lacks(reason: str, cure: str) -> HostLacks:
    return HostLacks(
        f"This host does not let an image be built in a namespace of its own: {reason}.",
        hint=cure,
        capability="userns",
    )
