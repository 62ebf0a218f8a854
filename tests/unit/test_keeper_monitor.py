"""The last word of a QEMU: any portions, any rubbish, and real QEMU processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guesthouse.host.keeper.loop import Loop
from guesthouse.host.keeper.monitor import MAX_LINE, Lines, MonitorWatch
from guesthouse.host.keeper_client import AdoptRequest, Ending, MonitorChannel, SerialChannel
from guesthouse.host.launcher import FdTable

from .keeper_house import DEADLINE, House, keeper_house, listener, python, until

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\n'


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with keeper_house(tmp_path) as made:
        yield made


@given(st.lists(st.binary(max_size=30).filter(lambda b: b"\n" not in b)), st.data())
def test_lines_do_not_depend_on_portions(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    cutter = Lines(limit=20)
    found: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += cutter.feed(stream[:size])
        stream = stream[size:]
    assert found == [line for line in lines if len(line) <= 20]


def test_a_line_too_long_is_skipped_without_being_held() -> None:
    cutter = Lines()
    for _ in range(50):
        assert cutter.feed(b"x" * (MAX_LINE // 10)) == []
        assert len(cutter._rest) <= MAX_LINE
    assert cutter.feed(b"still\nshort\n") == [b"short"]


def watch_of(messages: bytes) -> MonitorWatch:
    """A watch that has received `messages` from a monitor of ours."""
    watch = MonitorWatch(Loop(), "/nonexistent/socket")
    for at in range(0, len(messages), 7):
        watch._received(messages[at : at + 7])
    return watch


def event(name: str, seconds: int = 1000, **data: object) -> bytes:
    stamp = {"seconds": seconds, "microseconds": 500000}
    return json.dumps({"event": name, "timestamp": stamp, "data": data}).encode() + b"\r\n"


def test_it_remembers_the_events_that_explain_an_end() -> None:
    seen = watch_of(
        event("STOP", 1)
        + event("RESUME", 2)
        + event("RESET", 3, guest=True, reason="guest-reset")
        + event("WATCHDOG", 4, action="poweroff")
        + event("GUEST_PANICKED", 5, action="pause", info={"type": "hyper-v", "arg1": 7})
        + event("SHUTDOWN", 6, guest=True, reason="guest-shutdown")
        + event("RTC_CHANGE", 7, offset=1)
    ).seen
    assert seen == {
        "stopped_at": 1.5,
        "resumed_at": 2.5,
        "reset": {"guest": True, "reason": "guest-reset", "at": 3.5},
        "watchdog": {"action": "poweroff", "at": 4.5},
        "panic": {"action": "pause", "info": {"type": "hyper-v", "arg1": 7}, "at": 5.5},
        "shutdown": {"guest": True, "reason": "guest-shutdown", "at": 6.5},
    }


def test_rubbish_is_passed_over() -> None:
    seen = watch_of(
        b"HTTP/1.1 400\n\n[1,2]\nnull\n\xff\xfe\x00\n" + b"[" * 100_000 + b"\n"
        b'{"event": ["SHUTDOWN"]}\n{"event": "SHUTDOWN", "data": 5, "timestamp": "now"}\n'
    ).seen
    assert seen["shutdown"]["guest"] is False
    assert seen["shutdown"]["reason"] == "unknown"


def test_a_guest_cannot_fill_the_record() -> None:
    seen = watch_of(event("GUEST_PANICKED", action="pause", info={"text": "x" * 100_000})).seen
    assert seen["panic"] == {"action": "pause", "info": None, "at": 1000.5}
    seen = watch_of(event("SHUTDOWN", guest=True, reason="y" * 100_000)).seen
    assert len(seen["shutdown"]["reason"]) == 64


FAKE_QEMU = """
import json, socket, sys
end = socket.socket(fileno=3)
while True:
    port = end.accept()[0]
    port.sendall(%r)
    heard = port.makefile("rb").readline()
    assert json.loads(heard) == {"execute": "qmp_capabilities"}, heard
    port.sendall(b'{"return": {}}\\n')
    if len(sys.argv) > 2:
        port.close()
        sys.argv.pop()
        continue
    for piece in sys.argv[1].split("|"): port.sendall(piece.encode())
    sys.exit(1)
