"""ssh into a guest, against an sshd of this host."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest

from guesthouse.errors import AgentUnavailable, DeadlineExceeded, InvalidInput, NotFound
from guesthouse.guestos import ssh, ssh_process, ssh_session
from guesthouse.guestos.ssh import GuestSsh, Output, RemoteExit, RemoteProcess, Tty

from .ssh_house import SshHouse


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[SshHouse]:
    async with SshHouse(tmp_path).listening() as made:
        yield made


@pytest.fixture
async def guest(house: SshHouse) -> AsyncIterator[GuestSsh]:
    made = GuestSsh(house.socket, house.private_key)
    yield made
    await made.close()


async def everything(process: RemoteProcess) -> tuple[bytes, bytes]:
    kept = {1: bytearray(), 2: bytearray()}
    async for stream, data in process.output():
        kept[stream] += data
    return bytes(kept[1]), bytes(kept[2])


async def test_exit_codes_signals_and_streams(guest: GuestSsh) -> None:
    ended = await guest.run(["sh", "-c", "cat; echo err >&2; exit 7"], data=b"\0in\xff")
    assert ended == (RemoteExit(7, None), b"\0in\xff", b"err\n")
    assert (await guest.run(["sh", "-c", "kill -KILL $$"]))[0] == RemoteExit(None, "KILL")
    assert (await guest.run(["nonesuch"]))[0].code == 127


async def test_one_connection_for_many_commands_at_once(house: SshHouse, guest: GuestSsh) -> None:
    results = await asyncio.gather(*(guest.run(["printf", str(n)]) for n in range(20)))
    assert [out for _, out, _ in results] == [str(n).encode() for n in range(20)]
    assert len(house.connections) == 1


async def test_only_a_guest_with_a_command_is_asked_whether_it_lives(
    house: SshHouse, guest: GuestSsh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_session, "KEEPALIVE", 0.1)

    def packets() -> int:
        return house.connections[0]._recv_seq

    process = await guest.start(["sh", "-c", "echo up; read x"])
    assert await process.read() == Output(1, b"up\n")
    heard = packets()
    await asyncio.sleep(1.0)
    assert packets() > heard
    await process.write(b"\n")
    await process.wait()
    await process.close()
    await asyncio.sleep(0.3)
    heard = packets()
    await asyncio.sleep(1.0)
    assert packets() == heard
    assert (await guest.run(["true"]))[0].code == 0
    assert len(house.connections) == 1


async def test_environment_folder_and_what_cannot_be(guest: GuestSsh, tmp_path: Path) -> None:
    process = await guest.start(
        ["sh", "-c", 'echo "$GREETING"; pwd'], env={"GREETING": "a 'b'"}, cwd=str(tmp_path)
    )
    assert (await everything(process))[0].decode() == f"a 'b'\n{tmp_path}\n"
    await process.close()
    for options in ({"cwd": "/nowhere"}, {"user": "nonesuch-user"}, {"env": {"A B": ""}}):
        with pytest.raises(InvalidInput):
            await guest.start(["true"], **options)  # type: ignore[arg-type]  # options are start's own


async def test_a_terminal(guest: GuestSsh) -> None:
    wait = "while :; do sleep 0.1; done"
    script = (
        "stty size; echo $TERM; read x; stty size; trap 'echo got; exit 5' INT; echo ready; " + wait
    )
    process = await guest.start(["sh", "-c", script], tty=Tty(term="vt220", columns=101, rows=31))
    seen = b""

    async def until(what: bytes) -> None:
        nonlocal seen
        while what not in seen:
            piece = await process.read()
            assert piece is not None and piece.stream == 1, seen
            seen += piece.data

    await until(b"31 101\r\nvt220\r\n")
    assert b"\x1e" not in seen
    process.resize(77, 17)
    await asyncio.sleep(0.2)
    await process.write(b"\n")
    await until(b"17 77\r\n")
    await until(b"ready")
    await process.write(b"\x03")
    await until(b"got")
    assert await process.wait(60) == RemoteExit(5, None)
    await process.close()


async def test_a_login_shell(guest: GuestSsh) -> None:
    process = await guest.start([], tty=Tty())
    await process.write(b"echo $((6*7)); exit 4\n")
    assert b"42" in (await everything(process))[0]
    assert (await process.wait()).code == 4
    await process.close()


async def test_signals_reach_the_command(guest: GuestSsh) -> None:
    script = "trap 'echo got; exit 9' USR1; echo up; while :; do sleep 0.1; done"
    process = await guest.start(["sh", "-c", script])
    assert await process.read() == Output(1, b"up\n")
    await process.signal("USR1")
    assert (await everything(process))[0] == b"got\n"
    assert await process.wait() == RemoteExit(9, None)
    with pytest.raises(NotFound):
        await process.signal("USR1")
    with pytest.raises(InvalidInput):
        await process.signal("USR1; id")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def dead(pid: int) -> None:
    async with asyncio.timeout(60):
        while alive(pid):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_close_kills_the_tree(guest: GuestSsh) -> None:
    process = await guest.start(["sh", "-c", "sleep 300 & echo $!; trap '' TERM; sleep 300; wait"])
    piece = await process.read()
    assert piece is not None
    child = int(piece.data)
    assert alive(child) and alive(process.pid)
    await process.close()
    await dead(child)
    await dead(process.pid)


async def test_a_command_that_takes_too_long_is_killed(guest: GuestSsh) -> None:
    process = await guest.start(["sleep", "300"])
    with pytest.raises(DeadlineExceeded):
        await process.wait(0.2)
    await dead(process.pid)
    with pytest.raises(DeadlineExceeded):
        await guest.run(["sleep", "300"], timeout=1)


async def test_what_a_command_leaves_behind_holds_nobody_up(guest: GuestSsh) -> None:
    """Its child keeps the output open; all that was written still comes."""
    script = "sleep 300 & echo $!; head -c 3000000 /dev/zero"
    process = await guest.start(["sh", "-c", script])
    async with asyncio.timeout(60):
        out, _ = await everything(process)
    line, _, zeros = out.partition(b"\n")
    assert (await process.wait(), len(zeros)) == (RemoteExit(0, None), 3_000_000)
    assert alive(int(line))
    os.kill(int(line), 9)
    await process.close()


async def test_both_directions_at_once_arrive_whole(guest: GuestSsh) -> None:
    process = await guest.start(["cat"])
    block, sent, got = os.urandom(1 << 20), hashlib.sha256(), hashlib.sha256()

    async def feed() -> None:
        for _ in range(16):
            sent.update(block)
            await process.write(block)
        await process.write_eof()

    feeding = asyncio.create_task(feed())
    async for _, data in process.output():
        got.update(data)
    await feeding
    assert got.digest() == sent.digest()
    assert await process.wait() == RemoteExit(0, None)
    await process.close()


async def test_a_slow_reader_holds_the_command_back(guest: GuestSsh) -> None:
    process = await guest.start(["sh", "-c", "head -c 50000000 /dev/zero; echo done >&2"])
    await asyncio.sleep(1)
    held = process._buffered
    assert held < ssh_process.HIGH_WATER + (1 << 20)
    with pytest.raises(TimeoutError):  # it cannot have ended
        async with asyncio.timeout(0.5):
            await process.wait()
    out, err = await everything(process)
    assert (len(out), err) == (50_000_000, b"done\n")
    await process.close()


async def test_a_command_that_reads_nothing_holds_the_writer_back(guest: GuestSsh) -> None:
    process = await guest.start(["sleep", "300"])
    sent = 0

    async def feed() -> None:
        nonlocal sent
        while True:
            await process.write(b"x" * 65536)
            sent += 65536

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await feed()
    assert sent < 16 << 20
    await process.close()
    await dead(process.pid)


async def test_input_after_the_end_is_dropped(guest: GuestSsh) -> None:
    process = await guest.start(["true"])
    await process.wait()
    for _ in range(100):
        await process.write(b"x" * 65536)
    await process.write_eof()
    await process.close()
    await process.close()


async def test_a_broken_connection_is_told_and_replaced(house: SshHouse, guest: GuestSsh) -> None:
    process = await guest.start(["sh", "-c", "echo up; sleep 300"])
    assert await process.read() == Output(1, b"up\n")
    house.connections[0].abort()
    with pytest.raises(AgentUnavailable):
        await process.wait()
    with pytest.raises(AgentUnavailable):
        await process.read()
    with pytest.raises(AgentUnavailable):
        await process.write(b"x")
    await process.close()
    assert (await guest.run(["echo", "again"]))[1] == b"again\n"
    assert len(house.connections) == 2


async def test_a_connection_that_went_silent_is_replaced(
    house: SshHouse, guest: GuestSsh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest was reset behind it."""
    await guest.run(["true"])
    monkeypatch.setattr(ssh, "CHANNEL_TIMEOUT", 1.0)
    transport = house.connections[0]._transport
    assert transport is not None
    transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport has it
    assert (await guest.run(["echo", "again"]))[1] == b"again\n"
    assert len(house.connections) == 2


