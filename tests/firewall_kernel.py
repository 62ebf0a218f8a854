"""A house in network namespaces, without guests: frames go in at one end and are looked for at the
others. Needs root.

Cards are veth pairs; the far ends have no addresses, so that nobody but the rules answers.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import json
import os
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from guesthouse.model.network import NetworkKind
from guesthouse.network.rules.counters import LIST, read_counters
from guesthouse.network.rules.ruleset import Ruleset
from guesthouse.network.rules.text import Count

T = TypeVar("T")
OUTSIDE = "outside"
UPLINK_MAC = "52:55:0a:00:02:02"
TAP0_MAC = "52:67:68:ff:00:01"
CLONE_NEWNET = 0x40000000
ETHERTYPES = {4: 0x0800, 6: 0x86DD}


class Space:
    """A network namespace, as long as a process of ours sleeps in it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", "mount -t sysfs none /sys; echo; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout
        self._process.stdout.readline()
        self.pid = self._process.pid

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def run(self, *argv: str, text: str = "") -> subprocess.CompletedProcess[str]:
        command = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--", *argv]
        return subprocess.run(
            command, input=text, text=True, capture_output=True, timeout=60, check=False
        )

    def ok(self, *argv: str, text: str = "") -> str:
        done = self.run(*argv, text=text)
        assert done.returncode == 0, f"{argv}: {done.stderr or done.stdout}"
        return done.stdout

    def inside(self, action: Callable[[], T]) -> T:
        """What `action` gives when a thread does it in there; sockets stay there."""
        found: list[T] = []

        def work() -> None:
            fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(fd)
            found.append(action())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return found[0]


