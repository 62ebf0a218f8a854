"""What runs inside the guest for a command: the text that goes to its shell. Pure.

A guest's sshd hands the text to root's shell. It starts /bin/sh, which becomes the wanted user and
runs a few lines that prepare folder and environment, say on which pid the command will run (the
*announcement*), and then become the command. So the command has no parent of ours, its exit
status and signal are its own, and we know what to signal.

Signals go to that pid's process group and descendants through a second command (`kill_text`): as
root, OpenSSH refuses ssh's own signal request ("session signalling requires privilege separation",
session.c), and dropbear signals the shell alone.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from guesthouse.errors import InvalidInput

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,63}\$?")
_SIGNAL = re.compile(r"[A-Z][A-Z0-9]{1,11}")

MAX_TEXT = 96 << 10
"""Longest command text in bytes. Linux takes 128 KiB for one argument (MAX_ARG_STRLEN), and the
text is one argument of the shell that sshd starts."""

_UNKNOWN_USER = "unknown-user"
_UNKNOWN_FOLDER = "unknown-folder"

# A session of its own: dropbear leaves commands in its own process group, where `kill 0` in a
# script would end the connection of all. setsid does not fork, as pid and leader differ.
_LEAD = """\
read -r stat </proc/$$/stat
stat=${stat##*) }; stat=${stat#* }; stat=${stat#* }
[ "${stat%% *}" = $$ ] || ! command -v setsid >/dev/null || exec setsid "$@"
exec "$@"
"""

# Becoming another user without a process in between, so that pid and signals stay right: setpriv
# of util-linux; busybox has no such option, but its su replaces itself. runuser and the su of
# util-linux stay as a parent that answers SIGINT by killing the command: only where nothing else.
_BECOME = """\
user=$1; shift
if ! id "$user" >/dev/null 2>&1; then printf '\\036TOKEN unknown-user 0\\n' >&2; exit 1; fi
if setpriv --reuid=0 --clear-groups true >/dev/null 2>&1; then
  exec setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups --reset-env -- \
/bin/sh -c "$@"
elif command -v runuser >/dev/null 2>&1; then
  exec runuser -u "$user" -- /bin/sh -c "$@"
else
  script=$1; shift
  exec su -s /bin/sh "$user" -c "$script" "$@"
fi
"""

# Prints `pids of the tree below $2`, reads /proc with builtins only (a fork costs milliseconds in
# an emulated guest), repeats until nothing new is found, then signals group and tree.
_KILL = """\
signal=$1 root=$2 tree=" $2 " grown=1
while [ $grown = 1 ]; do
  grown=0
  for stat in /proc/[0-9]*/stat; do
    read -r line 2>/dev/null <"$stat" || continue
    pid=${line%% *}; rest=${line##*) }; rest=${rest#* }; parent=${rest%% *}
    case $tree in *" $pid "*) continue;; esac
    case $tree in *" $parent "*) tree="$tree$pid "; grown=1;; esac
  done
