"""What is said inside the guest for a share: texts for its /bin/sh, and what they answer. Pure.

They run as root, by ssh over the virtio-serial port or by the agent. Busybox understands them too.
"""

from __future__ import annotations

import shlex
from typing import NamedTuple

from guesthouse.errors import AgentUnsupported, EngineError, GuesthouseError, InUse, InvalidInput
from guesthouse.model.share import Share
from guesthouse.shares.choosing import GuestAbilities

PORT_PREFIX = "house.guest.share."
MOUNT_SECONDS = 60
"""An emulated guest under load takes its time to notice a new port."""

# The guest sees a change by the host within three seconds: sshfs counts whole ones, twice, and
# the kernel one more.
_OPTIONS = (
    "passive", "allow_other", "default_permissions",
    "dcache_timeout=1", "entry_timeout=1", "attr_timeout=1", "negative_timeout=0",
)  # fmt: skip

_NO_SSHFS, _NO_FUSE, _NO_PORT, _NO_FOLDER, _NOT_MOUNTED, _BUSY, _NO_USER, _NO_VIRTIOFS = range(
    71, 79
)

_MOUNTED = """\
mounted() {
  while read -r _ where kind _; do
    [ "$where" = "$coded" ] && case $kind in fuse.sshfs|virtiofs) return 0 ;; esac
  done </proc/self/mounts
  return 1
}
"""

_LOOK = """\
for one in fuse virtiofs 9p; do
  modprobe "$one" >/dev/null 2>&1
  while read -r first second; do
    [ "${second:-$first}" = "$one" ] && echo "fs $one" && break
  done </proc/filesystems
done
command -v sshfs >/dev/null && echo sshfs
[ -d /sys/class/virtio-ports ] && echo port
exit 0
"""

_IDS = f'id -u -- "$1" && id -g -- "$1" || exit {_NO_USER}\n'

# A unit of systemd outlives the service that our command came through. Its command is a file:
# systemd would expand what looks like variables in arguments.
_MOUNT = (
    _MOUNTED
    + f"""\
name=$1 target=$2 coded=$3 options=$4 turns=$5 seen_as=$6
while mounted; do umount -l -- "$target" || break; done
command -v sshfs >/dev/null || exit {_NO_SSHFS}
modprobe fuse >/dev/null 2>&1
[ -e /dev/fuse ] || exit {_NO_FUSE}
# The kernel's own names: udev's may come late.
find_port() {{
  for one in /sys/class/virtio-ports/*; do
    [ -r "$one/name" ] && read -r known <"$one/name" && [ "$known" = "$seen_as" ] &&
      port=/dev/${{one##*/}} && [ -e "$port" ] && return 0
  done
  return 1
}}
turn=0
until find_port; do
  turn=$((turn + 1)); [ $turn -gt $turns ] && exit {_NO_PORT}
  sleep 0.1
done
mkdir -p -- "$target" || exit {_NO_FOLDER}
sshfs --help 2>&1 | grep -q no_contain_symlinks && options=$options,no_contain_symlinks
mkdir -p /run/guesthouse
script=/run/guesthouse/share-$name log=/run/guesthouse/share-$name.log
cat >"$script"
printf 'exec sshfs -f :/ "$target" -o %s <>%s >&0 2>%s\\n' "$options" "$port" "$log" >>"$script"
: >"$log"
if [ -d /run/systemd/system ] && command -v systemd-run >/dev/null; then
  unit=guesthouse-share-$name
  systemctl stop "$unit" >/dev/null 2>&1
  systemd-run --quiet --collect --unit="$unit" /bin/sh "$script" || exit {_NOT_MOUNTED}
else
  setsid sh "$script" </dev/null >/dev/null 2>&1 &
fi
turn=0
until mounted; do
  turn=$((turn + 1))
  if [ $turn -gt $turns ] || [ -s "$log" ]; then cat "$log" >&2; exit {_NOT_MOUNTED}; fi
  sleep 0.1
done
"""
)

# Until the guest has noticed the device, `mount` says that there is no such tag.
_MOUNT_VIRTIOFS = (
    _MOUNTED
    + f"""\
target=$1 coded=$2 options=$3 turns=$4 tag=$5
while mounted; do umount -l -- "$target" || break; done
modprobe virtiofs >/dev/null 2>&1
grep -qw virtiofs /proc/filesystems || exit {_NO_VIRTIOFS}
mkdir -p -- "$target" || exit {_NO_FOLDER}
turn=0
until said=$(mount -t virtiofs -o "$options" "$tag" "$target" 2>&1); do
  turn=$((turn + 1)); [ $turn -gt $turns ] && {{ echo "$said" >&2; exit {_NOT_MOUNTED}; }}
  sleep 0.1
done
"""
)

# One `ls` for all processes, as a fork is dear in an emulated guest. A file that is only mapped
# holds the mount too. And a file that was closed holds it for a moment more: FUSE tells its server
# of that in its own time.
_UNMOUNT = (
    _MOUNTED
    + f"""\
target=$1 coded=$2
processes() {{
  ls -l /proc/[0-9]*/cwd /proc/[0-9]*/root /proc/[0-9]*/exe /proc/[0-9]*/fd/* 2>/dev/null |
  while read -r line; do
    case "$line" in
      *" -> $target"|*" -> $target/"*) rest=${{line#* /proc/}}; echo "${{rest%%/*}}" ;;
    esac
  done
  grep -lF -- " $target/" /proc/[0-9]*/maps 2>/dev/null |
  while IFS=/ read -r _ _ pid _; do echo "$pid"; done
}}
holders() {{
  processes | sort -un | while read -r pid; do
    read -r comm 2>/dev/null </proc/$pid/comm && echo "process $pid $comm"
  done
  while read -r _ where _; do
    case "$where" in "$coded"/*) echo "mount $where" ;; esac
  done </proc/self/mounts
}}
turn=0
while mounted; do
  umount -- "$target" 2>/dev/null && continue
  by=$(holders)
  turn=$((turn + 1))
  [ -z "$by" ] && [ $turn -lt 20 ] || {{ echo "$by"; exit {_BUSY}; }}
  sleep 0.1
done
exit 0
"""
)


