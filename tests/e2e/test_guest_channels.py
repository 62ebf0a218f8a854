"""ssh port and agent of a real micro guest: what the house's clients do with them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest
import pytest_asyncio

from guesthouse.errors import AgentUnavailable, DeadlineExceeded, InvalidInput
from guesthouse.guestos.agent import Agent
from guesthouse.guestos.keys import ensure_key, public_line
from guesthouse.guestos.readiness import AGENT, NETWORK, SSH, Check, Probe, covers, watch
from guesthouse.guestos.seed import seed_text
from guesthouse.guestos.ssh import GuestSsh, Output, RemoteExit, RemoteProcess, Tty
from guesthouse.host.secrets import Secrets
from guesthouse.model.ids import new_id

from .imagevm import ImageVm, running
from .micro_image import micro

pytestmark = [pytest.mark.qemu, pytest.mark.rootless, pytest.mark.asyncio(loop_scope="module")]

MIB = 1 << 20
BLOCK = os.urandom(MIB)


class Micro:
    def __init__(self, vm: ImageVm, key: bytes) -> None:
        self.vm, self.key = vm, key
        self.ssh = GuestSsh(vm.folder / "ssh", key)
        self.agent = Agent(vm.folder / "ga")

    async def ready(self) -> list[str]:
        passed: list[str] = []

        async def note(check: Check) -> None:
            passed.append(check.name)

        async def pings() -> bool:
            await self.agent.ping(timeout=5)
            return True

        async def has_address() -> bool:
            return covers(await self.agent.addresses(), ["52:54:00:12:34:56"])

        async def answers() -> bool:
            await self.ssh.answers(timeout=30)
            return True

        probes = [Probe(AGENT, pings), Probe(NETWORK, has_address), Probe(SSH, answers)]
        await watch(probes, note, 240, guest="m1")
        return passed


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest() -> AsyncIterator[Micro]:
    image = await micro()
    with tempfile.TemporaryDirectory(prefix="gh-") as text:
        folder = Path(text)
        key = ensure_key(Secrets(folder / "secrets"), new_id())
        seed = seed_text("m1", "ada", [public_line(key)], new_id())
        boot = ("-kernel", str(image.kernel), "-initrd", str(image.initrd))
        async with running(
            folder,
            asyncssh.import_private_key(key),
            *boot,
            "-append",
            image.cmdline,
            text=seed,
            memory=192,
        ) as vm:
            made = Micro(vm, key)
            assert await made.ready() == ["agent", "network", "ssh"]
            yield made
            await made.ssh.close()
            await made.agent.close()


async def everything(process: RemoteProcess) -> tuple[bytes, bytes]:
    kept = {1: bytearray(), 2: bytearray()}
    async for stream, data in process.output():
        kept[stream] += data
    return bytes(kept[1]), bytes(kept[2])


async def test_exit_codes_signals_and_streams(guest: Micro) -> None:
    ended = await guest.ssh.run(["sh", "-c", "cat; echo err >&2; exit 37"], data=b"\0in\xff")
    assert ended == (RemoteExit(37, None), b"\0in\xff", b"err\n")
    assert (await guest.ssh.run(["sh", "-c", "kill -TERM $$"]))[0] == RemoteExit(None, "TERM")
    missing = await guest.ssh.run(["nonesuch"])
    assert missing[0].code == 127 and b"not found" in missing[2]
    odd = ["printf", "[%s]", "a b", "$HOME", "'q'", "", "ü*"]
    assert (await guest.ssh.run(odd))[1].decode() == "[a b][$HOME]['q'][][ü*]"


async def test_users_folders_environment(guest: Micro) -> None:
    script = 'id -un; pwd; echo "$HOME $WORD"'
    process = await guest.ssh.start(["sh", "-c", script], user="ada", env={"WORD": "a 'b'"})
    assert (await everything(process))[0].decode() == "ada\n/home/ada\n/home/ada a 'b'\n"
    await process.close()
    with pytest.raises(InvalidInput, match="nobody-here"):
        await guest.ssh.start(["id"], user="nobody-here")
    with pytest.raises(InvalidInput, match="/nowhere"):
        await guest.ssh.start(["id"], cwd="/nowhere")


async def test_a_terminal_its_size_and_its_keys(guest: Micro) -> None:
    wait = "while :; do sleep 0.1; done"
    script = "stty size; read x; stty size; trap 'echo got; exit 5' INT; echo ready; " + wait
    process = await guest.ssh.start(["sh", "-c", script], tty=Tty(columns=101, rows=31))
    seen = b""

    async def until(what: bytes) -> None:
        nonlocal seen
        async with asyncio.timeout(60):
            while what not in seen:
                piece = await process.read()
                assert piece is not None, seen
                seen += piece.data

    await until(b"31 101\r\n")
    process.resize(77, 17)
    await asyncio.sleep(0.5)
    await process.write(b"\n")
    await until(b"17 77\r\n")
    await until(b"ready")
    await process.write(b"\x03")
    await until(b"got")
    assert await process.wait(60) == RemoteExit(5, None)
    await process.close()


async def test_a_login_shell(guest: Micro) -> None:
    process = await guest.ssh.start([], tty=Tty())
    await process.write(b"echo $((6*7)); exit 4\n")
    assert b"42" in (await everything(process))[0]
    assert (await process.wait(60)).code == 4
    await process.close()


async def test_signals(guest: Micro) -> None:
    script = "trap 'echo got; exit 9' USR1; echo up; while :; do sleep 0.1; done"
    process = await guest.ssh.start(["sh", "-c", script])
    assert await process.read() == Output(1, b"up\n")
    await process.signal("USR1")
    assert (await everything(process))[0] == b"got\n"
    assert await process.wait(60) == RemoteExit(9, None)
    await process.close()


async def test_a_script_that_signals_its_group_harms_no_other(guest: Micro) -> None:
    other = await guest.ssh.start(["cat"])
    killed = await guest.ssh.run(["sh", "-c", "kill -TERM 0; sleep 60"])
    assert killed[0] == RemoteExit(None, "TERM")
    await other.write(b"alive")
    await other.write_eof()
    assert (await everything(other))[0] == b"alive"
    await other.close()


async def test_closed_and_late_commands_are_dead(guest: Micro) -> None:
    script = "sleep 4321 & trap '' TERM; echo up; sleep 4321; sleep 4321"
    process = await guest.ssh.start(["sh", "-c", script])
    assert await process.read() == Output(1, b"up\n")
    await process.close()
    late = await guest.ssh.start(["sleep", "4321"])
    with pytest.raises(DeadlineExceeded):
        await late.wait(0.5)
    async with asyncio.timeout(60):
        while b"sleep 4321" in (await guest.ssh.run(["ps", "-o", "args"]))[1]:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def test_what_a_command_leaves_behind_holds_nobody_up(guest: Micro) -> None:
    script = "sleep 4322 & echo $!; head -c 2000000 /dev/zero"
    process = await guest.ssh.start(["sh", "-c", script])
    async with asyncio.timeout(120):
        out, _ = await everything(process)
    child, _, zeros = out.partition(b"\n")
    assert (await process.wait(), len(zeros)) == (RemoteExit(0, None), 2_000_000)
    await process.close()
    assert (await guest.ssh.run(["kill", child.decode()]))[0] == RemoteExit(0, None)


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def echo(guest: Micro, blocks: int) -> None:
    """Send and read back `blocks` MiB at once; memory stays flat, nothing changes on the way."""
    process = await guest.ssh.start(["cat"])
    sent, got, count, before, peak = hashlib.sha256(), hashlib.sha256(), 0, resident(), 0

    async def feed() -> None:
        for _ in range(blocks):
            sent.update(BLOCK)
            await process.write(BLOCK)
        await process.write_eof()

    feeding = asyncio.create_task(feed())
    async for _, data in process.output():
        got.update(data)
        count += len(data)
        peak = max(peak, resident())
    await feeding
    assert count == blocks * MIB
    assert got.digest() == sent.digest()
    assert await process.wait(60) == RemoteExit(0, None)
    assert peak - before < 24 * MIB
    await process.close()


async def test_64_mib_through_the_guest(guest: Micro) -> None:
    await echo(guest, 64)


@pytest.mark.full
@pytest.mark.timeout(1800)
async def test_1_gib_through_the_guest(guest: Micro) -> None:
    await echo(guest, 1024)


async def test_two_at_once_and_a_third_between(guest: Micro) -> None:
    streams = asyncio.gather(echo(guest, 8), echo(guest, 8))
    while not streams.done():
        assert (await guest.ssh.run(["echo", "ok"]))[1] == b"ok\n"
    await streams


async def test_a_slow_reader_holds_the_guest_back(guest: Micro) -> None:
    process = await guest.ssh.start(["head", "-c", str(32 * MIB), "/dev/zero"])
    before = resident()
    await asyncio.sleep(3)
    assert resident() - before < 16 * MIB
    assert len((await everything(process))[0]) == 32 * MIB
    await process.close()


CLIENT = """
import asyncio, sys
from pathlib import Path
from guesthouse.guestos.ssh import GuestSsh

