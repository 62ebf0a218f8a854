"""Whom the host asks for names, and when that changes (a VPN that comes or goes).

The uplink has a resolver of its own at `UPSTREAM`, which asks the first one that the host's
resolv.conf names, also one that listens on the host's loopback; it reads that file again within a
second of a change. What is left to do here: the further ones that stand in it, those of a file
that the uplink cannot see from its sandbox, and what is remembered of answers from before.
"""

from __future__ import annotations

import asyncio
import ctypes
import ipaddress
import os
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PATH = Path("/etc/resolv.conf")
UPSTREAM = {4: "10.0.2.3", 6: "fd00::3"}

VISIBLE = (Path("/etc"), Path("/run"))
"""What slirp4netns shows itself in its sandbox (its sandbox.c)."""
_HOPS = 8
_MOST_SERVERS = 3  # resolv.conf(5): MAXNS

# linux/inotify.h
_MODIFY, _CLOSE_WRITE, _MOVED, _CREATE, _DELETE = 0x2, 0x8, 0xC0, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF = 0x400, 0x800
_IN_FOLDER = _CLOSE_WRITE | _MOVED | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
_ON_FILE = _MODIFY | _CLOSE_WRITE | _DELETE_SELF | _MOVE_SELF
_EVENT = struct.Struct("iIII")


class Resolver(NamedTuple):
    """:ivar servers: that the file names, in its order. :ivar seen: by the uplink as well.

    :ivar stamp: another one after each change, also of one that shows only beside the file.
    """

    servers: tuple[str, ...] = ()
    seen: bool = True
    stamp: tuple[tuple[str, int, int], ...] = ()


def look(path: Path = PATH, visible: Sequence[Path] = VISIBLE) -> Resolver:
    """What stands in the file now; nothing where there is none. Blocks shortly."""
    text = ""
    with suppress(OSError):
        text = path.read_bytes()[:65536].decode(errors="replace")
    words = [line.split() for line in text.splitlines()]
    servers = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
    way = hops(path)
    # systemd-resolved tells in a file beside the one with its own address whom it asks.
    files = dict.fromkeys([*way, *(hop.with_name(PATH.name) for hop in way)])
    stamps = []
    for file in files:
        with suppress(OSError):
            found = file.stat()
            stamps.append((str(file), found.st_ino, found.st_mtime_ns))
    real = Path(os.path.realpath(path))
    seen = any(real.is_relative_to(folder) for folder in visible)
    return Resolver(tuple(servers[:_MOST_SERVERS]), seen, tuple(stamps))


def hops(path: Path) -> list[Path]:
    """The file, and where each link on the way leads."""
    found = [path]
    while len(found) < _HOPS and found[-1].is_symlink():
        here = found[-1]
        found.append(Path(os.path.normpath(here.parent / here.readlink())))
    return found


def servers_text(resolver: Resolver, *, ipv6: bool) -> str:
    """For dnsmasq's `servers-file`: whom to ask, one after the other as the host does.

    :param ipv6: the kernel has it.
    """
    asked: dict[str, None] = {}
    met: set[int] = set()
    for server in resolver.servers:
        try:
            address = ipaddress.ip_address(server)
        except ValueError:
            continue
        version = address.version
        if version not in met and resolver.seen:
            # The first of its kind is asked by the uplink, wherever on the host it listens.
            met.add(version)
            asked[UPSTREAM[version]] = None
        elif not (address.is_loopback or address.is_link_local):
            asked[str(address)] = None
    lines = list(asked) or list(UPSTREAM.values())
    return "".join(f"server={one}\n" for one in lines if ipv6 or ":" not in one)


class ResolverWatch:
    """Tells at once, once or more, when the file or what it leads to may have changed.

    It looks at the folders, since most programs put a new file in the old one's place, and at the
    file, since in a container it is a mount of one from elsewhere.
    """

    def __init__(self, changed: Callable[[], None], path: Path = PATH) -> None:
        self._changed, self._path = changed, path
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._loop = asyncio.get_running_loop()
        self._fd, self._names = -1, frozenset[bytes]()
        self._begin()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _begin(self) -> None:
        self.close()
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            return  # the user has no inotify left: what is remembered is old for a while
        names = {PATH.name}
        for hop in hops(self._path):
            names.add(hop.name)
            self._add(hop, _ON_FILE)
            folder = hop.parent
            while not folder.is_dir():
                # It comes with the program that will write there.
                names.add(folder.name)
                folder = folder.parent
            self._add(folder, _IN_FOLDER)
        self._names = frozenset(os.fsencode(name) for name in names)
        self._loop.add_reader(self._fd, self._read)

    def _add(self, path: Path, mask: int) -> None:
        self._libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(mask))

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        if any(not name or name in self._names for name in _names(data)):
            self._begin()  # the way to the file may be another one
            self._changed()


def _names(data: bytes) -> list[bytes]:
    """Of the files that events are about; empty for the watched thing itself."""
    found, at = [], 0
    while at < len(data):
        size = _EVENT.unpack_from(data, at)[3]
        found.append(data[at + _EVENT.size : at + _EVENT.size + size].rstrip(b"\0"))
        at += _EVENT.size + size
    return found