async def test_drop(house: SshHouse, guest: GuestSsh) -> None:
    process = await guest.start(["sleep", "300"])
    guest.drop()
    with pytest.raises(AgentUnavailable):
        await process.wait()
    assert (await guest.run(["echo", "again"]))[1] == b"again\n"
    guest.drop()
    guest.drop()


async def test_an_idle_connection_is_closed(
    house: SshHouse, guest: GuestSsh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "IDLE", 0.2)
    await guest.run(["true"])
    async with asyncio.timeout(30):
        await house.connections[0].wait_closed()
    assert (await guest.run(["echo", "again"]))[1] == b"again\n"


async def test_a_first_attempt_spoilt_by_remains_is_repeated(tmp_path: Path) -> None:
    """Bytes of an earlier connection come first, then sshd hangs up; the next attempt is clean."""
    house = SshHouse(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(house.socket))
        listener.listen()
        guest = GuestSsh(house.socket, house.private_key)
        task = asyncio.create_task(guest.run(["echo", "ok"]))
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        for remains in (b"\x93\x00\xff\n" * 5000, b""):
            client, _ = await loop.sock_accept(listener)
            await loop.sock_sendall(client, remains)
            client.close()
    house.socket.unlink()
    async with house.listening():
        assert (await task)[1] == b"ok\n"
        await guest.close()