class Holder(NamedTuple):
    """Who keeps a share busy. :ivar pid: 0: it is a mount. :ivar name: its command, or place."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})" if self.pid else f"the mount at {self.name}"


def look() -> list[str]:
    """The command that tells what the guest can do; `abilities` reads its answer."""
    return ["sh", "-c", _LOOK]


def abilities(output: bytes) -> GuestAbilities:
    lines = output.decode("utf-8", "replace").splitlines()
    return GuestAbilities(
        file_systems=frozenset(line[3:] for line in lines if line.startswith("fs ")),
        sshfs="sshfs" in lines,
        port="port" in lines,
    )


def ask_ids(user: str) -> list[str]:
    """The command that tells a user's uid and gid; `ids` reads its answer."""
    return ["sh", "-c", _IDS, "ids", user]


def ids(user: str, code: int | None, output: bytes) -> tuple[int, int]:
    """:raise InvalidInput: the guest has no such user."""
    numbers = output.split()
    if code != 0 or len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        raise InvalidInput(
            f"The guest has no user {user}.",
            hint="Make it in the guest first, or name another one.",
            field="guest_user",
        )
    return int(numbers[0]), int(numbers[1])


def mount_sftp(share: Share, port: str, *, seconds: int = MOUNT_SECONDS) -> tuple[list[str], bytes]:
    """The command that mounts by the port that has just been plugged in, and its input.

    What an earlier port left mounted there is dead, and let go.
    """
    options = ",".join((*_OPTIONS, *(["ro"] if share.read_only else [])))
    words = [share.name, share.target, _coded(share.target), options, str(seconds * 10), port]
    return (
        ["sh", "-c", _MOUNT, "mount", *words],
        f"target={shlex.quote(share.target)}\n".encode(),
    )


def is_mounted(share: Share) -> list[str]:
    """The command that ends with 0 if the share is mounted and answers."""
    text = _MOUNTED + 'coded=$1\nmounted && ls -d -- "$2/." >/dev/null 2>&1\n'
    return ["sh", "-c", text, "mounted", _coded(share.target), share.target]


def mount_virtiofs(share: Share, tag: str, *, seconds: int = MOUNT_SECONDS) -> list[str]:
    """The command that mounts the device that has just been plugged in.

    What an earlier device left mounted there is dead, and let go.
    """
    options = "ro" if share.read_only else "rw"
    words = [share.target, _coded(share.target), options, str(seconds * 10), tag]
    return ["sh", "-c", _MOUNT_VIRTIOFS, "mount-virtiofs", *words]


def unmount(share: Share) -> list[str]:
    """The command that unmounts; not mounted is fine. `check_unmounted` reads its answer."""
    return ["sh", "-c", _UNMOUNT, "unmount", share.target, _coded(share.target)]


def check_mounted(share: Share, code: int | None, errors: bytes) -> None:
    """:raise AgentUnsupported: the guest lacks something. :raise EngineError: it failed."""
    if code == 0:
        return
    said = errors.decode("utf-8", "replace").strip()[-500:]
    known: dict[int, GuesthouseError] = {
        _NO_SSHFS: AgentUnsupported(
            "The guest has no sshfs.", hint="Install it in the guest: apt install sshfs"
        ),
        _NO_FUSE: AgentUnsupported(
            "The guest's kernel has no FUSE.", hint="Use a kernel that has it."
        ),
        _NO_VIRTIOFS: AgentUnsupported(
            "The guest's kernel has no virtiofs.", hint="Use a newer kernel in it, or --way sftp."
        ),
        _NO_PORT: EngineError(
            f"The guest did not notice the port of the share {share.name}.",
            hint="Is its kernel loaded with virtio_console, and does udev run?",
        ),
        _NO_FOLDER: EngineError(
            f"The guest cannot make the folder {share.target}: {said}",
            hint="Share to another place.",
        ),
    }
    raise known.get(code or 0) or EngineError(
        f"The guest could not mount the share at {share.target}: {said or f'exit code {code}'}"
    )


def holders(output: bytes) -> tuple[Holder, ...]:
    """Who keeps it busy, from the answer of `unmount`."""
    found = []
    for line in output.decode("utf-8", "replace").splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "process":
            pid, _, name = rest.partition(" ")
            if pid.isdigit():
                found.append(Holder(int(pid), name))
        elif kind == "mount":
            found.append(Holder(0, rest))
    return tuple(found)


def check_unmounted(share: Share, code: int | None, output: bytes, errors: bytes) -> None:
    """:raise InUse: by whom; `detail["holders"]`. :raise EngineError: it failed."""
    if code == 0:
        return
    if code != _BUSY:
        said = errors.decode("utf-8", "replace").strip()[-500:]
        raise EngineError(f"The guest could not let go of the share at {share.target}: {said}")
    by = holders(output)
    named = ", ".join(map(str, by)) or "somebody who cannot be found"
    raise InUse(
        f"The share at {share.target} is in use in the guest by {named}.",
        hint="End that, or let it leave the folder, and try again.",
        share=share.name,
        holders=[{"pid": one.pid, "name": one.name} for one in by],
    )


def _coded(path: str) -> str:
    """As /proc/self/mounts writes it (seq_path's escapes)."""
    return "".join(f"\\{ord(char):03o}" if char in " \t\n\\" else char for char in path)
