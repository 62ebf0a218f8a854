"""Creates the house's folders and refuses those that somebody else could meddle with."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from guesthouse.errors import Forbidden, GuesthouseError, HostLacks, NoSpace
from guesthouse.model.folders import Folders, Mode, check_sockets, resolve, socket_candidates

__all__ = [
    "Folders",
    "Mode",
    "check_sockets",
    "make_private",
    "prepare",
    "prepare_guest",
    "resolve",
    "socket_candidates",
]


def prepare(folders: Folders) -> None:
    """Create the folders of a house, each 0700, and check those that are there already.

    :raise Forbidden: one belongs to somebody else, is a link where none may be, or has been
        writable by others. :raise NoSpace: :raise HostLacks: the file system is read-only.
    """
    # People do move the state to a bigger disk by a link; the runtime folder may be below /tmp,
    # where a link is somebody's trap.
    make_private(folders.state, follow=True)
    make_private(folders.cache, follow=True)
    # Members of a group may use the socket of the machine's house; all else in there is closed.
    make_private(folders.runtime, enter=folders.mode == "system")
    for folder in (
        folders.state / "guests",
        folders.state / "pools",
        folders.pool,
        folders.jobs,
        folders.images,
        folders.secrets,
        folders.keeper_state,
        folders.runtime / "guests",
    ):
        make_private(folder)
    make_private(folders.build_cache, follow=True)


def prepare_guest(folders: Folders, guest: str) -> None:
    """Create the state and runtime folders of the guest with that id. Raises as `prepare`."""
    make_private(folders.guest_state(guest))
    make_private(folders.guest_runtime(guest))


def make_private(path: Path, *, follow: bool = False, enter: bool = False) -> None:
    """Make sure that `path` is a folder of ours with mode 0700, creating it and its parents.

    :param follow: a symbolic link at `path` may lead to the folder.
    :param enter: others may pass through it (0711), but neither list nor change it.
    :raise Forbidden: see `prepare`. :raise NoSpace: :raise HostLacks:
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_parent(path)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            pass
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        folder = os.open(path, flags)
    except OSError as error:
        raise _refusal(path, error) from error
    try:
        _own(path, folder, 0o711 if enter else 0o700)
    finally:
        os.close(folder)


def _own(path: Path, folder: int, wanted: int) -> None:
    """Check the open folder itself, so that nothing can be exchanged in between."""
    found = os.fstat(folder)
    if found.st_uid != os.geteuid():
        raise Forbidden(
            f"The folder {path} belongs to user {found.st_uid}, not to user {os.geteuid()}.",
            hint="Remove it, or set GUESTHOUSE_STATE and XDG_RUNTIME_DIR to folders of your own.",
            path=str(path),
        )
    mode = stat.S_IMODE(found.st_mode)
    if _open_to_others(found):
        raise Forbidden(
            f"The folder {path} is writable by other users (mode {mode:04o}), who may have put "
            "things there.",
            hint=f"Look through it, then run: chmod 700 {path}",
            path=str(path),
        )
    if mode != wanted:
        os.fchmod(folder, wanted)


def _check_parent(path: Path) -> None:
    """Whoever may write the parent may exchange the folder, unless the sticky bit is set."""
    found = path.parent.stat()
    if found.st_uid not in {0, os.geteuid()}:
        raise Forbidden(
            f"The folder {path} cannot be trusted: {path.parent} belongs to user {found.st_uid}.",
            hint="After su or sudo, unset XDG_RUNTIME_DIR and HOME or take them from a login "
            "(su -, sudo -i).",
            path=str(path),
        )
    if _open_to_others(found) and not found.st_mode & stat.S_ISVTX:
        raise Forbidden(
            f"The folder {path} cannot be trusted: {path.parent} is writable by other users.",
            hint=f"Run: chmod go-w {path.parent}",
            path=str(path),
        )


def _open_to_others(found: os.stat_result) -> bool:
    """Whether others may write. A group of one's own (umask 002 on many systems) is no other."""
    by_group = found.st_mode & stat.S_IWGRP and found.st_gid != os.getegid()
    return bool(found.st_mode & stat.S_IWOTH or by_group)


def _refusal(path: Path, error: OSError) -> GuesthouseError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpace(
            f"There is no space for the folder {path}.", hint="Free some space on that disk."
        )
    if error.errno == errno.EROFS:
        return HostLacks(
            f"The folder {path} lies on a read-only file system.",
            hint="Set GUESTHOUSE_STATE, GUESTHOUSE_CACHE or XDG_RUNTIME_DIR to a writable place.",
            capability="writable-folders",
        )
    if error.errno in {errno.ELOOP, errno.ENOTDIR} and path.is_symlink():
        why = f"{path} is a symbolic link, where a folder must be"
    elif error.errno in {errno.ENOTDIR, errno.EEXIST}:
        why = f"{path} or a part of it is not a folder"
    else:
        why = f"{path} cannot be used: {error.strerror}"
    return Forbidden(
        f"{why[0].upper()}{why[1:]}.",
        hint="Remove it, or set GUESTHOUSE_STATE, GUESTHOUSE_CACHE or XDG_RUNTIME_DIR elsewhere.",
        path=str(path),
    )