@pytest.mark.parametrize("piece", [1, 7, 65536])
async def test_remains_glued_to_the_greeting_are_dropped(house: SshHouse, piece: int) -> None:
    """As after a stream that was cut off: the port delivers its end to the next client."""
    remains = b"\x93\x00\xffS SSH-2.SSH-1.0" + os.urandom(300).replace(b"S", b"\n") + b"SSH"
    front = house.socket.with_name("front")

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind = await asyncio.open_unix_connection(house.socket)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
            target.close()

        first = remains + await behind_reader.readline()
        for start in range(0, len(first), piece):
            writer.write(first[start : start + piece])
            await writer.drain()
            await asyncio.sleep(0)
        await asyncio.gather(pump(behind_reader, writer), pump(reader, behind))

    server = await asyncio.start_unix_server(relay, front)
    guest = GuestSsh(front, house.private_key)
    assert (await guest.run(["echo", "ok"], timeout=20))[1] == b"ok\n"
    assert len(house.connections) == 1
    await guest.close()
    server.close()


async def test_nobody_there(tmp_path: Path) -> None:
    guest = GuestSsh(tmp_path / "none", SshHouse(tmp_path).private_key)
    with pytest.raises(AgentUnavailable, match="not there"):
        await guest.start(["true"])
    with socket.socket(socket.AF_UNIX) as listener:  # QEMU listens, no sshd in the guest
        listener.bind(str(tmp_path / "silent"))
        listener.listen()
        guest = GuestSsh(tmp_path / "silent", SshHouse(tmp_path).private_key)
        with pytest.raises(AgentUnavailable, match="Nothing answers") as caught:
            await guest.start(["true"], timeout=0.5)
    assert "guest console" in caught.value.hint


async def test_a_foreign_key_is_told(house: SshHouse) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_private_key()
    guest = GuestSsh(house.socket, other)
    with pytest.raises(AgentUnavailable, match="key"):
        await guest.start(["true"], timeout=2)
    await guest.close()


async def test_a_shell_that_never_runs_it(
    house: SshHouse, guest: GuestSsh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "START_TIMEOUT", 0.5)
    house.mute = True
    with pytest.raises(AgentUnavailable, match="did not start"):
        await guest.start(["true"])


async def test_cancelled_starts_leave_nothing_behind(
    house: SshHouse, guest: GuestSsh, tmp_path: Path
) -> None:
    """Neither a connection that is no use any more nor a command that runs on."""
    pids = tmp_path / "pids"
    connecting = asyncio.create_task(guest.start(["true"]))
    await asyncio.sleep(0.005)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    await guest.run(["true"])
    before = len(house.connections)
    for delay in (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03):
        script = f"echo $$ >>{pids}; exec sleep 300"
        task = asyncio.create_task(guest.start(["sh", "-c", script]))
        await asyncio.sleep(delay)
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task
        else:  # it was quicker
            await (await task).close()
        assert (await guest.run(["echo", "ok"]))[1] == b"ok\n"
    assert len(house.connections) == before
    async with asyncio.timeout(60):
        while guest._abandoned:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    for pid in pids.read_text().split() if pids.exists() else []:
        await dead(int(pid))


async def test_after_close_it_is_refused(house: SshHouse, guest: GuestSsh) -> None:
    await guest.run(["true"])
    await guest.close()
    with pytest.raises(AgentUnavailable):
        await guest.start(["true"])


def test_the_daemon_does_not_pay_for_asyncssh_until_it_is_used() -> None:
    import subprocess
    import sys

    code = "import sys, guesthouse.guestos.ssh; print('asyncssh' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
