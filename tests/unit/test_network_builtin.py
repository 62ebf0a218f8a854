"""Option and monitor texts of QEMU's user networking."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from guesthouse.errors import EngineError, InvalidInput, PortTaken
from guesthouse.model.device import Nic, Protocol, Publish
from guesthouse.network import builtin
from guesthouse.network.base import NetworkBackend

WEB = Publish(host_port=8080, guest_port=80)
DNS = Publish(host_ip="0.0.0.0", host_port=5353, guest_port=53, protocol=Protocol.UDP)


def test_netdev() -> None:
    nic = Nic(mac="52:67:68:00:00:01", ports=(WEB, DNS))
    assert builtin.netdev(nic, 1, hostname="web") == (
        "user,id=n1,hostname=web,ipv4=on,ipv6=on,hostfwd=tcp:127.0.0.1:8080-:80,"
        "hostfwd=udp:0.0.0.0:5353-:53"
    )
    bare = Nic(mac="52:67:68:00:00:01")
    assert builtin.netdev(bare, 0, hostname="a,b", ipv6=False) == (
        "user,id=n0,hostname=a,,b,ipv4=on,ipv6=off"
    )


def test_monitor_lines() -> None:
    assert builtin.hostfwd_add(0, WEB) == "hostfwd_add n0 tcp:127.0.0.1:8080-:80"
    assert builtin.hostfwd_remove(2, DNS) == "hostfwd_remove n2 udp:0.0.0.0:5353"


@pytest.mark.parametrize(
    "port",
    [
        Publish(host_ip="::1", host_port=8080, guest_port=80),
        Publish(host_port=0, guest_port=80),
    ],
)
def test_what_libslirp_cannot_publish(port: Publish) -> None:
    with pytest.raises(InvalidInput) as caught:
        builtin.hostfwd_add(0, port)
    assert caught.value.detail["field"] == "publish"
    with pytest.raises(InvalidInput):
        builtin.netdev(Nic(mac="52:67:68:00:00:01", ports=(port,)), 0, hostname="x")


def test_replies() -> None:
    builtin.check_added("", WEB)
    with pytest.raises(PortTaken):
        builtin.check_added("could not set up host forwarding rule 'tcp:…'\r\n", WEB)
    with pytest.raises(EngineError, match="unrecognized"):
        builtin.check_added("unrecognized netdev id 'n7'\r\n", WEB)
    said = "host forwarding rule for tcp:127.0.0.1:8080"
    assert builtin.check_removed(f"{said} removed\r\n", WEB) is True
    assert builtin.check_removed(f"{said} not found\r\n", WEB) is False
    for reply in ("", "invalid format\r\n"):
        with pytest.raises(EngineError):
            builtin.check_removed(reply, WEB)


async def test_it_keeps_the_backend_contract() -> None:
    backend: NetworkBackend = builtin.Builtin()
    lines: list[str] = []

    async def monitor(line: str) -> str:
        lines.append(line)
        return "" if line.startswith("hostfwd_add") else "host forwarding rule for x removed"

    attached = await backend.attach("01A", Nic(mac="52:67:68:00:00:01"), 0, hostname="web")
    assert attached.netdev.startswith("user,id=n0,") and attached.fd is None
    await backend.publish("01A", 0, WEB, monitor)
    await backend.unpublish("01A", 0, WEB, monitor)
    # What it cannot publish is not open.
    await backend.unpublish("01A", 0, Publish(host_ip="::1", host_port=80, guest_port=80), monitor)
    await backend.detach("01A", 0)
    assert [line.split()[0] for line in lines] == ["hostfwd_add", "hostfwd_remove"]


@asynccontextmanager
async def qemu_monitor(folder: Path, *arguments: str) -> AsyncIterator[builtin.Monitor]:
    """A machine without CPUs at work, and its human monitor."""
    process = await asyncio.create_subprocess_exec(
        "qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none",
        "-qmp", f"unix:{folder}/qmp,server=on,wait=off", *arguments,
    )  # fmt: skip
    try:
        while not (folder / "qmp").exists():
            assert process.returncode is None
            await asyncio.sleep(0.02)
        reader, writer = await asyncio.open_unix_connection(folder / "qmp")

        async def call(command: str, **values: object) -> object:
            writer.write(json.dumps({"execute": command, "arguments": values}).encode() + b"\n")
            while "return" not in (answer := json.loads(await reader.readline())):
                assert "error" not in answer, answer
            return answer["return"]

        await reader.readline()
        await call("qmp_capabilities")

        async def monitor(line: str) -> str:
            return str(await call("human-monitor-command", **{"command-line": line}))

        yield monitor
        writer.close()
    finally:
        process.kill()
        await process.wait()


@pytest.mark.qemu
@pytest.mark.rootless
async def test_a_real_qemu_understands_and_answers_so(tmp_path: Path) -> None:
    assert shutil.which("qemu-system-x86_64")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        held = Publish(host_port=holder.getsockname()[1], guest_port=80)
        with socket.socket() as free_socket:
            free_socket.bind(("127.0.0.1", 0))
            free = Publish(host_port=free_socket.getsockname()[1], guest_port=80)
        udp = Publish(host_port=free.host_port, guest_port=53, protocol=Protocol.UDP)
        backend = builtin.Builtin()
        nic = Nic(mac="52:67:68:00:00:01", ports=(udp,))
        attached = await backend.attach("01A", nic, 0, hostname="web,1")
        async with qemu_monitor(tmp_path, "-netdev", attached.netdev) as monitor:
            await backend.publish("01A", 0, free, monitor)
            socket.create_connection(("127.0.0.1", free.host_port), 10).close()
            with pytest.raises(PortTaken):
                await backend.publish("01A", 0, held, monitor)
            with pytest.raises(EngineError):
                await backend.publish("01A", 7, held, monitor)
            await backend.unpublish("01A", 0, free, monitor)
            await backend.unpublish("01A", 0, free, monitor)  # not open: nothing happens
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", free.host_port), 10)
            await backend.unpublish("01A", 0, udp, monitor)