async def main():
    ssh = GuestSsh(Path(sys.argv[1]), Path(sys.argv[2]).read_bytes())
    print("begun", flush=True)
    process = await ssh.start(["cat"])
    print("up", flush=True)
    while True:
        await process.write(b"x" * 65536)
        await process.read()

asyncio.run(main())
"""


async def test_a_killed_daemon_does_not_wedge_the_port(guest: Micro, tmp_path: Path) -> None:
    """kill -9 in the handshake, in the login, in a stream; its successor gets through."""
    guest.ssh.drop()
    keyfile = tmp_path / "key"
    keyfile.write_bytes(guest.key)
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    for number in range(10):
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENT, str(guest.vm.folder / "ssh"), str(keyfile),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert client.stdout
        assert await client.stdout.readline() == b"begun\n"
        if number % 3 == 2:
            assert await client.stdout.readline() == b"up\n"
        await asyncio.sleep(chance.uniform(0, 2))
        client.kill()
        await client.wait()
        if number % 2:
            assert (await guest.ssh.run(["echo", "ok"], timeout=120))[1] == b"ok\n"
            guest.ssh.drop()
    assert (await guest.ssh.run(["echo", "ok"], timeout=120))[1] == b"ok\n"


async def test_connections_dropped_without_a_word(guest: Micro) -> None:
    for number in range(12):
        task = asyncio.create_task(guest.ssh.start(["true"]))
        await asyncio.sleep(0.1 * number)
        task.cancel()
        await asyncio.wait([task])
        guest.ssh.drop()
    assert (await guest.ssh.run(["echo", "ok"], timeout=120))[1] == b"ok\n"


async def test_the_agent(guest: Micro) -> None:
    info = await guest.agent.info()
    assert "guest-exec" in info.commands and info.version
    assert await guest.agent.hostname() == "m1"
    assert (await guest.agent.os_info()).kernel_release
    addresses = await guest.agent.addresses()
    assert "10.0.2.15" in [address.ip for address in addresses]
    assert not any(address.ip.startswith("127.") for address in addresses)
    ended = await guest.agent.exec(["/bin/sh", "-c", "cat; exit 3"], data=b"\0x")
    assert (ended.code, ended.stdout) == (3, b"\0x")
    async with guest.agent.frozen() as count:  # none here: all of it lives in memory
        assert await guest.agent.is_frozen() == (count > 0)
    assert not await guest.agent.is_frozen()
    successor = Agent(guest.vm.folder / "ga")  # waits until the first lets go
    await successor.ping(timeout=30)
    await successor.close()


async def test_a_reset_behind_the_connection(guest: Micro) -> None:
    process = await guest.ssh.start(["sleep", "4323"])
    await guest.vm.qmp("system_reset")
    guest.ssh.drop()
    with pytest.raises(AgentUnavailable):
        await process.wait(60)
    await guest.ready()
    assert (await guest.ssh.run(["echo", "ok"]))[1] == b"ok\n"


async def test_the_agent_powers_off(guest: Micro) -> None:
    await guest.agent.shutdown()
    assert await guest.vm.ended() == 0
    with pytest.raises(AgentUnavailable):
        await guest.agent.ping(timeout=5)
    with pytest.raises(AgentUnavailable):
        await guest.ssh.start(["true"], timeout=5)