""" % (GREETING,)  # noqa: UP031


async def spawn_fake(house: House, *arguments: str) -> str:
    with FdTable() as table:
        table.add(listener(house.folder / "m").detach())
        key, _ = await house.spawn(
            *python(FAKE_QEMU, *arguments),
            fds=table,
            monitor=MonitorChannel(socket=house.folder / "m"),
        )
    return key


async def test_what_it_said_last_is_in_the_record(house: House) -> None:
    said = "x" * 200_000 + '\n{"event": "SHUT|DOWN", "data": {"guest": true, "reason": "guest-|pan'
    said += 'ic"}, "timestamp": {"seconds": 9, "microseconds": 0}}\n{"event": "half'
    if len(said) > 120_000:
        said = said[len(said) - 120_000 :]  # one argument has at most 128 KiB
    record = await house.record(await spawn_fake(house, said))
    assert record.exit_code == 1, record.stderr_tail
    assert record.shutdown == Ending(guest=True, reason="guest-panic", at=9.0)


async def test_a_monitor_that_hangs_up_is_asked_again(house: House) -> None:
    said = '{"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-signal"}}\n'
    record = await house.record(await spawn_fake(house, said, "hang up first"))
    assert record.shutdown is not None
    assert record.shutdown.reason == "host-signal"


class Qmp:
    """The daemon's own monitor of a real QEMU, as far as these tests need it."""

    def __init__(self, path: Path) -> None:
        self._end = socket.socket(socket.AF_UNIX)
        self._end.settimeout(DEADLINE)
        self._end.connect(str(path))
        self._lines = self._end.makefile("rb")
        assert b"QMP" in self._lines.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str) -> None:
        self._end.sendall(json.dumps({"execute": command}).encode() + b"\n")
        while b'"return"' not in (line := self._lines.readline()):
            assert line, "it hung up"

    def close(self) -> None:
        self._lines.close()
        self._end.close()


async def start_qemu(house: House) -> tuple[str, AdoptRequest]:
    serial = SerialChannel(socket=house.folder / "s", log=house.folder / "serial.log")
    monitor = MonitorChannel(socket=house.folder / "m")
    with FdTable() as table:
        argv = ["qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none"]
        for name in ("q", "m", "s"):
            number = table.add(listener(house.folder / name).detach())
            argv += ["-chardev", f"socket,id={name},fd={number},server=on,wait=off"]
        argv += ["-mon", "chardev=q,mode=control", "-mon", "chardev=m,mode=control"]
        argv += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"]
        key, spawned = await house.spawn(*argv, fds=table, serial=serial, monitor=monitor)
    return key, AdoptRequest(
        key=key,
        pid=spawned.pid,
        start_ticks=spawned.start_ticks,
        serial=serial,
        monitor=monitor,
    )


@pytest.mark.qemu
async def test_a_real_qemu_that_is_told_to_quit(house: House) -> None:
    key, _ = await start_qemu(house)
    qmp = await asyncio.to_thread(Qmp, house.folder / "q")
    await house.info_when(key, lambda info: info.monitor_connected)
    await asyncio.to_thread(qmp.execute, "stop")
    info = await house.info_when(key, lambda info: info.stopped_at)
    assert info.monitor_connected
    assert info.serial_connected
    await asyncio.to_thread(qmp.execute, "quit")
    record = await house.record(key)
    assert record.exit_code == 0, record.stderr_tail
    assert record.shutdown is not None
    assert (record.shutdown.guest, record.shutdown.reason) == (False, "host-qmp-quit")
    qmp.close()


@pytest.mark.qemu
async def test_a_real_qemu_with_a_new_keeper(house: House) -> None:
    key, adoption = await start_qemu(house)
    qmp = await asyncio.to_thread(Qmp, house.folder / "q")
    await house.kill_keeper()
    await house.client.reconnect()
    await house.client.adopt(adoption)
    await house.info_when(key, lambda info: info.monitor_connected)
    await asyncio.to_thread(qmp.execute, "stop")
    await house.info_when(key, lambda info: info.stopped_at)
    os.kill(adoption.pid, signal.SIGTERM)
    record = await house.record(key)
    assert record.exit_code is None
    assert record.shutdown is not None
    assert record.shutdown.reason == "host-signal"
    qmp.close()


async def test_the_monitor_is_let_go_with_its_process(house: House) -> None:
    before = house.fd_count()
    await house.record(await spawn_fake(house, "bye"))
    await until(lambda: house.fd_count() == before)
