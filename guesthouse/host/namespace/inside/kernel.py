"""Calls of the kernel that Python 3.11 does not offer. Every one raises OSError."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

NEWNS = 0x0002_0000
NEWUSER = 0x1000_0000
NEWNET = 0x4000_0000

MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_BIND, MS_MOVE, MS_REC, MS_SLAVE = 4096, 8192, 16384, 1 << 19

_PR_SET_DUMPABLE, _PR_SET_NAME = 4, 15
# One number on all architectures since Linux 5.6 (asm-generic/unistd.h).
_PIDFD_GETFD = 438
# linux/nsfs.h, linux/if_tun.h, linux/sockios.h
_NS_GET_USERNS = 0xB701
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x4004_54CA, 0x4004_54CB, 0x4004_54CC
_TUNGETDEVNETNS = 0x54E3
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFREQ = "16sH22x"
_IFF_UP = 1
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000

# linux/if_ether.h, linux/if_packet.h, asm-generic/socket.h
_ETH_P_ALL, _SOL_PACKET, _PACKET_AUXDATA = 3, 263, 8
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35

TUN = "/dev/net/tun"
TUN_NUMBERS = (10, 200)
"""Major and minor of TUN (Documentation/admin-guide/devices.txt)."""

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` name for new ones."""
    _checked(_libc.unshare(flags))


def setns(fd: int, kind: int) -> None:
    """Enter the namespace that `fd` refers to. Only with a single thread."""
    _checked(_libc.setns(fd, kind))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    words = [word.encode() for word in (source, target, kind)]
    _checked(_libc.mount(*words, ctypes.c_ulong(flags), data.encode()))


def set_name(name: str) -> None:
    """What ps(1) shows of this process; at most 15 bytes."""
    _checked(_libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0))


def stay_visible() -> None:
    """Let our user go on looking into /proc/PID of this process after it changed its rights."""
    _checked(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))


def become_root() -> None:
    """Be uid and gid 0 of the user namespace just entered or made."""
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    stay_visible()


def take_fd(pidfd: int, number: int) -> int:
    """A duplicate of descriptor `number` of another process. Needs the right to trace it."""
    return _checked(
        _libc.syscall(
            ctypes.c_long(_PIDFD_GETFD),
            ctypes.c_int(pidfd),
            ctypes.c_int(number),
            ctypes.c_uint(0),
        )
    )


def owner_of(namespace: int) -> int:
    """A descriptor of the user namespace that owns this one. EPERM: it is above our own."""
    return fcntl.ioctl(namespace, _NS_GET_USERNS)


def network_of_tap(tap: int) -> int:
    """A descriptor of the network namespace in which this open tap lives (Linux 5.5)."""
    return fcntl.ioctl(tap, _TUNGETDEVNETNS)


def open_tap(name: str, *, persist: bool) -> int:
    """Open the tap `name` in our network namespace; it is made if it is not there.

    With `persist` it stays when it is closed, and belongs to uid 0 of our user namespace: without
    an owner anybody in this network namespace might attach to it. EBUSY: somebody has it open.
    """
    tap = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack(_IFREQ, name.encode(), flags))
        if persist:
            fcntl.ioctl(tap, _TUNSETOWNER, 0)
            fcntl.ioctl(tap, _TUNSETPERSIST, 1)
    except BaseException:
        os.close(tap)
        raise
    return tap


def sniff(name: str, *, room: int) -> socket.socket:
    """A socket that gets a copy of every packet of that interface, with the kernel's time and the
    packet's true length.

    :param room: bytes that may wait in it; without power over the host it is `rmem_max` at most.
    """
    # Without a protocol nothing comes yet.
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        packets.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        packets.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        try:
            packets.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, room)
        except PermissionError:
            packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        packets.bind((name, _ETH_P_ALL))
    except BaseException:
        packets.close()
        raise
    return packets


def link_up(name: str, via: int) -> None:
    """Set a network interface up. `via`: any socket of that network namespace."""
    request = struct.pack(_IFREQ, name.encode(), 0)
    _, flags = struct.unpack(_IFREQ, fcntl.ioctl(via, _SIOCGIFFLAGS, request))
    fcntl.ioctl(via, _SIOCSIFFLAGS, struct.pack(_IFREQ, name.encode(), flags | _IFF_UP))
