"""A card's packets, read from a packet socket inside the house's namespace. See packet(7).

The socket is read only while there is room here. What comes beyond that the kernel throws away and
counts, so however slow whoever reads is, neither the daemon's memory grows nor the guest waits.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Sequence

from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.network.capture import Counts, Packet

ROOM = 4 << 20
"""Bytes of packets that wait here; as many again may wait in the socket."""
_AT_ONCE = 64
"""Packets read before others have their turn."""
_SOL_PACKET, _AUXDATA, _STATISTICS = 263, 8, 6
_TIMESTAMPNS = 35
_OUTGOING = 4
_AUXILIARY = struct.Struct("=IIIHHHH")
_TIME = struct.Struct("@ll")
_ANCILLARY = socket.CMSG_SPACE(_AUXILIARY.size) + socket.CMSG_SPACE(_TIME.size)
_VLAN_VALID, _VLAN_TPID_VALID = 1 << 4, 1 << 6
_VLAN = 0x8100
_OVERHEAD = 256
"""Bytes that a waiting packet takes beside its own."""


async def sniff(namespace: HouseNamespace, tap: str, *, snaplen: int) -> Sniffer:
    """Begin to capture. :raise NotFound: there is no such tap. Raises as `Porter.sniff`."""
    fd = await namespace.sniff(tap, room=ROOM)
    return Sniffer(socket.socket(fileno=fd), snaplen=snaplen)


class Sniffer:
    """Keeps the contract of `capture.Packets`.

    :param packets: bound to an interface, with auxiliary data and times; it is ours now.
    """

    def __init__(self, packets: socket.socket, *, snaplen: int, room: int = ROOM) -> None:
        packets.setblocking(False)
        self._socket, self._snaplen, self._room = packets, snaplen, room
        self._waiting: list[Packet] = []
        self._held = self._received = self._lost = 0
        self._arrived = asyncio.Event()
        self._reads = self._ended = False

    async def some(self) -> Sequence[Packet]:
        self._listen()
        while not self._waiting and not self._ended:
            self._arrived.clear()
            await self._arrived.wait()
        found, self._waiting, self._held = self._waiting, [], 0
        self._listen()
        return found

    def counts(self) -> Counts:
        self._count()
        return Counts(self._received, self._lost)

    def close(self) -> None:
        """What has come and was not taken is gone."""
        self._end()
        self._waiting = []

    def __del__(self) -> None:
        """Whoever asked may be gone before the first packet was asked for."""
        self._socket.close()

    def _listen(self) -> None:
        if not self._reads and not self._ended:
            asyncio.get_running_loop().add_reader(self._socket, self._read)
            self._reads = True

    def _stop_listening(self) -> None:
        if self._reads:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._reads = False

    def _read(self) -> None:
        for _ in range(_AT_ONCE):
            if self._held >= self._room:
                self._stop_listening()
                break
            try:
                data, about, _flags, address = self._socket.recvmsg(self._snaplen, _ANCILLARY)
            except BlockingIOError:
                break
            except OSError:
                # Its interface went down, which a tap does only when it is taken away.
                self._end()
                break
            self._waiting.append(_packet(data, about, address[2], self._snaplen))
            self._held += len(data) + _OVERHEAD
        if self._waiting or self._ended:
            self._arrived.set()

    def _end(self) -> None:
        if self._ended:
            return
        self._stop_listening()
        self._count()
        self._ended = True
        self._socket.close()
        self._arrived.set()

    def _count(self) -> None:
        """The kernel begins at 0 again whenever it is asked."""
        if not self._ended:
            counted = self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 8)
            packets, drops = struct.unpack("=II", counted)
            self._received += packets
            self._lost += drops


def _packet(
    data: bytes, about: Sequence[tuple[int, int, bytes]], kind: int, snaplen: int
) -> Packet:
    """:param about: ancillary data: the kernel's time, and what it took out of the packet."""
    when, length = time.time_ns(), len(data)
    for level, name, content in about:
        if (level, name) == (socket.SOL_SOCKET, _TIMESTAMPNS) and len(content) >= _TIME.size:
            seconds, nanoseconds = _TIME.unpack_from(content)
            when = seconds * 1_000_000_000 + nanoseconds
        elif (level, name) == (_SOL_PACKET, _AUXDATA) and len(content) >= _AUXILIARY.size:
            status, length, _cut, _mac, _net, tag, protocol = _AUXILIARY.unpack_from(content)
            if status & _VLAN_VALID:
                protocol = protocol if status & _VLAN_TPID_VALID else _VLAN
                data = (data[:12] + struct.pack("!HH", protocol, tag) + data[12:])[:snaplen]
                length += 4
    return Packet(when, data, length, inbound=kind == _OUTGOING)
