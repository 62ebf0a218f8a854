"""A house whose guests are on networks, seen from outside: what guests say and hear there, and the
processes that keep a network up.

Programs for guests are perl without its modules, which is what the micro guest has.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guesthouse.host.namespace.entering import tool_environment
from guesthouse.model.folders import resolve

from .conftest import House, until

ECHO = r"""
my $port = shift;
my $here = pack('Sna4x8', 2, $port, "\0" x 4);
socket(my $tcp, 2, 1, 0); setsockopt($tcp, 1, 2, 1); bind($tcp, $here) or die; listen($tcp, 99);
socket(my $udp, 2, 2, 0); bind($udp, $here) or die;
$SIG{CHLD} = 'IGNORE';
while (1) {
    my $ready = '';
    vec($ready, fileno $_, 1) = 1 for $tcp, $udp;
    select($ready, undef, undef, undef);
    if (vec($ready, fileno $udp, 1)) {
        my $from = recv($udp, my $data, 65536, 0);
        send($udp, $data, 0, $from);
    }
    if (vec($ready, fileno $tcp, 1)) {
        accept(my $end, $tcp);
        if (!fork) {
            while (sysread $end, my $data, 65536) { syswrite $end, $data }
            exit;
        }
    }
}
"""
"""Answers everything with itself, by TCP and UDP, at a port."""

SAY = r"""
my ($ip, $port, $seconds) = @ARGV;
alarm $seconds;
socket(my $end, 2, 1, 0);
connect($end, pack('SnC4x8', 2, $port, split /\./, $ip)) or exit 1;
syswrite $end, 'hello';
sysread $end, my $data, 99;
print $data;
"""
"""Says hello to an address and a port by TCP, and prints the answer."""

TALK = r"""
my ($ip, $port) = @ARGV;
sub note { open(my $file, '>', '/tmp/new'); print {$file} @_; close $file; rename '/tmp/new', '/tmp/talk' }
sub broken { note("broken: @_"); exit }
socket(my $end, 2, 1, 0);
connect($end, pack('SnC4x8', 2, $port, split /\./, $ip)) or broken("connect: $!");
for (my $number = 1; !-e '/tmp/hush'; $number++) {
    my $line = sprintf "%09d %s\n", $number, 'x' x 989;
    (syswrite($end, $line) // 0) == 1000 or broken("write $number: $!");
    my $back = '';
    while (length $back < 1000) {
        sysread($end, $back, 1000 - length $back, length $back) or broken("read $number: $!");
    }
    $back eq $line or broken("at $number came " . substr $back, 0, 9);
    note($number);
    select undef, undef, undef, 0.02;
}
note('whole');
"""  # noqa: E501
"""Numbered lines to an echo, one after another on one connection; /tmp/talk says how far it is."""

HEAR = r"""
$| = 1;
socket(my $all, 17, 3, 0x0300);
system 'ip link set eth0 promisc on';
print "ready\n";
alarm 100;
while (1) {
    my $from = recv($all, my $frame, 65536, 0);
    next if unpack('x10C', $from) == 4;    # its own answers, which quote what came
    while ($frame =~ /<([a-z0-9-]+)>/g) { print "$1\n"; exit if $1 eq 'last' }
}
"""
"""Prints the marks `<...>` of all frames that come, until `<last>`."""

SEND = r"""
open(my $file, '<', '/sys/class/net/eth0/ifindex');
my $card = pack('SnlSCCx8', 17, 3, <$file>, 0, 0, 6);
socket(my $wire, 17, 3, 0);
for (@ARGV) {
    send($wire, pack('H*', $_), 0, $card) or die "$!";
    select undef, undef, undef, 0.02;
}
"""
"""Sends frames, in hexadecimal digits, as they are."""


REFUSING = """#!/bin/sh
[ -e "${0%%/*}/refuse" ] && exit 1
exec %s "$@"
"""


class NetworkHouse(House):
    """:ivar tools: with the daemon's nft: the system's, but not while `refuse` lies beside it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        path = tool_environment()["PATH"]
        self.tools = folder / "tools"
        self.tools.mkdir()
        nft = self.tools / "nft"
        nft.write_text(REFUSING % shutil.which("nft", path=path))
        nft.chmod(0o755)
        self.env["PATH"] = f"{self.tools}{os.pathsep}{path}"

    @property
    def runtime(self) -> Path:
        return resolve(self.env, uid=os.geteuid()).runtime

    def record(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.runtime / name).read_text())
        return found

    @property
    def holder(self) -> int:
        return int(self.record("namespace.json")["pid"])

    @property
    def services(self) -> dict[str, int]:
        """Pids of what keeps the networks up, by name."""
        services = self.record("network-services.json")["services"]
        return {name: int(service["pid"]) for name, service in services.items()}

    def inside(self, *argv: str) -> str:
        """What a program prints that the house's root runs in the house's namespace."""
        spaces = ["--net", "--mount"]
        if self.record("namespace.json")["user"] is not None:
            spaces += ["--user", "--preserve-credentials"]
        argv = ("nsenter", f"--target={self.holder}", *spaces, "--", *argv)
        done = subprocess.run(
            argv, env=tool_environment(), check=True, capture_output=True, timeout=60
        )
        return done.stdout.decode()

    @contextmanager
    def without_rules(self) -> Iterator[None]:
        """The control run of whatever rules forbid; afterwards they are there again.

        The house would load them at once: meanwhile its nft refuses.
        """
        assert "table" in self.inside("nft", "list", "ruleset")
        refuses = self.tools / "refuse"
        refuses.touch()
        try:
            self.inside("nft", "flush", "ruleset")
            yield
            assert "table" not in self.inside("nft", "list", "ruleset")
        finally:
            refuses.unlink()
            self.run("daemon", "restart")
            assert "drop" in self.inside("nft", "list", "ruleset")

    def launch(self, name: str, network: str, *more: str) -> None:
        self.run("launch", "micro", name, "--memory", "128M", "--network", network, *more)

    def card(self, name: str, network: str) -> dict[str, Any]:
        """A guest's card there: mac, address4, address6."""
        members = self.json("network", "info", network)["members"]
        card: dict[str, Any] = next(one for one in members if one["guest"] == name)
        return card

    def sh(self, name: str, script: str, *, ok: bool = True) -> str:
        return self.out("exec", name, "--", "sh", "-c", script, ok=ok)

    def perl(self, name: str, program: str, *args: str) -> str:
        return self.out("exec", name, "--", "perl", "-e", program, *args, ok=False)

    def begin(self, name: str, program: str, *args: str) -> None:
        """Start a program that goes on in the guest."""
        script = 'setsid perl -e "$@" </dev/null >/dev/null 2>&1 &'
        self.run("exec", name, "--", "sh", "-c", script, "-", program, *args)

    def pings(self, name: str, whom: str, *, seconds: int = 2) -> bool:
        """Whether one echo of at most four is answered."""
        script = f"for i in 1 2 3 4; do ping -c 1 -W {seconds} {whom} && exit; done; exit 1"
        return self.run("exec", name, "--", "sh", "-c", script, ok=False).returncode == 0

    def reaches(self, name: str, whom: str) -> None:
        """Wait until it does: addresses come some time after a guest came up."""
        until(lambda: self.pings(name, whom), seconds=120, say=f"{name} reaches {whom}")

    def asks(self, name: str, about: str) -> set[str]:
        """The addresses that a guest is told of a name."""
        said = self.sh(name, f"nslookup {about}", ok=False).partition("Name:")[2]
        return set(re.findall(r"Address: (\S+)", said))

    @contextmanager
    def heard(self, name: str) -> Iterator[list[str]]:
        """Marks of the frames that come to a guest, up to `last`; they are there at the end."""
        marks: list[str] = []
        process = self.popen("exec", name, "--", "perl", "-e", HEAR)
        assert process.stdout
        try:
            line = process.stdout.readline()
            assert line == b"ready\n", line
            yield marks
            marks += process.communicate(timeout=120)[0].decode().split()
            assert marks[-1:] == ["last"], marks
        finally:
            process.kill()
            process.wait()

    def sends(self, name: str, *frames: bytes) -> None:
        self.run("exec", name, "--", "perl", "-e", SEND, *(frame.hex() for frame in frames))


@contextmanager
def network_house() -> Iterator[NetworkHouse]:
    made = NetworkHouse(Path(tempfile.mkdtemp(prefix="gh-")))
    try:
        yield made
    finally:
        made.close()


def answers(ip: str, port: int, kind: int = socket.SOCK_STREAM) -> bool:
    """Whether an echo answers at a port of the host."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, kind) as end:
        end.settimeout(10)
        try:
            end.connect((ip, port))
            end.sendall(b"hello")
            return end.recv(100) == b"hello"
        except OSError:
            return False


def free_port(ip: str = "127.0.0.1", kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, kind) as end:
        end.bind((ip, 0))
        return int(end.getsockname()[1])
