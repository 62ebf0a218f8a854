"""Sockets of netfilter (linux/netfilter/nfnetlink.h), opened where they are to listen.

They are bound here, as root of the namespace; whoever gets them only reads. Every call raises
OSError.
"""

from __future__ import annotations

import os
import socket
import struct

_NETLINK_NETFILTER = 12
_CHANGES = 7
"""Multicast group of nf_tables: NFNLGRP_NFTABLES."""
# nfnetlink_log.h: NFNL_SUBSYS_ULOG, NFULNL_MSG_CONFIG, its attributes, and what they say.
_CONFIG = 4 << 8 | 1
_COMMAND, _MODE, _TIMEOUT = 1, 2, 4
_BIND, _COPY_PACKET = 1, 2
_HEADERS = 128
"""Bytes of each packet that are of interest: addresses and ports."""
_SOON = 20
"""Hundredths of a second that the kernel may gather packets in."""
# linux/netlink.h: NLM_F_REQUEST, NLM_F_ACK, NLMSG_ERROR
_REQUEST_WITH_ACK, _ERROR = 1 | 4, 2
_HEAD = "=IHHII"


def changes() -> int:
    """A socket that tells of every change of the rules here."""
    with _opened() as found:
        found.bind((0, 1 << (_CHANGES - 1)))
        return found.detach()


def packets(group: int) -> int:
    """A socket that gets the packets logged to `group`. EBUSY: somebody else has it."""
    with _opened() as found:
        found.bind((0, 0))
        # The kernel waits until that many are there, or the time is over.
        for attribute, value in (
            (_COMMAND, struct.pack("=B", _BIND)),
            (_MODE, struct.pack("!IBx", _HEADERS, _COPY_PACKET)),
            (_TIMEOUT, struct.pack("!I", _SOON)),
        ):
            found.send(_request(group, attribute, value))
            if code := _acknowledged(found):
                raise OSError(-code, os.strerror(-code))
        return found.detach()


def _acknowledged(found: socket.socket) -> int:
    """What the kernel says to the last request; packets may come before that."""
    while True:
        data = found.recv(64 << 10)
        if struct.unpack_from(_HEAD, data)[1] == _ERROR:
            code: int = struct.unpack_from("=i", data, struct.calcsize(_HEAD))[0]
            return code


def _opened() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    return socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)


def _request(group: int, attribute: int, value: bytes) -> bytes:
    padded = value + bytes(-len(value) % 4)
    body = struct.pack("!BBH", socket.AF_UNSPEC, 0, group)
    body += struct.pack("=HH", 4 + len(value), attribute) + padded
    length = struct.calcsize(_HEAD) + len(body)
    return struct.pack(_HEAD, length, _CONFIG, _REQUEST_WITH_ACK, 1, 0) + body
