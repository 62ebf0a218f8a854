"""Secrets: a file each, named by an id, outside of every document, log and command line.

The folder is 0700, the files 0600. Writes are atomic and durable. Links are never followed: every
access goes through the open folder and refuses anything but a plain file of our own.
All calls block on the disk; callers on an event loop use `asyncio.to_thread`.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guesthouse.errors import EngineError, Forbidden, GuesthouseError, InvalidInput, NoSpace
from guesthouse.errors import NotFound as NoSecret
from guesthouse.host.folders import make_private

LIMIT = 1 << 20
"""Largest secret in bytes: keys and tokens, not files."""

# No leading dot: those are files being written.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Secrets:
    """The secrets below one folder, which is created at the first `put`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, name: str, value: bytes) -> None:
        """Store `value`, replacing what was there. Durable when this returns.

        :raise InvalidInput: not a name for a secret, or over `LIMIT`. :raise NoSpace:
        :raise Forbidden: the folder is not ours alone.
        """
        _check_id(name)
        if len(value) > LIMIT:
            raise InvalidInput(
                f"The secret {name!r} has {len(value)} bytes; at most {LIMIT} are kept."
            )
        make_private(self.folder)
        temporary = f".{name}.{secrets.token_hex(8)}"
        with self._open_folder(name) as folder:
            try:
                _write(folder, temporary, value)
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                _remove(folder, temporary)
                raise
            os.fsync(folder)

    def get(self, name: str) -> bytes:
        """:raise NotFound: no secret of that name. :raise Forbidden: it is not a plain file of
        ours that only we can read. :raise InvalidInput: not a name for a secret.
        """
        _check_id(name)
        with self._open_folder(name) as folder:
            # O_NONBLOCK: a planted FIFO must not hang us before it is refused.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            fd = os.open(name, flags, dir_fd=folder)
            with os.fdopen(fd, "rb") as file:
                self._check_file(name, os.fstat(fd))
                return file.read(LIMIT + 1)[:LIMIT]

    def delete(self, name: str) -> None:
        """Remove it durably; nothing happens when there is none. Raises as `get`."""
        _check_id(name)
        try:
            with self._open_folder(name) as folder:
                os.unlink(name, dir_fd=folder)
                os.fsync(folder)
        except NoSecret:
            pass

    def list(self) -> list[str]:
        """Names of all secrets, sorted."""
        try:
            with self._open_folder("") as folder:
                return sorted(filter(_ID.fullmatch, _names(folder)))
        except NoSecret:
            return []

    def sweep(self) -> None:
        """Remove what an interrupted `put` left. Only while nobody else writes: at the start."""
        try:
            with self._open_folder("") as folder:
                for name in _names(folder):
                    if name.startswith("."):
                        _remove(folder, name)
        except NoSecret:
            pass

    @contextmanager
    def _open_folder(self, name: str) -> Iterator[int]:
        """The folder as an fd; errors of the system inside become ours."""
        try:
            folder = os.open(
                self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
            try:
                yield folder
            finally:
                os.close(folder)
        except OSError as error:
            raise _translated(name, error) from error

    def _check_file(self, name: str, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            why = "is not a plain file"
        elif found.st_uid != os.geteuid():
            why = f"belongs to user {found.st_uid}"
        elif found.st_mode & 0o077:
            why = f"can be read by other users (mode {stat.S_IMODE(found.st_mode):04o})"
        else:
            return
        raise Forbidden(
            f"The secret {name!r} is refused: {self.folder / name} {why}.",
            hint="Somebody changed it. If its content is still good, run chmod 600 on it; "
            "otherwise remove it.",
            secret=name,
        )


def _names(folder: int) -> list[str]:
    return os.listdir(folder)


def _write(folder: int, name: str, value: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=folder)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, 0o600)
        file.write(value)
        file.flush()
        os.fsync(fd)


def _remove(folder: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass


def _check_id(name: str) -> None:
    if not _ID.fullmatch(name):
        raise InvalidInput(f"{name!r} cannot name a secret.", field="secret")


def _translated(name: str, error: OSError) -> GuesthouseError:
    if error.errno == errno.ENOENT:
        return NoSecret(f"There is no secret {name!r}.", secret=name)
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpace(
            f"There is no space to store the secret {name!r}.", hint="Free some space on the disk."
        )
    if error.errno in {errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR}:
        return Forbidden(
            f"The secret {name!r} is refused: {error.strerror}.",
            hint="Secrets are plain files of the house's user; links are not followed.",
            secret=name,
        )
    return EngineError(f"The secret {name!r} could not be reached: {error.strerror}.", secret=name)
