"""Where a house keeps its things: the pure rule that the daemon and its clients share.

Nothing here touches the disk; `host.folders` creates and checks what this module names. It imports
neither msgspec nor (until a `Folders` is made) pathlib, because the command line asks it for the
socket at every start.

Environment (each must be an absolute path):

``GUESTHOUSE_STATE``
    replaces the state folder; a house of its own, with a runtime folder of its own.
``GUESTHOUSE_CACHE``
    replaces the cache folder.
``GUESTHOUSE_SOCKET``
    replaces the path of the API's socket.
``XDG_STATE_HOME``, ``XDG_RUNTIME_DIR``, ``XDG_CACHE_HOME``, ``XDG_CONFIG_HOME``, ``HOME``
    as in the XDG Base Directory Specification, which says that relative values are to be ignored.
"""

# ruff: noqa: PTH117  (os.path on purpose: pathlib is not imported here)
from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from guesthouse.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

Mode = Literal["personal", "system"]

SUN_PATH = 107
"""Longest path of a unix socket in bytes: sockaddr_un.sun_path holds 108 with its final NUL."""

LONGEST_SOCKET_NAME = 16
"""Longest file name of a socket in a guest's runtime folder; `check_sockets` reserves it."""

SYSTEM_STATE = "/var/lib/guesthouse"
SYSTEM_RUNTIME = "/run/guesthouse"
SYSTEM_CACHE = "/var/cache/guesthouse"
SYSTEM_CONFIG = "/etc/guesthouse"

_SOCKET = "api.sock"


class Folders(NamedTuple):
    """The places of one house.

    :ivar state: durable; documents, disks, logs. :ivar runtime: sockets; gone after a reboot.
    :ivar cache: built images, shared by a user's houses. :ivar config: settings, read only.
    :ivar socket: the API's socket.
    """

    state: Path
    runtime: Path
    cache: Path
    config: Path
    socket: Path
    mode: Mode

    @property
    def keeper_socket(self) -> Path:
        return self.runtime / "keeper.sock"

    @property
    def keeper_state(self) -> Path:
        return self.state / "keeper"

    @property
    def database(self) -> Path:
        return self.state / "guesthouse.db"

    @property
    def pool(self) -> Path:
        return self.state / "pools" / "default"

    @property
    def jobs(self) -> Path:
        """Logs of jobs."""
        return self.state / "jobs"

    @property
    def images(self) -> Path:
        """Boot files of the catalogue's images."""
        return self.state / "images"

    @property
    def uploads(self) -> Path:
        """Files that clients send, until a job has made something of them."""
        return self.state / "uploads"

    @property
    def build_cache(self) -> Path:
        return self.cache / "images"

    @property
    def secrets(self) -> Path:
        return self.state / "secrets"

    def guest_state(self, guest: str) -> Path:
        """Logs and the like of the guest with that id."""
        return self.state / "guests" / guest

    def guest_runtime(self, guest: str) -> Path:
        """Sockets of the guest with that id."""
        return self.runtime / "guests" / guest


def resolve(env: Mapping[str, str], *, uid: int, mode: Mode = "personal") -> Folders:
    """The folders of the house that a process with `env` and `uid` means.

    :raise InvalidInput: a GUESTHOUSE_ variable is not absolute, HOME is missing and the user is
        unknown, or a socket's path would be longer than the kernel allows.
    """
    from pathlib import Path

    state, runtime, cache, config = _places(env, uid, mode)
    socket = _override(env, "GUESTHOUSE_SOCKET") or f"{runtime}/{_SOCKET}"
    folders = Folders(Path(state), Path(runtime), Path(cache), Path(config), Path(socket), mode)
    check_sockets(folders)
    return folders


