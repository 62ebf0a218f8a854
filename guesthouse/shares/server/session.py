"""The requests of one client, answered one after the other. No input or output of its own: bytes
of packets in, bytes of answers out.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from typing import NamedTuple

from . import kernel, wire
from .beneath import Tree, normal
from .handles import File, Folder, Handles
from .owners import Owners

_NAMES = 100
"""Entries of a folder in one answer, which is then at most 60 KiB."""
_ALLOWED_MODE = 0o1777
"""Neither set-uid nor set-gid: a guest must not leave programs that make others the sharer."""

Answer = bytes
Method = Callable[["Session", bytes, wire.Reader], Answer]


class Rules(NamedTuple):
    """:ivar most: handles at once."""

    read_only: bool
    owners: Owners
    most: int


class Session:
    def __init__(self, tree: Tree, rules: Rules) -> None:
        self._tree, self._rules = tree, rules
        self._handles = Handles(rules.most)

    def answer(self, packet: bytes) -> Answer:
        """The answer to one packet (without its length).

        :raise wire.Broken: that is no SFTP.
        """
        reader = wire.Reader(packet)
        kind = reader.byte()
        if kind == wire.INIT:
            # Also in the middle: the guest mounts again on the same connection.
            self._handles.close_all()
            reader.number()
            more = (wire.text(part) for pair in wire.EXTENSIONS.items() for part in pair)
            return wire.packet(wire.VERSION, wire.number(3), *more)
        request = wire.number(reader.number())
        method = _METHODS.get(kind)
        if method is None:
            return _status(request, wire.UNSUPPORTED, "not offered")
        return self._try(method, request, reader)

    def close(self) -> None:
        self._handles.close_all()

    def _try(self, method: Method, request: bytes, reader: wire.Reader) -> Answer:
        try:
            if self._rules.read_only and method in _CHANGES:
                raise OSError(errno.EROFS, "the share is read-only")
            return method(self, request, reader)
        except OSError as error:
            return _status(request, wire.status_of(error), error.strerror or "failed")
        except (ValueError, OverflowError) as error:
            return _status(request, wire.BAD_MESSAGE, str(error))

    # --- files ----------------------------------------------------------------------------------

    def _open(self, request: bytes, reader: wire.Reader) -> Answer:
        path, asked, wanted = reader.text(), reader.number(), reader.attributes()
        writes = bool(asked & wire.WRITE_FLAG)
        flags = os.O_RDONLY
        if writes:
            flags = os.O_RDWR if asked & wire.READ_FLAG else os.O_WRONLY
        for ours, theirs in (
            (wire.APPEND_FLAG, os.O_APPEND),
            (wire.CREATE_FLAG, os.O_CREAT),
            (wire.TRUNCATE_FLAG, os.O_TRUNC),
            (wire.EXCLUSIVE_FLAG, os.O_EXCL),
        ):
            flags |= theirs if asked & ours else 0
        if self._rules.read_only and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            raise OSError(errno.EROFS, "the share is read-only")
        mode = 0o666 if wanted.mode is None else wanted.mode
        create = mode & _ALLOWED_MODE if flags & os.O_CREAT else 0
        handle = self._handles.add(File(self._tree.open_file(path, flags, create)))
        return wire.packet(wire.HANDLE, request, wire.text(handle))

    def _close(self, request: bytes, reader: wire.Reader) -> Answer:
        self._handles.close(reader.text())
        return _status(request)

    def _read(self, request: bytes, reader: wire.Reader) -> Answer:
        file, at = self._handles.file(reader.text()), reader.long()
        data = os.pread(file.fd, min(reader.number(), wire.MAX_DATA), at)
        if not data:
            return _status(request, wire.EOF, "end of file")
        return wire.packet(wire.DATA, request, wire.text(data))

    def _write(self, request: bytes, reader: wire.Reader) -> Answer:
        file, at = self._handles.file(reader.text()), reader.long()
        rest = memoryview(reader.text())
        while rest:
            written = os.pwrite(file.fd, rest, at)
            rest, at = rest[written:], at + written
        return _status(request)

    def _sync(self, request: bytes, reader: wire.Reader) -> Answer:
        os.fsync(self._handles.fd(reader.text()))
        return _status(request)

    # --- what they are --------------------------------------------------------------------------

    def _lstat(self, request: bytes, reader: wire.Reader) -> Answer:
        with self._tree.at(reader.text()) as fd:
            return self._attributes(request, os.fstat(fd))

    def _stat(self, request: bytes, reader: wire.Reader) -> Answer:
        with self._tree.at(reader.text(), follow=True) as fd:
            return self._attributes(request, os.fstat(fd))

    def _fstat(self, request: bytes, reader: wire.Reader) -> Answer:
        return self._attributes(request, os.fstat(self._handles.fd(reader.text())))

    def _attributes(self, request: bytes, status: os.stat_result) -> Answer:
        shown = wire.attributes(status, self._rules.owners.shown(status))
        return wire.packet(wire.ATTRS, request, shown)

    def _setstat(self, request: bytes, reader: wire.Reader) -> Answer:
        path, wanted = reader.text(), reader.attributes()
        if wanted.size is not None:
            fd = self._tree.open_file(path, os.O_WRONLY, 0)
            try:
                os.ftruncate(fd, wanted.size)
            finally:
                os.close(fd)
        with self._tree.at(path) as fd:
            self._change(fd, wanted)
        return _status(request)

    def _fsetstat(self, request: bytes, reader: wire.Reader) -> Answer:
        fd, wanted = self._handles.fd(reader.text()), reader.attributes()
        if wanted.size is not None:
            os.ftruncate(fd, wanted.size)
        self._change(fd, wanted)
        return _status(request)

    def _change(self, fd: int, wanted: wire.Attributes) -> None:
        """All but the size, of exactly what `fd` holds."""
        if wanted.owner is not None:
            self._rules.owners.check(os.fstat(fd), wanted.owner)
        if wanted.mode is not None:
            kept = os.fstat(fd).st_mode & stat.S_ISGID if _is_folder(fd) else 0
            self._tree.chmod(fd, wanted.mode & _ALLOWED_MODE | kept)
        if wanted.times is not None:
            self._tree.utime(fd, wanted.times)

    def _statvfs(self, request: bytes, reader: wire.Reader) -> Answer:
        with self._tree.at(reader.text()) as fd:
            return wire.packet(wire.EXTENDED_REPLY, request, wire.file_system(os.fstatvfs(fd)))

    def _fstatvfs(self, request: bytes, reader: wire.Reader) -> Answer:
        status = os.fstatvfs(self._handles.fd(reader.text()))
        return wire.packet(wire.EXTENDED_REPLY, request, wire.file_system(status))

    # --- names ----------------------------------------------------------------------------------

    def _opendir(self, request: bytes, reader: wire.Reader) -> Answer:
        fd = self._tree.open(reader.text(), os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
        handle = self._handles.add(Folder(fd))
        return wire.packet(wire.HANDLE, request, wire.text(handle))

    def _readdir(self, request: bytes, reader: wire.Reader) -> Answer:
        folder = self._handles.folder(reader.text())
        entries: list[bytes] = []
        while not entries and (names := folder.some(_NAMES)):
            for name in names:
                try:
                    status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if name == b"..":
                    # The share's own parent is nobody's business; a folder's is much the same.
                    status = os.fstat(folder.fd)
                shown = wire.attributes(status, self._rules.owners.shown(status))
                entries.append(wire.text(name) + wire.text(name) + shown)
        if not entries:
            return _status(request, wire.EOF, "end of folder")
        return wire.packet(wire.NAME, request, wire.number(len(entries)), *entries)

    def _realpath(self, request: bytes, reader: wire.Reader) -> Answer:
        return _name(request, b"/" + normal(reader.text()))

    def _readlink(self, request: bytes, reader: wire.Reader) -> Answer:
        with self._tree.parent(reader.text()) as (folder, name):
            return _name(request, os.readlink(name, dir_fd=folder))

    def _remove(self, request: bytes, reader: wire.Reader) -> Answer:
        with self._tree.parent(reader.text()) as (folder, name):
            os.unlink(name, dir_fd=folder)
        return _status(request)

    def _mkdir(self, request: bytes, reader: wire.Reader) -> Answer:
        path, wanted = reader.text(), reader.attributes()
        mode = 0o777 if wanted.mode is None else wanted.mode
        with self._tree.parent(path) as (folder, name):
            os.mkdir(name, mode & _ALLOWED_MODE, dir_fd=folder)
        return _status(request)

    def _rmdir(self, request: bytes, reader: wire.Reader) -> Answer:
        with self._tree.parent(reader.text()) as (folder, name):
            os.rmdir(name, dir_fd=folder)
        return _status(request)

    def _rename(self, request: bytes, reader: wire.Reader) -> Answer:
        old, new = reader.text(), reader.text()
        with self._tree.parent(old) as (source, was), self._tree.parent(new) as (target, name):
            kernel.rename_noreplace(source, was, target, name)
        return _status(request)

    def _replace(self, request: bytes, reader: wire.Reader) -> Answer:
        old, new = reader.text(), reader.text()
        with self._tree.parent(old) as (source, was), self._tree.parent(new) as (target, name):
            os.replace(was, name, src_dir_fd=source, dst_dir_fd=target)
        return _status(request)

    def _link(self, request: bytes, reader: wire.Reader) -> Answer:
        old, new = reader.text(), reader.text()
        with self._tree.parent(old) as (source, was), self._tree.parent(new) as (target, name):
            os.link(was, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        return _status(request)

    def _symlink(self, request: bytes, reader: wire.Reader) -> Answer:
        leads_to, path = reader.text(), reader.text()  # in OpenSSH's order, not the draft's
        with self._tree.parent(path) as (folder, name):
            os.symlink(leads_to, name, dir_fd=folder)
        return _status(request)

    def _extended(self, request: bytes, reader: wire.Reader) -> Answer:
        method = _EXTENDED.get(reader.text())
        if method is None:
            return _status(request, wire.UNSUPPORTED, "not offered")
        return self._try(method, request, reader)

    def _limits(self, request: bytes, _reader: wire.Reader) -> Answer:
        limits = (wire.MAX_PACKET, wire.MAX_DATA, wire.MAX_DATA, self._rules.most)
        return wire.packet(wire.EXTENDED_REPLY, request, struct.pack(">4Q", *limits))


_METHODS: dict[int, Method] = {
    wire.OPEN: Session._open,
    wire.CLOSE: Session._close,
    wire.READ: Session._read,
    wire.WRITE: Session._write,
    wire.LSTAT: Session._lstat,
    wire.FSTAT: Session._fstat,
    wire.SETSTAT: Session._setstat,
    wire.FSETSTAT: Session._fsetstat,
    wire.OPENDIR: Session._opendir,
    wire.READDIR: Session._readdir,
    wire.REMOVE: Session._remove,
    wire.MKDIR: Session._mkdir,
    wire.RMDIR: Session._rmdir,
    wire.REALPATH: Session._realpath,
    wire.STAT: Session._stat,
    wire.RENAME: Session._rename,
    wire.READLINK: Session._readlink,
    wire.SYMLINK: Session._symlink,
    wire.EXTENDED: Session._extended,
}
_EXTENDED: dict[bytes, Method] = {
    b"posix-rename@openssh.com": Session._replace,
    b"statvfs@openssh.com": Session._statvfs,
    b"fstatvfs@openssh.com": Session._fstatvfs,
    b"hardlink@openssh.com": Session._link,
    b"fsync@openssh.com": Session._sync,
    b"lsetstat@openssh.com": Session._setstat,
    b"limits@openssh.com": Session._limits,
}
_CHANGES = frozenset(
    {
        *(Session._write, Session._setstat, Session._fsetstat, Session._remove, Session._mkdir),
        *(Session._rmdir, Session._rename, Session._replace, Session._link, Session._symlink),
    }
)


def _status(request: bytes, code: int = wire.OK, message: str = "") -> Answer:
    words = wire.text(message.encode("utf-8", "replace")), wire.text(b"en")
    return wire.packet(wire.STATUS, request, wire.number(code), *words)


def _name(request: bytes, path: bytes) -> Answer:
    empty = wire.number(0)
    return wire.packet(wire.NAME, request, wire.number(1), wire.text(path), wire.text(path), empty)


def _is_folder(fd: int) -> bool:
    return stat.S_ISDIR(os.fstat(fd).st_mode)
