"""A tar stream from a guest as files of this host. The guest is not trusted.

Names are checked, devices and links that lead out are left out, and every step of every path is
taken from an open folder without following links (openat(2) with O_NOFOLLOW): neither a link in
the stream nor one that lies on this host already can lead a write elsewhere. tarfile's own `data`
filter compares paths instead, which has been fooled (CVE-2025-4517), and the first releases of
Python 3.11 lack it; so it is not used.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol, cast

from guesthouse.errors import EngineError

LARGEST_EXTENSION = 1 << 20
"""Bytes of a header's extension (a long name). tarfile reads one into memory, whatever its size."""

Skipped = Callable[[str, str], None]
"""Told (name, why) of what is left out."""

_PIECE = 256 << 10
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_EXTENSIONS = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}


class Source(Protocol):
    def read(self, limit: int, /) -> bytes: ...


class _BoundedInfo(tarfile.TarInfo):
    """Refuses extensions that would fill our memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _BoundedInfo:
        info = super().frombuf(buf, encoding, errors)
        if info.type in _EXTENSIONS and info.size > LARGEST_EXTENSION:
            raise tarfile.ReadError(f"a header of {info.size} bytes")
        return info


def unpack(stream: Source, source: str, folder: Path, name: str, *, skipped: Skipped) -> None:
    """Write what the tar stream calls `source`, and all below it, to `folder` as `name`.

    Modes (without set-id bits) and times are kept; files belong to the caller. Existing files are
    replaced, existing folders filled. `source` may be `.`, the top of the stream, and `name` may be
    `.`, the folder itself.

    :raise EngineError: the stream is no tar archive, or holds something else than `source`.
    :raise OSError: this host cannot take it.
    """
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    unpacking = _Unpacking(root, skipped)
    try:
        # "r|" reads forward only, piece by piece, as the guest sends.
        with tarfile.open(
            fileobj=cast(IO[bytes], stream), mode="r|", tarinfo=_BoundedInfo, bufsize=_PIECE
        ) as tar:
            for member in tar:
                parts = _relative(member.name, source)
                unpacking.place(tar, member, [name, *parts], source, name)
        unpacking.finish()
    except tarfile.TarError as error:
        raise EngineError(
            f"The guest sent something that is not a proper archive: {error}.",
            hint="What has arrived until then is kept.",
        ) from error
    finally:
        os.close(root)


def _relative(member: str, source: str) -> list[str]:
    """The steps of `member` below `source`.

    :raise EngineError: it is not below `source`, so the guest sends what nobody asked for.
    """
    steps = [step for step in member.split("/") if step not in {"", "."}]
    if source == ".":
        steps.insert(0, source)
    if not steps or steps[0] != source or ".." in steps or "\0" in member:
        raise EngineError(
            f"The guest sent {member!r}, which is not part of {source!r}.",
            hint="Its tar is broken or it means harm; nothing outside the target was touched.",
        )
    return steps[1:]


def _refusal(member: tarfile.TarInfo, steps: list[str]) -> str:
    """Why a member is left out; empty when it is not."""
    if member.issym() and _leads_out(member.linkname, depth=len(steps) - 2):
        return f"this link leads out of what is copied, to {member.linkname}"
    if member.isreg() or member.isdir() or member.issym() or member.islnk():
        return ""
    return "it is a device or a pipe"


def _leads_out(target: str, *, depth: int) -> bool:
    """Whether a symbolic link may end outside the copied tree.

    :param depth: folders between the top of the tree and the link; -1 for the top itself.

    `..` is allowed at the beginning only, where it climbs real folders. After a name it could climb
    from wherever another link led.
    """
    steps = [step for step in target.split("/") if step not in {"", "."}]
    climbs = next((at for at, step in enumerate(steps) if step != ".."), len(steps))
    return target.startswith("/") or climbs > depth or ".." in steps[climbs:]


class _Unpacking:
    def __init__(self, root: int, skipped: Skipped) -> None:
        self._root = root
        self._skipped = skipped
        # Modes and times of folders come last: a read-only one could not be filled, and filling
        # one changes its time.
        self._folders: dict[tuple[str, ...], tarfile.TarInfo] = {}

    def place(
        self,
        tar: tarfile.TarFile,
        member: tarfile.TarInfo,
        steps: list[str],
        source: str,
        name: str,
    ) -> None:
        refusal = _refusal(member, steps)
        if refusal:
            self._skipped("/".join(steps), refusal)
            return
        if member.isdir():
            with self._parent([*steps, "."]):
                if steps != ["."]:  # the target folder itself stays as it is
                    self._folders[tuple(steps)] = member
            return
        with self._parent(steps) as parent:
            last = steps[-1]
            _clear(parent, last)
            if member.issym():
                os.symlink(member.linkname, last, dir_fd=parent)
                times = (member.mtime, member.mtime)
                os.utime(last, times, dir_fd=parent, follow_symlinks=False)
            elif member.islnk():
                try:
                    self._link([name, *_relative(member.linkname, source)], parent, last)
                except FileNotFoundError:
                    self._skipped("/".join(steps), "the file that it is another name of is missing")
            else:
                _write(tar, member, parent, last)

    def finish(self) -> None:
        for steps, member in reversed(self._folders.items()):
            with self._parent([*steps, "."]) as folder:
                os.fchmod(folder, member.mode & 0o777)
                os.utime(folder, (member.mtime, member.mtime))

    def _link(self, target: list[str], parent: int, last: str) -> None:
        with self._parent(target) as other:
            os.link(target[-1], last, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)

    @contextmanager
    def _parent(self, steps: list[str]) -> Iterator[int]:
        """The folder that holds the last of `steps`, open; made where it is missing."""
        here = os.dup(self._root)
        try:
            for step in steps[:-1]:
                try:
                    os.mkdir(step, 0o700, dir_fd=here)
                except FileExistsError:
                    pass
                there = os.open(step, _FOLDER, dir_fd=here)
                os.close(here)
                here = there
            yield here
        finally:
            os.close(here)


def _clear(parent: int, name: str) -> None:
    """Make room for a file: an old file or link goes; a folder stays in the way."""
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str) -> None:
    content = tar.extractfile(member)
    assert content is not None  # only for what is no file
    fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
    with os.fdopen(fd, "wb", buffering=0) as file:
        while piece := content.read(_PIECE):
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
        os.fchmod(fd, member.mode & 0o777)
        os.utime(fd, (member.mtime, member.mtime))
