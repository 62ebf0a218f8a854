"""A bare QEMU around a built image, for tests of the images themselves."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

AGENT_DEADLINE = 240.0  # seconds; a booted Debian under a loaded host


@dataclass
class ImageVm:
    """One running guest: its agent, its ssh port, its serial console and its monitor."""

    folder: Path
    process: asyncio.subprocess.Process
    key: asyncssh.SSHKey
    started: float = field(default_factory=time.monotonic)

    @property
    def console(self) -> str:
        return (self.folder / "serial.log").read_bytes().decode("utf-8", "replace")

    async def agent(self, command: str, deadline: float = AGENT_DEADLINE, **arguments: Any) -> Any:
        """One agent call; asks again until it answers or the deadline (seconds) is over."""
        end = time.monotonic() + deadline
        while True:
            try:
                return await asyncio.wait_for(self._agent_once(command, arguments), 5)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                if time.monotonic() > end or self.process.returncode is not None:
                    raise AssertionError(f"no agent; the console says:\n{self.console}") from None
                await asyncio.sleep(0.1)

    async def _agent_once(self, command: str, arguments: dict[str, Any]) -> Any:
        reader, writer = await asyncio.open_unix_connection(str(self.folder / "ga"))
        try:
            token = time.monotonic_ns() % (1 << 30)
            sync = {"execute": "guest-sync-delimited", "arguments": {"id": token}}
            writer.write(b"\xff" + json.dumps(sync).encode() + b"\n")
            while True:
                await reader.readuntil(b"\xff")
                if json.loads(await reader.readline()).get("return") == token:
                    break
            call = {"execute": command, "arguments": arguments}
            writer.write(json.dumps(call).encode() + b"\n")
            line = await reader.readline()
            if not line:
                raise asyncio.IncompleteReadError(line, None)
            answer = json.loads(line)
            assert "error" not in answer, answer
            return answer["return"]
        finally:
            writer.close()

    async def agent_run(self, *argv: str, deadline: float = 120.0) -> tuple[int, str]:
        """Runs a program through the agent; exit code and what it wrote."""
        started = await self.agent(
            "guest-exec", path=argv[0], arg=list(argv[1:]), **{"capture-output": True}
        )
        end = time.monotonic() + deadline
        while time.monotonic() < end:
            status = await self.agent("guest-exec-status", pid=started["pid"])
            if status["exited"]:
                said = (base64.b64decode(status.get(key, "")) for key in ("out-data", "err-data"))
                return status.get("exitcode", -1), b"".join(said).decode("utf-8", "replace")
            await asyncio.sleep(0.1)
        raise AssertionError(f"{argv} did not end in time")

    @asynccontextmanager
    async def ssh(self, user: str = "root", deadline: float = 90) -> AsyncIterator[Any]:
        """An ssh connection over the port."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.folder / "ssh"))
        sock.setblocking(False)
        connection = await asyncio.wait_for(
            asyncssh.connect(
                sock=sock, username=user, client_keys=[self.key], known_hosts=None, config=None
            ),
            deadline,
        )
        try:
            yield connection
        finally:
            connection.close()
            await connection.wait_closed()

    async def qmp(self, command: str, **arguments: Any) -> Any:
        reader, writer = await asyncio.open_unix_connection(str(self.folder / "qmp"))
        try:
            await reader.readline()
            for call in (
                {"execute": "qmp_capabilities"},
                {"execute": command, "arguments": arguments},
            ):
                writer.write(json.dumps(call).encode() + b"\n")
                while "event" in (answer := json.loads(await reader.readline())):
                    pass
                assert "error" not in answer, answer
            return answer["return"]
        finally:
            writer.close()

    async def ended(self, deadline: float = 90) -> int:
        return await asyncio.wait_for(self.process.wait(), deadline)


def seed(hostname: str, key: asyncssh.SSHKey, *more: str) -> str:
    """The text that the house hands a guest."""
    public = key.export_public_key().decode().strip()
    return "\n".join(["version 1", f"hostname {hostname}", f"key {public}", *more]) + "\n"


@asynccontextmanager
async def running(
    folder: Path,
    key: asyncssh.SSHKey,
    *arguments: str,
    text: str | None = None,
    memory: int = 512,
    extra: Sequence[str] = (),
) -> AsyncIterator[ImageVm]:
    """Starts QEMU with the ports the house gives every guest; kills it at the end.

    `text` is the seed (None: no seed at all), `memory` is in MiB.
    """
    folder.mkdir(parents=True, exist_ok=True)
    argv = [
        "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "qemu64",
        "-m", str(memory), "-nodefaults", "-display", "none", "-vga", "std",
        "-serial", f"file:{folder}/serial.log",
        "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=ga,path={folder}/ga,server=on,wait=off",
        "-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0,id=agent",
        "-chardev", f"socket,id=ssh,path={folder}/ssh,server=on,wait=off",
        "-device", "virtserialport,chardev=ssh,name=house.guest.ssh.0,id=ssh0",
        "-qmp", f"unix:{folder}/qmp,server=on,wait=off",
        "-device", "virtio-rng-pci", "-device", "virtio-balloon-pci", "-device", "pvpanic-pci",
        "-netdev", "user,id=n0,restrict=off", "-device", "virtio-net-pci,netdev=n0",
        *arguments,
    ]  # fmt: skip
    if text is not None:
        coded = base64.b64encode(text.encode()).decode()
        argv += ["-smbios", f"type=11,value=io.systemd.credential.binary:guesthouse.seed={coded}"]
    argv += extra
    process = await asyncio.create_subprocess_exec(*argv)
    vm = ImageVm(folder, process, key)
    try:
        end = time.monotonic() + 20
        # QEMU makes its sockets a moment after it was started.
        while not (folder / "qmp").exists() and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        yield vm
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
