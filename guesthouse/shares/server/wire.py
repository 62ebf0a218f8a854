"""SFTP version 3 in bytes: draft-ietf-secsh-filexfer-02, and OpenSSH's PROTOCOL for extensions."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

INIT, VERSION = 1, 2
OPEN, CLOSE, READ, WRITE = 3, 4, 5, 6
LSTAT, FSTAT, SETSTAT, FSETSTAT = 7, 8, 9, 10
OPENDIR, READDIR, REMOVE, MKDIR, RMDIR = 11, 12, 13, 14, 15
REALPATH, STAT, RENAME, READLINK, SYMLINK = 16, 17, 18, 19, 20
STATUS, HANDLE, DATA, NAME, ATTRS = 101, 102, 103, 104, 105
EXTENDED, EXTENDED_REPLY = 200, 201

OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE = 0, 1, 2, 3, 4
BAD_MESSAGE, UNSUPPORTED = 5, 8

READ_FLAG, WRITE_FLAG, APPEND_FLAG = 0x01, 0x02, 0x04
CREATE_FLAG, TRUNCATE_FLAG, EXCLUSIVE_FLAG = 0x08, 0x10, 0x20

MAX_PACKET = 256 << 10
"""Bytes of one packet; the same as OpenSSH's SFTP_MAX_MSG_LENGTH."""
MAX_DATA = MAX_PACKET - 1024
"""Bytes that one read or write carries."""

EXTENSIONS: Mapping[bytes, bytes] = MappingProxyType(
    {
        b"posix-rename@openssh.com": b"1",
        b"statvfs@openssh.com": b"2",
        b"fstatvfs@openssh.com": b"2",
        b"hardlink@openssh.com": b"1",
        b"fsync@openssh.com": b"1",
        b"lsetstat@openssh.com": b"1",
        b"limits@openssh.com": b"1",
    }
)

_SIZE, _OWNER, _MODE, _TIMES, _MORE = 0x1, 0x2, 0x4, 0x8, 0x8000_0000
_BY_ERRNO = {
    errno.ENOENT: NO_SUCH_FILE,
    errno.ENOTDIR: NO_SUCH_FILE,
    errno.EBADF: NO_SUCH_FILE,
    errno.ELOOP: PERMISSION_DENIED,
    errno.EXDEV: PERMISSION_DENIED,
    errno.EPERM: PERMISSION_DENIED,
    errno.EACCES: PERMISSION_DENIED,
    errno.EROFS: PERMISSION_DENIED,
    errno.EFAULT: PERMISSION_DENIED,
    errno.EINVAL: BAD_MESSAGE,
    errno.ENAMETOOLONG: BAD_MESSAGE,
    errno.ENOSYS: UNSUPPORTED,
    errno.EOPNOTSUPP: UNSUPPORTED,
}


class Broken(Exception):
    """The other side does not speak the protocol; the connection ends."""


class Attributes(NamedTuple):
    """What a client wants a file to be; None leaves it. Times in whole seconds."""

    size: int | None = None
    owner: tuple[int, int] | None = None
    mode: int | None = None
    times: tuple[int, int] | None = None


class Reader:
    """Takes the fields of one packet. :raise Broken: it ends too early."""

    def __init__(self, packet: bytes) -> None:
        self._packet = packet
        self._at = 0

    def byte(self) -> int:
        return self._take(1)[0]

    def number(self) -> int:
        value: int = struct.unpack(">I", self._take(4))[0]
        return value

    def long(self) -> int:
        value: int = struct.unpack(">Q", self._take(8))[0]
        return value

    def text(self) -> bytes:
        return self._take(self.number())

    def attributes(self) -> Attributes:
        flags = self.number()
        size = self.long() if flags & _SIZE else None
        owner = (self.number(), self.number()) if flags & _OWNER else None
        mode = self.number() if flags & _MODE else None
        times = (self.number(), self.number()) if flags & _TIMES else None
        if flags & _MORE:
            for _ in range(min(self.number(), MAX_PACKET)):
                self.text(), self.text()
        return Attributes(size, owner, mode, times)

    def _take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._packet):
            raise Broken("a packet ends too early")
        piece = self._packet[self._at : end]
        self._at = end
        return piece


def packet(kind: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">IB", len(body) + 1, kind) + body


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def text(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def attributes(status: os.stat_result, owner: tuple[int, int]) -> bytes:
    """Times before 1970 or after 2106 are shown as the nearest that fits."""
    flags = _SIZE | _OWNER | _MODE | _TIMES
    return struct.pack(
        ">IQIIIII",
        flags,
        status.st_size,
        *owner,
        status.st_mode,
        _seconds(status.st_atime_ns),
        _seconds(status.st_mtime_ns),
    )


def file_system(status: os.statvfs_result) -> bytes:
    """Answer to statvfs@openssh.com."""
    flags = (1 if status.f_flag & os.ST_RDONLY else 0) | 2
    values = (status.f_bsize, status.f_frsize, status.f_blocks, status.f_bfree, status.f_bavail)
    files = (status.f_files, status.f_ffree, status.f_favail)
    wide = (value & 0xFFFF_FFFF_FFFF_FFFF for value in (*values, *files, status.f_fsid))
    return struct.pack(">11Q", *wide, flags, status.f_namemax)


def status_of(error: OSError) -> int:
    return _BY_ERRNO.get(error.errno or 0, FAILURE)


def _seconds(nanoseconds: int) -> int:
    return min(max(nanoseconds // 1_000_000_000, 0), 0xFFFF_FFFF)