def _listen(device: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind((device, 0))
    return sock


class Frame(NamedTuple):
    """:ivar at: tap of the card that saw it, or `OUTSIDE`."""

    at: str
    data: bytes

    @property
    def reset_of(self) -> int:
        """The port whose connection a TCP reset refuses; 0 for all else."""
        version, start = self.data[14] >> 4, 14
        protocol = self.data[start + (9 if version == 4 else 6)]
        tcp = self.data[start + (20 if version == 4 else 40) :]
        if protocol != 6 or len(tcp) < 20 or not tcp[13] & 4:
            return 0
        return int.from_bytes(tcp[2:4], "big")


class KernelHouse:
    """Networks and cards, for real. Any ruleset about the same ones can be loaded."""

    def __init__(self) -> None:
        self.space = Space()
        self._spaces = [self.space]
        self._sockets: dict[str, socket.socket] = {}
        self._macs: dict[str, str] = {}

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        for space in self._spaces:
            space.close()

    def build(self, ruleset: Ruleset) -> None:
        lines = ["link set lo up"]
        for number, network in enumerate(ruleset.networks, 1):
            name, mac = network.bridge, f"52:67:68:fe:00:{number:02x}"
            self._macs[name] = mac
            lines += [
                f"link add {name} address {mac} type bridge stp_state 0 forward_delay 0",
                f"link set {name} up addrgenmode none",
                f"address add fe80::1/64 dev {name} nodad",
            ]
            if network.subnet4:
                size = network.subnet4.partition("/")[2]
                lines.append(f"address add {network.gateway4}/{size} dev {name}")
            if network.subnet6:
                lines.append(f"address add {network.gateway6}/64 dev {name} nodad")
            if network.port:
                lines += self._wire(network.port, f"52:67:68:fd:00:{number:02x}")
                lines.append(f"link set {network.port} master {name} up")
        for card in ruleset.cards:
            bridge = ruleset.network_of[card.network].bridge
            lines += self._wire(card.tap, card.mac)
            lines += [f"link set {card.tap} master {bridge} up"]
            if ruleset.network_of[card.network].kind is not NetworkKind.BRIDGED:
                lines += [
                    f"neigh add {address} lladdr {card.mac} dev {bridge} nud permanent"
                    for address in (*card.addresses, *card.all_link_locals)
                ]
        lines += self._wire("tap0", UPLINK_MAC, at=OUTSIDE)
        lines += [
            f"link set tap0 address {TAP0_MAC} up",
            "address add 10.0.2.100/24 dev tap0",
            "address add fd00::100/64 dev tap0 nodad",
            f"neigh add 10.0.2.2 lladdr {UPLINK_MAC} dev tap0 nud permanent",
            f"neigh add fd00::2 lladdr {UPLINK_MAC} dev tap0 nud permanent",
            "route add default via 10.0.2.2",
            "route add default via fd00::2",
        ]
        self.space.ok("ip", "-batch", "-", text="\n".join(lines) + "\n")
        stations = [(card.tap, card.mac) for card in ruleset.cards]
        stations += [(n.port, self.mac(n.port)) for n in ruleset.networks if n.port]
        for device, mac in stations:
            # A lie that gets through in a control run must not move a card for the bridge.
            self.space.ok("bridge", "link", "set", "dev", device, "learning", "off")
            self.space.ok("bridge", "fdb", "add", mac, "dev", device, "master", "static")
        self.settings(
            {
                "net.ipv4.ip_forward": "1",
                "net.ipv6.conf.all.forwarding": "1",
                # Every refusal is to be seen, and none counted as too many.
                "net.ipv4.icmp_ratelimit": "0",
                "net.ipv4.icmp_msgs_per_sec": "100000",
                "net.ipv4.icmp_msgs_burst": "100000",
                "net.ipv6.icmp.ratelimit": "0",
                "net.ipv4.conf.all.rp_filter": "0",
            }
        )

        # The kernel takes up to a second to notice that a far end is up.
        wait_for(lambda: self._forwarding() == {device for device, _ in stations})

    def _forwarding(self) -> set[str]:
        links = json.loads(self.space.ok("bridge", "-j", "link"))
        return {link["ifname"] for link in links if link["state"] == "forwarding"}

    def _wire(self, device: str, mac: str, *, at: str = "") -> list[str]:
        """Lines that make `device`, whose other end is in a namespace of its own."""
        space = Space()
        self._spaces.append(space)
        far = f"peer name eth0 address {mac} netns {space.pid}"
        self.space.ok(*f"ip link add {device} type veth {far}".split())
        space.ok("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        space.ok("ip", "link", "set", "eth0", "up")
        self._sockets[at or device] = space.inside(lambda: _listen("eth0"))
        self._macs[at or device] = mac
        return [f"link set {device} addrgenmode none"]

    def settings(self, values: dict[str, str]) -> None:
        present = {k: v for k, v in values.items() if self._has(k)}
        self.space.ok("sysctl", "-qw", *(f"{key}={value}" for key, value in present.items()))

    def _has(self, key: str) -> bool:
        return not self.space.run("test", "-e", f"/proc/sys/{key.replace('.', '/')}").returncode

    def load(self, text: str) -> None:
        self.space.ok("nft", "-f", "-", text=text)

    def counters(self) -> dict[str, Count]:
        return read_counters(self.space.ok(*LIST).encode())

    def mac(self, device: str) -> str:
        return self._macs[device]

    def send(self, at: str, frame: bytes) -> None:
        self._sockets[at].send(frame)

    def drain(self) -> None:
        """Forget what was seen so far."""
        for _ in self._arriving(0.0):
            pass

    def seen(self, settle: float = 0.15) -> list[Frame]:
        """What arrived at the far ends until nothing has for `settle` seconds."""
        return list(self._arriving(settle))

    def _arriving(self, settle: float) -> Iterator[Frame]:
        names = {sock: name for name, sock in self._sockets.items()}
        while ready := select.select(list(names), [], [], settle)[0]:
            for sock in ready:
                data, address = sock.recvfrom(65536)
                if address[2] != socket.PACKET_OUTGOING:
                    yield Frame(names[sock], data)


@contextlib.contextmanager
def kernel_house(ruleset: Ruleset) -> Iterator[KernelHouse]:
    house = KernelHouse()
    try:
        house.build(ruleset)
        yield house
    finally:
        house.close()


# --- frames -----------------------------------------------------------------------------------


def ethernet(source: str, destination: str, kind: int, body: bytes) -> bytes:
    def octets(mac: str) -> bytes:
        return bytes.fromhex(mac.replace(":", ""))

    return octets(destination) + octets(source) + struct.pack("!H", kind) + body


def ip(source: str, destination: str, protocol: int, body: bytes) -> bytes:
    """A packet; of `body` the checksum is filled in, at the place that `protocol` has for it."""
    one, two = ipaddress.ip_address(source).packed, ipaddress.ip_address(destination).packed
    place = {1: 2, 6: 16, 17: 6, 58: 2}.get(protocol)
    if place is not None:
        pseudo = (
            b"" if protocol == 1 else one + two + struct.pack("!IHBB", len(body), 0, 0, protocol)
        )
        total = _checksum(pseudo + body)
        body = body[:place] + struct.pack("!H", total or 0xFFFF) + body[place + 2 :]
    if len(one) == 16:
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, 255) + one + two + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0) + one + two
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + body


def udp(source: int, destination: int, data: bytes) -> bytes:
    return struct.pack("!HHHH", source, destination, 8 + len(data), 0) + data


def syn(source: int, destination: int, data: bytes) -> bytes:
    return struct.pack("!HHIIBBHHH", source, destination, 1, 0, 0x50, 2, 64240, 0, 0) + data


def echo(version: int, ident: int, data: bytes, kind: int | None = None) -> bytes:
    """An echo request, or another type of ICMP of the same shape."""
    asked = {4: 8, 6: 128}[version] if kind is None else kind
    return struct.pack("!BBHHH", asked, 0, 0, ident, 1) + data


def arp(mac: str, address: str, asked: str, *, operation: int = 1) -> bytes:
    sender = bytes.fromhex(mac.replace(":", "")) + ipaddress.ip_address(address).packed
    target = bytes(6) + ipaddress.ip_address(asked).packed
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + sender + target


def _checksum(data: bytes) -> int:
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def wait_for(condition: Callable[[], bool], deadline: float = 10.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