def socket_candidates(env: Mapping[str, str], *, uid: int) -> tuple[str, ...]:
    """Sockets at which a client looks for its daemon, best first.

    GUESTHOUSE_SOCKET alone if set; else the personal house's, then the system's, unless
    GUESTHOUSE_STATE names one personal house.

    :raise InvalidInput: as `resolve`.
    """
    chosen = _override(env, "GUESTHOUSE_SOCKET")
    if chosen:
        return (_fitting(chosen),)
    _, runtime, _, _ = _places(env, uid, "personal")
    personal = _fitting(f"{runtime}/{_SOCKET}")
    if env.get("GUESTHOUSE_STATE"):
        return (personal,)
    return (personal, f"{SYSTEM_RUNTIME}/{_SOCKET}")


def check_sockets(folders: Folders) -> None:
    """:raise InvalidInput: a socket below `folders` could not be bound: its path is too long."""
    _fitting(str(folders.socket))
    _fitting(str(folders.keeper_socket))
    _fitting(str(folders.guest_runtime("0" * 26) / ("x" * LONGEST_SOCKET_NAME)))


def _places(env: Mapping[str, str], uid: int, mode: Mode) -> tuple[str, str, str, str]:
    own_state = _override(env, "GUESTHOUSE_STATE")
    own_cache = _override(env, "GUESTHOUSE_CACHE")
    suffix = f"-{_short_hash(own_state)}" if own_state else ""
    if mode == "system":
        return (
            own_state or SYSTEM_STATE,
            SYSTEM_RUNTIME + suffix,
            own_cache or SYSTEM_CACHE,
            SYSTEM_CONFIG,
        )
    state = own_state or _xdg(env, uid, "XDG_STATE_HOME", ".local/state")
    cache = own_cache or _xdg(env, uid, "XDG_CACHE_HOME", ".cache")
    config = _xdg(env, uid, "XDG_CONFIG_HOME", ".config")
    base = env.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(base):
        runtime = f"{os.path.normpath(base)}/guesthouse{suffix}"
    else:  # host.folders checks its owner, type and links before anybody trusts it
        runtime = f"/tmp/guesthouse-{uid}{suffix}"  # noqa: S108
    return state, runtime, cache, config


def _xdg(env: Mapping[str, str], uid: int, variable: str, below_home: str) -> str:
    base = env.get(variable, "")
    if not os.path.isabs(base):
        base = f"{_home(env, uid)}/{below_home}"
    return os.path.normpath(f"{base}/guesthouse")


def _home(env: Mapping[str, str], uid: int) -> str:
    home = env.get("HOME", "")
    if os.path.isabs(home):
        return home
    import pwd

    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        raise InvalidInput(
            f"HOME is not set and user {uid} is not in the user database.",
            hint="Set HOME, or GUESTHOUSE_STATE and GUESTHOUSE_CACHE, to absolute paths.",
            field="HOME",
        ) from None


def _override(env: Mapping[str, str], variable: str) -> str:
    value = env.get(variable, "")
    if not value:
        return ""
    if not os.path.isabs(value) or "\0" in value:
        # The daemon's working folder is not its clients': a relative path would name two houses.
        raise InvalidInput(
            f"{variable} is {value!r}, which is not an absolute path.",
            hint=f"Write {variable}={os.path.join('/path/to', value)}.",
            field=variable,
        )
    return os.path.normpath(value)


def _short_hash(path: str) -> str:
    return _sha256(os.fsencode(path))[:8]


def _sha256(data: bytes) -> str:
    """By the module inside `hashlib`, which would load OpenSSL: 3 ms at every start of a client."""
    for module in ("_sha2", "_sha256"):  # since Python 3.12; until 3.11
        try:
            digest: str = __import__(module).sha256(data).hexdigest()
        except ImportError:
            continue
        return digest
    import hashlib

    return hashlib.sha256(data).hexdigest()


def _fitting(path: str) -> str:
    length = len(os.fsencode(path))
    if length > SUN_PATH:
        raise InvalidInput(
            f"The socket {path!r} cannot be: its path has {length} bytes, and the kernel allows "
            f"{SUN_PATH}.",
            hint="Set XDG_RUNTIME_DIR (or GUESTHOUSE_SOCKET, if it is set) to a shorter path.",
            field="socket",
        )
    return path
