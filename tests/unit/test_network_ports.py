"""Who holds a port of this host, and whether it can be published."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from guesthouse.errors import Forbidden, InvalidInput, PortTaken
from guesthouse.model.device import Protocol, Publish
from guesthouse.network.ports import find_holder, overlap, reserve, unprivileged_port_start


@contextmanager
def held(
    protocol: Protocol = Protocol.TCP, ip: str = "127.0.0.1", listen: bool = True
) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    udp = protocol is Protocol.UDP
    with socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as sock:
        sock.bind((ip, 0))
        if listen and not udp:
            sock.listen()
        yield sock.getsockname()[1]


@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("ip", ["127.0.0.1", "0.0.0.0", "::", "::1"])
async def test_the_holder_is_named(protocol: Protocol, ip: str) -> None:
    with held(protocol, ip) as port:
        asked = "::1" if ip == "::1" else "127.0.0.1"
        holder = await find_holder(asked, port, protocol)
        assert holder is not None and f"(pid {os.getpid()})" in holder
        other = Protocol.UDP if protocol is Protocol.TCP else Protocol.TCP
        assert await find_holder(asked, port, other) is None
    assert await find_holder(asked, port, protocol) is None


async def test_a_guest_of_ours_is_named_first() -> None:
    ours = Publish(host_ip="0.0.0.0", host_port=8080, guest_port=80)
    found = await find_holder("127.0.0.1", 8080, Protocol.TCP, taken={ours: "web"})
    assert found == "guest web"


@pytest.mark.root
def test_a_process_that_we_may_not_look_into() -> None:
    """As an ordinary user, root's sockets are seen, root's processes not."""
    code = (
        "import asyncio, os, sys\n"
        "from guesthouse.network.ports import find_holder\n"
        "from guesthouse.model.device import Protocol\n"
        "ask = lambda: asyncio.run(find_holder('127.0.0.1', int(sys.argv[1]), Protocol.TCP))\n"
        "ask()  # imports what it needs while it may still read the interpreter's files\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(ask())\n"
    )
    with held() as port:
        done = subprocess.run(
            [sys.executable, "-c", code, str(port)], capture_output=True, text=True, check=True
        )
    assert done.stdout.strip() == f"a process of user {pwd.getpwuid(0).pw_name}"


async def test_reserve_takes_a_free_port() -> None:
    with held() as port:
        pass
    wanted = Publish(host_port=port, guest_port=80)
    assert await reserve(wanted, {}, privileged=False) == wanted


@pytest.mark.parametrize("protocol", list(Protocol))
async def test_reserve_refuses_a_held_port(protocol: Protocol) -> None:
    with held(protocol, "0.0.0.0") as port:
        wanted = Publish(host_port=port, guest_port=80, protocol=protocol)
        with pytest.raises(PortTaken, match=f"pid {os.getpid()}") as caught:
            await reserve(wanted, {}, privileged=False)
    assert caught.value.detail["host_port"] == port
    assert f"pid {os.getpid()}" in str(caught.value.detail["holder"])


async def test_connections_in_time_wait_are_no_obstacle() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = server.accept()
            accepted.close()  # the server's side closes first and stays in TIME_WAIT
            assert client.recv(1) == b""
    wanted = Publish(host_port=port, guest_port=80)
    assert await reserve(wanted, {}, privileged=False) == wanted


async def test_reserve_refuses_what_another_guest_has_even_if_stopped() -> None:
    with held() as port:
        pass
    taken = {Publish(host_ip="0.0.0.0", host_port=port, guest_port=22): "db"}
    with pytest.raises(PortTaken, match="guest db"):
        await reserve(Publish(host_port=port, guest_port=80), taken, privileged=False)
    udp = Publish(host_port=port, guest_port=80, protocol=Protocol.UDP)
    assert await reserve(udp, taken, privileged=False) == udp


@pytest.mark.parametrize("protocol", list(Protocol))
async def test_port_zero_becomes_a_real_one(protocol: Protocol) -> None:
    asked = Publish(host_port=0, guest_port=80, protocol=protocol)
    got = await reserve(asked, {}, privileged=False)
    assert got.host_port >= unprivileged_port_start() and got.guest_port == 80
    assert await reserve(got, {}, privileged=False) == got


async def test_an_address_of_another_host() -> None:
    for port in (0, 8080):
        with pytest.raises(InvalidInput, match=r"192\.0\.2\.1"):
            await reserve(
                Publish(host_ip="192.0.2.1", host_port=port, guest_port=80), {}, privileged=False
            )


async def test_privileged_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guesthouse.network.ports.unprivileged_port_start", lambda: 1024)
    with pytest.raises(Forbidden) as caught:
        await reserve(Publish(host_port=80, guest_port=80), {}, privileged=False)
    assert "8080:80" in caught.value.hint and "ip_unprivileged_port_start=80" in caught.value.hint


def test_overlap() -> None:
    def port(ip: str, number: int = 80, protocol: Protocol = Protocol.TCP) -> Publish:
        return Publish(host_ip=ip, host_port=number, guest_port=1, protocol=protocol)

    assert overlap(port("127.0.0.1"), port("127.0.0.1"))
    assert overlap(port("127.0.0.1"), port("0.0.0.0"))
    assert not overlap(port("127.0.0.1"), port("127.0.0.2"))
    assert not overlap(port("127.0.0.1"), port("127.0.0.1", 81))
    assert not overlap(port("127.0.0.1"), port("127.0.0.1", protocol=Protocol.UDP))
    assert not overlap(port("::"), port("0.0.0.0"))
    assert not overlap(port("127.0.0.1", 0), port("127.0.0.1", 0))
