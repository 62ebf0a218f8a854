"""Shared folders: a folder of the host at a place in the guest."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from enum import StrEnum

from guesthouse.errors import Conflict, InvalidInput
from guesthouse.model.document import Noun

MAX_SHARES = 12
"""Of one guest: its virtio-serial device has 16 ports, of which the house takes two."""
_MAX_NAME = 20
_MAX_PATH = 4095
"""Bytes; PATH_MAX of Linux without the ending NUL."""


class Way(StrEnum):
    """How the guest gets at the files.

    `virtiofs`: a device of the host's virtiofsd. `sftp`: our file server on a virtio-serial port,
    which the guest mounts with sshfs. `9p`: QEMU's own.
    """

    VIRTIOFS = "virtiofs"
    SFTP = "sftp"
    NINEP = "9p"


class Share(Noun, kw_only=True, frozen=True):
    """A shared folder of a guest.

    :ivar name: unique in the guest, of a-z, 0-9 and "-"; names port, unit and record.
    :ivar source: absolute path on the host. :ivar target: absolute path in the guest.
    :ivar way: the way that is wanted; None chooses by what host and guest can do.
    :ivar host_uid: the sharing user, as whom the file server runs; `host_gid` its group.
    :ivar guest_user: whom the guest takes for the sharing user; empty is the guest's login user.
    :ivar system_folder: the user has been asked twice and wants a system folder shared.
    """

    name: str
    source: str
    target: str
    read_only: bool = False
    way: Way | None = None
    host_uid: int
    host_gid: int
    guest_user: str = ""
    system_folder: bool = False

    def __str__(self) -> str:
        return f"{self.source}:{self.target}{':ro' if self.read_only else ''}"


def share_name(target: str, taken: Iterable[str]) -> str:
    """A name for a share at `target` that is not among `taken`."""
    base = re.sub(r"[^a-z0-9]+", "-", posixpath.basename(target).lower()).strip("-")[:_MAX_NAME]
    base = base or "share"
    known = set(taken)
    names = (base, *(f"{base}-{number}" for number in range(2, MAX_SHARES + 2)))
    return next(name for name in names if name not in known)


class ShareText(Noun, kw_only=True, frozen=True):
    """What `--share` says."""

    source: str
    target: str
    read_only: bool = False


# Folders of the system, on the host: sharing one lets a guest read secrets or change the system.
# "Itself" alone: what is in it may well be shared. "With all in it": nothing of it.
_ITSELF = frozenset({"/", "/home", "/media", "/mnt", "/opt", "/root", "/srv", "/usr", "/var"})
_WITH_ALL = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run"),
    *("/sbin", "/sys", "/usr/bin", "/usr/lib", "/usr/libexec", "/usr/sbin", "/usr/share"),
    *("/var/cache", "/var/lib", "/var/log", "/var/run", "/var/spool"),
)
# Of /run and /var these are the user's own.
_NEVERTHELESS = ("/run/media", "/run/user")

# In the guest: nothing comes up any more when one of these is covered.
_NOT_A_TARGET = ("/boot", "/dev", "/etc", "/proc", "/run", "/sys", "/usr", "/var")
_NOT_ITSELF = frozenset({"/", "/bin", "/home", "/lib", "/lib64", "/root", "/sbin", "/tmp"})  # noqa: S108
_NEVERTHELESS_A_TARGET = ("/usr/local", "/usr/src", "/var/www", "/var/lib", "/var/tmp")  # noqa: S108


def parse_share(text: str, *, at: str = "", field: str = "share") -> ShareText:
    """`HOST:GUEST[:ro]`. A colon in a path is written `\\:`.

    :param at: the folder that a relative HOST begins at; without it both paths are absolute.

    :raise InvalidInput: not of that shape, or not paths that can be.
    """
    parts = _split(text)
    read_only = False
    if len(parts) == 3 and parts[2] in {"ro", "rw"}:
        read_only = parts.pop() == "ro"
    if len(parts) != 2:
        raise InvalidInput(
            f"{text!r} does not say which folder of the host is shared to which place in the "
            "guest.",
            hint=r"Write HOST:GUEST or HOST:GUEST:ro, for example /home/ada/src:/src:ro. A colon "
            r"in a path is written \:.",
            field=field,
        )
    if at and parts[0] and not parts[0].startswith("/"):
        parts[0] = posixpath.normpath(posixpath.join(at, parts[0]))
    source = check_path(parts[0], field=field, where="host")
    target = check_path(parts[1], field=field, where="guest")
    check_target(target, field=field)
    return ShareText(source=source, target=target, read_only=read_only)


def check_path(path: str, *, field: str, where: str) -> str:
    """`path` without superfluous slashes. :raise InvalidInput: it is no absolute, plain path."""
    problem = ""
    if not path.startswith("/"):
        problem = "does not begin with a slash"
    elif any(ord(char) < 32 or ord(char) == 127 for char in path):
        problem = "holds a control character"
    elif ".." in path.split("/"):
        problem = "holds '..'"
    elif len(path.encode("utf-8", "surrogateescape")) > _MAX_PATH:
        problem = "is too long"
    if problem:
        raise InvalidInput(
            f"The path {path!r} on the {where} {problem}.",
            hint="Write an absolute path.",
            field=field,
        )
    return "/" + posixpath.normpath(path).lstrip("/")


def check_target(target: str, *, field: str = "share") -> None:
    """:raise InvalidInput: covering that place would break the guest."""
    within = any(_is_in(target, one) for one in _NOT_A_TARGET)
    if target in _NOT_ITSELF or (
        within and not any(_is_in(target, one) for one in _NEVERTHELESS_A_TARGET)
    ):
        raise InvalidInput(
            f"A share at {target} would cover what the guest's system needs.",
            hint="Choose a place of its own, such as /srv/share or /mnt/share.",
            field=field,
        )


def is_system_folder(source: str) -> bool:
    """Whether `source`, with all symbolic links resolved, is the system's rather than a user's."""
    if source in _ITSELF:
        return True
    return any(_is_in(source, one) for one in _WITH_ALL) and not any(
        _is_in(source, one) and source != one for one in _NEVERTHELESS
    )


def check_source(source: str, *, asked_twice: bool, private: Iterable[str] = ()) -> None:
    """:param source: with all symbolic links resolved. :param asked_twice: it is wanted for sure.
    :param private: the house's own folders (keys of guests, the store), never shared: neither they
        nor what is in them or above them.

    :raise InvalidInput: the house's own, or a system folder not asked for twice.
    """
    for own in private:
        if _is_in(source, own) or _is_in(own, source):
            raise InvalidInput(
                f"{source} holds the house's own files ({own}), which no guest may see.",
                hint="Share a folder beside it.",
                field="source",
            )
    if is_system_folder(source) and not asked_twice:
        raise InvalidInput(
            f"{source} is a folder of the system: a guest could read its secrets or change it.",
            hint="If you really mean it: guest share add --system-folder …",
            field="source",
        )


def check_shares(shares: Iterable[Share]) -> None:
    """:raise Conflict: two have one name, or one target lies in another's. :raise InvalidInput:
    there are too many."""
    seen: list[Share] = []
    for share in shares:
        for other in seen:
            if share.name == other.name:
                raise Conflict(f"Two shares are called {share.name}.")
            if _is_in(share.target, other.target) or _is_in(other.target, share.target):
                raise Conflict(
                    f"The shares at {share.target} and {other.target} would cover each other.",
                    hint="Choose another place for one of them.",
                )
        seen.append(share)
    if len(seen) > MAX_SHARES:
        raise InvalidInput(
            f"A guest can have {MAX_SHARES} shares.",
            hint="Share a folder that holds several.",
            field="shares",
        )


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _split(text: str) -> list[str]:
    """At colons without a backslash before them; any other backslash is itself."""
    parts, part = [], ""
    at = 0
    while at < len(text):
        if text.startswith("\\:", at):
            part += ":"
            at += 2
            continue
        if text[at] == ":":
            parts.append(part)
            part = ""
        else:
            part += text[at]
        at += 1
    return [*parts, part]
