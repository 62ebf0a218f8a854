"""The serial port: everything into a capped log, consoles that can neither lose nor block it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from guesthouse.errors import NotFound
from guesthouse.host.keeper.logfile import RotatingLog
from guesthouse.host.keeper_client import AdoptRequest, SerialChannel
from guesthouse.host.launcher import FdTable

from .keeper_house import DEADLINE, House, keeper_house, listener, python, read_exactly, until

# A guest's process: accepts on descriptor 3 and does what the lines it gets ask for.
GUEST = """
import socket, sys
end = socket.socket(fileno=3)
while True:
    port = end.accept()[0]
    for line in port.makefile("rb"):
        verb, _, rest = line.strip().partition(b" ")
        if verb == b"say": port.sendall(rest + b"\\n")
        if verb == b"flood": port.sendall(b"0123456789abcde\\n" * int(rest))
        if verb == b"hangup": break
        if verb == b"die":
            port.sendall(rest + b"\\n" + b"z" * 20000)
            sys.exit(0)
    port.close()
"""


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with keeper_house(tmp_path) as made:
        yield made


def channel(house: House, max_bytes: int = 1 << 20, keep: int = 3) -> SerialChannel:
    return SerialChannel(
        socket=house.folder / "s", log=house.folder / "serial.log", max_bytes=max_bytes, keep=keep
    )


async def start(house: House, max_bytes: int = 1 << 20, keep: int = 3) -> str:
    with FdTable() as table:
        table.add(listener(house.folder / "s").detach())
        key, _ = await house.spawn(
            *python(GUEST), fds=table, serial=channel(house, max_bytes, keep)
        )
    return key


async def type_line(console: socket.socket, text: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(console, text + b"\n")


async def test_what_a_guest_prints_is_logged_and_shown_to_all(house: House) -> None:
    key = await start(house)
    one = await house.client.console(key)
    two = await house.client.console(key)
    await type_line(one, b"say hello")
    assert await read_exactly(one, 6) == b"hello\n"
    assert await read_exactly(two, 6) == b"hello\n"
    await type_line(two, b"say again")
    assert await read_exactly(one, 6) == b"again\n"
    log = house.folder / "serial.log"
    assert log.read_bytes() == b"hello\nagain\n"
    assert log.stat().st_mode & 0o777 == 0o600
    info = await house.client.info(key)
    assert (info.serial_connected, info.consoles, info.log_lost) == (True, 2, 0)
    one.close()
    two.close()
    await house.info_when(key, lambda info: not info.consoles)


async def test_replay_gives_the_end_of_the_log(house: House) -> None:
    key = await start(house)
    first = await house.client.console(key)
    await type_line(first, b"say first")
    assert await read_exactly(first, 6) == b"first\n"
    late = await house.client.console(key, replay=4)
    assert await read_exactly(late, 4) == b"rst\n"
    await type_line(late, b"say next")
    assert await read_exactly(late, 5) == b"next\n"
    first.close()
    late.close()


async def test_the_log_rotates_and_loses_no_byte_it_may_keep(house: House) -> None:
    key = await start(house, max_bytes=4096, keep=2)
    console = await house.client.console(key)
    await type_line(console, b"flood 1000")
    total = 16000
    assert len(await read_exactly(console, total)) == total
    sizes = {f.name: f.stat().st_size for f in house.folder.glob("serial.log*")}
    assert sizes == {
        "serial.log": total - 3 * 4096,
        "serial.log.1": 4096,
        "serial.log.2": 4096,
    }
    whole = b"".join(
        (house.folder / name).read_bytes()
        for name in ("serial.log.2", "serial.log.1", "serial.log")
    )
    assert whole == (b"0123456789abcde\n" * 1000)[4096:]
    late = await house.client.console(key, replay=6000)
    assert await read_exactly(late, 6000) == whole[-6000:]
    console.close()
    late.close()


def test_a_log_that_keeps_no_older_file(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "log", 10, 0)
    log.append(b"0123456789")
    log.append(b"abc")
    assert (tmp_path / "log").read_bytes() == b"abc"
    assert [file.name for file in tmp_path.iterdir()] == ["log"]
    log.close()


def test_a_log_goes_on_where_an_earlier_keeper_stopped(tmp_path: Path) -> None:
    for part in (b"one", b"two"):
        log = RotatingLog(tmp_path / "log", 5, 1)
        log.append(part)
        log.close()
    assert (tmp_path / "log.1").read_bytes() == b"onetw"
    assert (tmp_path / "log").read_bytes() == b"o"


def test_a_log_that_cannot_be_written_counts_what_it_lost(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "folder" / "log", 100, 1)
    log.append(b"lost")
    assert log.lost == 4
    (tmp_path / "folder").mkdir()
    log.append(b"kept")
    assert (tmp_path / "folder" / "log").read_bytes() == b"kept"
    assert log.tail(2) == b"pt"
    log.close()


async def test_a_console_that_never_reads_blocks_nobody(house: House) -> None:
    key = await start(house, max_bytes=1 << 24)
    slow = await house.client.console(key)
    quick = await house.client.console(key)
    # In portions that the quick one has room for, however slow this machine is.
    for _ in range(16):
        await type_line(quick, b"flood 25000")
        assert len(await read_exactly(quick, 400_000)) == 400_000
    total = 16 * 400_000
    assert (house.folder / "serial.log").stat().st_size == total
    # The slow one missed the middle, and has the end.
    await type_line(quick, b"say end")
    assert await read_exactly(quick, 4) == b"end\n"
    got = bytearray()
    while not got.endswith(b"end\n"):
        got += await asyncio.wait_for(asyncio.get_running_loop().sock_recv(slow, 65536), DEADLINE)
    assert (1 << 20) <= len(got) < total // 2
    resident = Path(f"/proc/{house.client.pid}/status").read_text().split("VmRSS:")[1].split()[0]
    assert int(resident) < 32 * 1024
    slow.close()
    quick.close()


async def test_typing_faster_than_the_guest_reads_makes_the_typist_wait(house: House) -> None:
    with FdTable() as table:
        table.add(listener(house.folder / "s").detach())
        # Takes the connection, and reads only after a signal.
        code = (
            "import socket,signal\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
            "p=socket.socket(fileno=3).accept()[0]\n"
            "signal.sigwait([signal.SIGUSR1])\n"
            "n=0\n"
            "while n<4000000: n+=len(p.recv(65536))\n"
            "p.sendall(b'all')\n"
            "signal.sigwait([signal.SIGUSR1])\n"
        )
        key, _ = await house.spawn(*python(code), fds=table, serial=channel(house))
    console = await house.client.console(key)
    loop = asyncio.get_running_loop()
    typing = asyncio.create_task(loop.sock_sendall(console, b"x" * 4_000_000))
    await asyncio.sleep(0.3)
    assert not typing.done()
    assert (await house.client.info(key)).serial_connected
    await house.client.signal(key, signal.SIGUSR1)
    await asyncio.wait_for(typing, DEADLINE)
    assert await read_exactly(console, 3) == b"all"
    console.close()


async def test_the_last_words_are_logged_and_the_consoles_end(house: House) -> None:
    before = house.fd_count()
    key = await start(house)
    console = await house.client.console(key)
    await type_line(console, b"die goodbye")
    expected = b"goodbye\n" + b"z" * 20000
    assert await read_exactly(console, 1 << 20) == expected, "and then its end"
    await house.record(key)
    assert (house.folder / "serial.log").read_bytes() == expected
    console.close()
    assert house.fd_count() == before
    with pytest.raises(NotFound):
        await house.client.console(key)


async def test_a_console_left_unread_ends_with_its_reader(house: House) -> None:
    before = house.fd_count()
    key = await start(house, max_bytes=1 << 24)
    unread = await house.client.console(key)
    await type_line(unread, b"flood 100000")
    log = house.folder / "serial.log"
    await until(lambda: log.exists() and log.stat().st_size == 1_600_000)
    await house.client.signal(key, signal.SIGKILL)
    await house.record(key)
    assert house.fd_count() == before + 1, "kept for its reader"
    unread.close()
    await until(lambda: house.fd_count() == before)


async def test_a_port_that_listens_late_and_hangs_up_is_found_again(house: House) -> None:
    code = (
        "import socket,time\n"
        "time.sleep(0.3)\n"
        f"e=socket.socket(socket.AF_UNIX); e.bind({str(house.folder / 's')!r}); e.listen(1)\n"
        "p=e.accept()[0]; p.sendall(b'one\\n'); p.close()\n"
        "p=e.accept()[0]; p.sendall(b'two\\n'); p.recv(1)\n"
    )
    key, _ = await house.spawn(*python(code), serial=channel(house))
    log = house.folder / "serial.log"
    await until(lambda: log.exists() and log.read_bytes() == b"one\ntwo\n")
    assert (await house.client.info(key)).serial_connected


async def test_a_new_keeper_goes_on_with_the_port(house: House) -> None:
    key = await start(house)
    (info,) = await house.client.processes()
    console = await house.client.console(key)
    await type_line(console, b"say before")
    assert await read_exactly(console, 7) == b"before\n"
    await house.kill_keeper()
    assert await read_exactly(console, 1) == b"", "consoles end with their keeper"
    await house.client.reconnect()
    await house.client.adopt(
        AdoptRequest(key=key, pid=info.pid, start_ticks=info.start_ticks, serial=channel(house))
    )
    again = await house.client.console(key, replay=4096)
    assert await read_exactly(again, 7) == b"before\n"
    await type_line(again, b"say after")
    assert await read_exactly(again, 6) == b"after\n"
    assert (house.folder / "serial.log").read_bytes() == b"before\nafter\n"
    console.close()
    again.close()


async def test_no_serial_port_no_console(house: House) -> None:
    key, _ = await house.spawn("sleep", "1000")
    with pytest.raises(NotFound, match="serial"):
        await house.client.console(key)


async def test_a_hundred_consoles_leak_nothing(house: House) -> None:
    key = await start(house)
    before = house.fd_count()
    for _ in range(100):
        console = await house.client.console(key)
        assert os.get_inheritable(console.fileno()) is False
        console.close()
    await until(lambda: house.fd_count() == before)