done
kill -s "$signal" -- "-$root" 2>/dev/null && group=1 || group=0
for pid in $tree; do
  [ $group = 1 ] && { read -r line 2>/dev/null <"/proc/$pid/stat" || continue
    rest=${line##*) }; rest=${rest#* }; rest=${rest#* }; [ "${rest%% *}" = "$root" ] && continue; }
  kill -s "$signal" "$pid" 2>/dev/null
done
:
"""


class Announcement(NamedTuple):
    """What the wrapper said before it became the command.

    :ivar problem: empty, `unknown-user` or `unknown-folder`. :ivar pid: in the guest.
    """

    problem: str
    pid: int


def command_text(
    argv: Sequence[str],
    *,
    token: str,
    user: str = "root",
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    shell_user: str = "root",
) -> str:
    """The text for the guest's shell.

    :param argv: empty runs the user's login shell. :param token: names the announcement; letters
        and digits. :param cwd: None is the user's home. :param shell_user: who the ssh login is.
    :raise InvalidInput: a user, variable or argument that cannot be.
    """
    if not _USER.fullmatch(user):
        raise InvalidInput(f"{user!r} cannot be a user's name.", field="user")
    lines = [_export(name, value) for name, value in sorted((env or {}).items())]
    if cwd is None:
        lines.append("cd 2>/dev/null || cd /")
    else:
        failed = f"printf '\\036{token} {_UNKNOWN_FOLDER} 0\\n' >&2; exit 1"
        lines.append(f"cd -- {_quoted(cwd, 'cwd')} || {{ {failed}; }}")
    lines.append(f"printf '\\036{token} started %s\\n' $$ >&2")
    if argv:
        lines.append("exec " + " ".join(_quoted(word, "argv") for word in argv))
    else:
        lines.append('exec "${SHELL:-/bin/sh}" -l')
    script = "\n".join(lines)
    words = ["/bin/sh", "-c", script, "sh"]
    if user != shell_user:
        words = ["/bin/sh", "-c", _BECOME.replace("TOKEN", token), "sh", user, script, "sh"]
    text = shlex.join(["exec", "/bin/sh", "-c", _LEAD, "sh", *words])
    if len(text.encode()) > MAX_TEXT:
        raise InvalidInput(
            f"The command has {len(text.encode())} bytes; a guest takes at most {MAX_TEXT}.",
            hint="Send long input by standard input or a file.",
            field="argv",
        )
    return text


def kill_text(signal: str, pid: int) -> str:
    """The text that sends SIG`signal` to the process group and the descendants of `pid`.

    :raise InvalidInput: not a signal's name.
    """
    return shlex.join(["exec", "/bin/sh", "-c", _KILL, "sh", check_signal(signal), str(pid)])


def check_signal(name: str) -> str:
    """`name` without SIG. :raise InvalidInput: not a signal's name."""
    plain = name.removeprefix("SIG")
    if not _SIGNAL.fullmatch(plain):
        raise InvalidInput(
            f"{name!r} is not a signal.", hint="Write its name: INT, TERM, HUP.", field="signal"
        )
    return plain


class AnnouncementFinder:
    """Finds the announcement in the first output; what else there is passes through.

    Before it there may be words of a start-up file of root's shell. On a terminal the line ends
    with CR LF.
    """

    LIMIT = 64 << 10
    """Bytes of output before the announcement after which it is given up."""

    def __init__(self, token: str) -> None:
        self._pattern = re.compile(
            rb"\x1e" + token.encode() + rb" (started|unknown-user|unknown-folder) (\d+)\r?\n"
        )
        self._held = bytearray()

    def feed(self, data: bytes) -> tuple[Announcement, bytes] | None:
        """Take output; when the announcement is complete, answer it and all other output."""
        self._held += data
        found = self._pattern.search(self._held)
        if found is None:
            return None
        word, pid = found.group(1).decode(), int(found.group(2))
        rest = bytes(self._held[: found.start()] + self._held[found.end() :])
        self._held.clear()
        return Announcement("" if word == "started" else word, pid), rest

    @property
    def held(self) -> bytes:
        """Output so far, none of it an announcement."""
        return bytes(self._held)


def explain(announcement: Announcement, *, user: str, cwd: str | None) -> InvalidInput | None:
    """The error that an announcement tells of, if any."""
    if announcement.problem == _UNKNOWN_USER:
        return InvalidInput(f"The guest has no user {user!r}.", field="user")
    if announcement.problem == _UNKNOWN_FOLDER:
        return InvalidInput(f"User {user!r} of the guest cannot enter {cwd!r}.", field="cwd")
    return None


def _export(name: str, value: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise InvalidInput(
            f"{name!r} cannot be an environment variable.",
            hint="Names are letters, digits and underscores, and do not begin with a digit.",
            field="env",
        )
    return f"export {name}={_quoted(value, 'env')}"


def _quoted(text: str, field: str) -> str:
    if "\0" in text:
        raise InvalidInput("A zero byte cannot be passed to a command.", field=field)
    return shlex.quote(text)
